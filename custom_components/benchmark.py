"""Time exact inference and the acquisition model on this machine: `python -m custom_components.benchmark`."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from scipy import ndimage
from torch import Tensor, nn

from custom_components.acquisition import acquisition_operator, interpolation_operator
from custom_components.inferers import ExactInferer
from custom_components.networks import ReCNN

T = TypeVar("T")
_SIGMA = 1.0  # voxels, of the paper's acquisition: Gaussian blur, then sampling
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


def convolution_flops(network: nn.Module, voxels: int) -> float:
    """Multiplications and additions of a network's convolutions on a volume of so many voxels (stride 1)."""
    layers = (m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d)))
    return float(sum(2 * layer.weight.numel() for layer in layers)) * voxels


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
    events = [e for e in profiler.key_averages() if e.key in ("aten::conv2d", "aten::conv3d")]
    return float(sum(e.device_time_total if cuda else e.cpu_time_total for e in events)) * 1e-6 / seconds


def inference_rows(network: nn.Module, volume: Tensor, memory_gib: float) -> list[str]:
    """One line per way to run a network over a volume: seconds, ratio to the whole pass, largest difference to it."""
    device = volume.device
    last = torch.channels_last_3d
    window = SlidingWindowInferer(roi_size=96, overlap=0.25, mode="gaussian")
    exact = ExactInferer(memory_gib)
    half = ExactInferer(memory_gib, amp_dtype="bfloat16")
    flops = convolution_flops(network, volume[0, 0].numel())

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


def bundle_network(bundle: Path) -> nn.Module:
    """The network of a bundle, with its weights where they are there."""
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["bundle_root"] = str(bundle)
    network: nn.Module = parser.get_parsed_content("network_def")
    weights = bundle / "models" / "model.pt"
    if weights.exists():
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m custom_components.benchmark", description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 160, 128), help="voxels of the volume")
    parser.add_argument("--layers", type=int, default=10, help="layers of the ReCNN")
    parser.add_argument("--filters", type=int, default=64, help="filters per layer")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all")
    parser.add_argument("--memory-gib", type=float, default=2.0, help="working memory of ExactInferer")
    parser.add_argument("--bundle", type=Path, help="run the network of this bundle instead")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--acquisition-size", type=int, default=256, help="voxels per axis of the acquisition's cube")
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    torch.backends.cudnn.allow_tf32 = False  # its rounding, 1e-3, would hide every other difference
    torch.manual_seed(0)
    network = bundle_network(chosen.bundle) if chosen.bundle else ReCNN(3, 1, chosen.layers, chosen.filters)
    network = network.to(device).eval()
    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {tuple(chosen.shape)} voxels, float32"
    )
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
