"""Time exact inference, bundles and the acquisition model on this machine: `python -m custom_components.benchmark`."""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from scipy import ndimage
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from custom_components.acquisition import acquisition_operator, interpolation_operator
from custom_components.inferers import ExactInferer
from custom_components.networks import AnyScaleSR, ReCNN, acquisition_condition

T = TypeVar("T")
_SIGMA = 1.0  # voxels, of the paper's acquisition: Gaussian blur, then sampling
_CONVOLUTIONS = ("aten::convolution", "aten::mkldnn_convolution")  # what layers call, and what streaming calls
_CEILING_SHAPE = (4, 96, 96)  # one convolution whose values stay in a CPU's last-level cache


def timed(function: Callable[[], T], device: torch.device, repeats: int = 1) -> tuple[T, float]:
    """Result of a function, and the least seconds of `repeats` calls."""
    best = float("inf")
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        result = function()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return result, best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def convolution_flops(network: nn.Module, shape: Sequence[int]) -> float:
    """Multiplications and additions of a network's convolutions on an input of a shape, counted without computing them."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(network).to("meta")(torch.empty(tuple(shape), device="meta"))
    return float(counter.get_total_flops())


def ceiling(filters: int, device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of one 3x3x3 convolution in channels_last_3d, as nearly all layers are."""
    weight = torch.randn(filters, filters, 3, 3, 3, device=device, dtype=dtype)
    volume = torch.randn(1, filters, *_CEILING_SHAPE, device=device, dtype=dtype)
    weight, volume = (t.contiguous(memory_format=torch.channels_last_3d) for t in (weight, volume))
    seconds = timed(lambda: nn.functional.conv3d(volume, weight, padding=1), device, repeats=10)[1]
    operations: int = weight.numel() * 2 * math.prod(_CEILING_SHAPE)
    return operations / seconds


def convolution_share(function: Callable[[], object], device: torch.device) -> float:
    """Share of a function's time that is spent in convolutions."""
    cuda = device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        seconds = timed(function, device)[1]
    spent = 0.0
    for event in profiler.events() or []:
        outer = event.cpu_parent
        while outer is not None and outer.name not in _CONVOLUTIONS:
            outer = outer.cpu_parent
        if outer is None and event.name in _CONVOLUTIONS:
            spent += event.device_time_total if cuda else event.cpu_time_total
    return spent * 1e-6 / seconds


def inference_rows(network: nn.Module, volume: Tensor, memory_gib: float) -> list[str]:
    """One line per way to run a network over a volume: seconds, ratio to the whole pass, largest difference to it."""
    device = volume.device
    last = torch.channels_last_3d
    window = SlidingWindowInferer(roi_size=96, overlap=0.25, mode="gaussian")
    exact = ExactInferer(memory_gib)
    half = ExactInferer(memory_gib, amp_dtype="bfloat16")
    flops = convolution_flops(network, volume.shape)

    def whole_last() -> Tensor:
        weights_last = network.to(memory_format=last)  # type: ignore[call-overload]
        try:
            result: Tensor = weights_last(volume.to(memory_format=last))
        finally:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return result

    def windowed() -> Tensor:
        result = window(volume, network)
        if not isinstance(result, Tensor):
            raise TypeError(f"expected one tensor from the sliding window, got {type(result).__name__}")
        return result

    ways: list[tuple[str, Callable[[], Tensor]]] = [
        ("whole pass, contiguous", lambda: network(volume)),
        ("whole pass, channels_last_3d", whole_last),
        ("ExactInferer", lambda: exact(volume, network)),
        ("ExactInferer, bfloat16", lambda: half(volume, network)),
        ("sliding window 96, overlap 0.25", windowed),
    ]
    rows = [f"{'way':34}{'seconds':>9}{'ratio':>8}{'GFLOP/s':>9}{'difference':>12}{'PSNR':>8}"]
    taken: dict[str, float] = {}
    truth: Tensor | None = None
    whole = 0.0
    for name, way in ways:
        result, taken[name] = timed(way, device)
        if truth is None:
            truth, whole = result, taken[name]
        extent = float(truth.max() - truth.min())
        error = (result - truth).abs() / extent
        psnr = -10 * torch.log10(error.square().mean()).item()
        speed = flops / taken[name] / 1e9
        rows.append(
            f"{name:34}{taken[name]:9.2f}{taken[name] / whole:8.2f}{speed:9.0f}{float(error.max()):12.1e}{psnr:8.1f}"
        )
    plan = exact.plan(volume.shape, network)
    share = convolution_share(lambda: exact(volume, network), device)
    rows += [
        "Differences are relative to the range of the whole pass. GFLOP/s count what the whole pass needs.",
        f"plan: {plan.method}, {len(plan.windows)} windows, axis {plan.axis}, {plan.thickness} slices at a time, "
        f"{plan.memory / 2**20:.0f} MiB, {plan.work:.3f} times the operations of the whole pass",
        f"convolutions take {100 * share:.0f} % of ExactInferer's time (profiled)",
        f"sliding window / ExactInferer: {taken['sliding window 96, overlap 0.25'] / taken['ExactInferer']:.2f}",
    ]
    return rows


def acquisition_rows(size: int) -> list[str]:
    """Blur, sampling by 2 and cubic spline interpolation back of a cube, by scipy and by `acquisition`."""
    device = torch.device("cpu")
    volume = ndimage.gaussian_filter(np.random.default_rng(0).random((size,) * 3, dtype=np.float32), 2)
    full, low = (size,) * 3, (size // 2,) * 3

    def by_scipy() -> np.ndarray:
        sampled = ndimage.zoom(ndimage.gaussian_filter(volume, _SIGMA), 0.5, order=3, mode="nearest", grid_mode=True)
        back: np.ndarray = ndimage.zoom(sampled, 2, order=3, mode="nearest", grid_mode=True)
        return back

    def by_operators() -> Tensor:
        sampled = acquisition_operator(full, low)(torch.from_numpy(volume)[None, None])
        return interpolation_operator(low, full, kind="bspline")(sampled)

    by_operators()  # the first call starts the threads
    ours, seconds = timed(by_operators, device, repeats=3)
    truth, slow = timed(by_scipy, device)
    error = float(np.abs(ours[0, 0].numpy() - truth).max()) / float(np.ptp(truth))
    return [
        f"blur + x2 sampling + spline back, {size}^3: scipy {slow:.2f} s, acquisition {seconds:.3f} s (operators made "
        f"anew), {slow / seconds:.1f} times faster; largest difference {error:.1e} of the range"
    ]


def bundle_config(bundle: str) -> ConfigParser:
    """Configuration of a bundle's inference; `bundles/NAME+overlay.json` lays files of overrides on top."""
    root, *overlays = bundle.split("+")
    parser = ConfigParser()
    parser.read_config([str(Path(root) / "configs" / "inference.json"), *overlays])
    parser["bundle_root"] = root
    return parser


def bundle_network(bundle: str) -> nn.Module:
    """The network of a bundle, with its weights where they are there."""
    parser = bundle_config(bundle)
    network: nn.Module = parser.get_parsed_content("network_def")
    weights = Path(parser["bundle_root"]) / "models" / "model.pt"
    if weights.exists():
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network


def bundle_rows(
    bundles: Sequence[str],
    shape: Sequence[int],
    scale_factor: float,
    device: torch.device,
    memory_gib: float,
    repeats: int,
) -> list[str]:
    """One line per bundle that makes a HR volume of `shape`; the first is what the ratios are to.

    Networks that upsample (`network_input` is "lowres") get the LR volume. Weights are random, since time does not depend on
    them. Repetitions take turns, so that what else the machine does falls on all alike.
    """
    ways: list[tuple[str, Callable[[], Tensor], list[float]]] = []
    columns: list[tuple[float, int, str]] = []
    for bundle in bundles:
        parser = bundle_config(bundle)
        parser["memory_gib"], parser["device"], parser["inferer::progress"] = memory_gib, device, False
        network = parser.get_parsed_content("network_def").to(device).eval()
        inferer = parser.get_parsed_content("inferer")
        lowres = parser.get("network_input", "image") == "lowres"
        sizes = [round(n / scale_factor) for n in shape] if lowres else list(shape)
        volume = torch.rand(1, int(parser.get("network_def::in_channels", 1)), *sizes)
        made_of = network
        if isinstance(network, AnyScaleSR):
            condition = acquisition_condition([n / m for n, m in zip(shape, sizes, strict=True)], [1.0] * 3)
            made_of = network.folded(condition, sizes, shape, maps=False)
        plan = inferer.plan(volume.shape, made_of)  # of one pass: a slice, where the network is a 2D one
        passes = volume[0, 0].numel() / math.prod(plan.sizes)
        flops = passes * convolution_flops(made_of, (*volume.shape[:2], *plan.sizes))
        wished = (tuple(shape),) if lowres else ()
        ways.append(
            (" + ".join(Path(part).stem for part in bundle.split("+")), partial(inferer, volume, network, *wished), [])
        )
        method = (
            plan.method if inferer.amp_dtype is None else f"{plan.method}, {inferer.amp_dtype}".replace("torch.", "")
        )
        columns.append((flops, plan.memory, method))
    for _ in range(repeats):
        for _, way, seconds in ways:
            seconds.append(timed(way, device)[1])
    taken = [statistics.median(seconds) for _, _, seconds in ways]
    width = max(len(name) for name, _, _ in ways) + 2
    rows = [f"{'network':{width}}{'seconds':>9}{'ratio':>8}{'GFLOP':>9}{'GFLOP/s':>9}{'MiB':>7}  method"]
    for (name, _, _), (flops, memory, method), median in zip(ways, columns, taken, strict=True):
        rows.append(
            f"{name:{width}}{median:9.2f}{median / taken[0]:8.2f}{flops / 1e9:9.1f}{flops / median / 1e9:9.0f}"
            f"{memory / 2**20:7.0f}  {method}"
        )
    return [*rows, f"Medians of {repeats} interleaved runs; MiB: what the plan holds at most beside input and result."]


def _machine(device: torch.device) -> str:
    return f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, float32 where nothing else is said"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m custom_components.benchmark", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 160, 128), help="voxels of the volume")
    parser.add_argument("--layers", type=int, default=10, help="layers of the ReCNN")
    parser.add_argument("--filters", type=int, default=64, help="filters per layer")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument("--memory-gib", type=float, default=2.0, help="working memory of ExactInferer")
    parser.add_argument("--bundle", help="run the network of this bundle instead")
    parser.add_argument(
        "--bundles",
        nargs="+",
        metavar="BUNDLE[+OVERLAY.json]",
        help="compare these bundles, each with files of overrides laid on top, on the way to a HR volume of SHAPE",
    )
    parser.add_argument("--scale-factor", "--scale_factor", type=float, default=2.0, help="of networks that upsample")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each of the bundles")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--acquisition-size", type=int, default=256, help="voxels per axis of the acquisition's cube")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    torch.backends.cudnn.allow_tf32 = False  # its rounding, 1e-3, would hide every other difference
    torch.manual_seed(0)
    if chosen.bundles:
        print(f"{_machine(device)}, HR volume of {tuple(chosen.shape)} voxels from LR at 1/{chosen.scale_factor:g}")
        speed = ceiling(chosen.filters, device, torch.float32) / 1e9
        print(f"ceiling: one convolution {chosen.filters} to {chosen.filters}: {speed:.0f} GFLOP/s")
        for row in bundle_rows(
            chosen.bundles, chosen.shape, chosen.scale_factor, device, chosen.memory_gib, chosen.repeats
        ):
            print(row)
        return
    network = bundle_network(chosen.bundle) if chosen.bundle else ReCNN(3, 1, chosen.layers, chosen.filters)
    network = network.to(device).eval()
    print(f"{_machine(device)}, {tuple(chosen.shape)} voxels")
    with torch.inference_mode():
        volume = torch.rand(1, 1, *chosen.shape, device=device)
        network(volume[..., :16, :16, :16])
        for dtype in (torch.float32, torch.bfloat16):
            speed = ceiling(chosen.filters, device, dtype) / 1e9
            print(f"ceiling: one convolution {chosen.filters} to {chosen.filters} in {dtype}: {speed:.0f} GFLOP/s")
        for row in (*inference_rows(network, volume, chosen.memory_gib), *acquisition_rows(chosen.acquisition_size)):
            print(row)


if __name__ == "__main__":
    main()
