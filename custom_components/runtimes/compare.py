"""Run one volume through a network in several runtimes: seconds, and how far each is from plain PyTorch."""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..benchmark import timed
from .load import Images, load_onnx, load_program, load_torchscript

_SLICES = 8  # that a 2D network gets at a time: small batches stay in a CPU's cache


@dataclass(frozen=True)
class Runtime:
    """A way to run a network over a volume `(1, C, X, Y, Z)`, and the size of its file, if it has one of its own."""

    run: Images
    megabytes: float | None = None


@dataclass(frozen=True)
class Measured:
    """Median of the seconds, and the largest difference to the first runtime, relative to the range of its result."""

    seconds: float
    difference: float


def runtimes(
    network: nn.Module, inferer: Inferer, files: Mapping[str, Path], spatial_dims: int, threads: int
) -> dict[str, Runtime]:
    """All runtimes of a network on the CPU by name, plain PyTorch first; a 2D network gets the slices across the last axis.

    Args:
        network: on the CPU in evaluation mode.
        inferer: of the bundle: what its users run.
        files: exported ones under `torchscript`, `program` and `onnx`.
        spatial_dims: of the network.
        threads: of onnxruntime; those of torch are set by `torch.set_num_threads`.
    """
    last = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
    network_last = copy.deepcopy(network).to(memory_format=last)  # type: ignore[call-overload]

    def channels_last(images: Tensor) -> Tensor:
        result: Tensor = network_last(images.contiguous(memory_format=last))
        return result

    def bfloat16(images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return channels_last(images).float()

    loaded: dict[str, tuple[Callable[[Path], Images], Path]] = {
        "TorchScript, frozen": (load_torchscript, files["torchscript"]),
        "torch.export": (load_program, files["program"]),
        "ONNX Runtime": (partial(load_onnx, threads=threads), files["onnx"]),
    }
    per_image: dict[str, tuple[Images, float | None]] = {
        "PyTorch, float32": (network, None),
        "PyTorch, channels_last": (channels_last, None),
        "PyTorch, channels_last, bfloat16": (bfloat16, None),
        **{name: (load(file), os.path.getsize(file) / 1e6) for name, (load, file) in loaded.items()},
    }
    found = {
        name: Runtime(partial(_by_slices, run) if spatial_dims == 2 else run, megabytes)
        for name, (run, megabytes) in per_image.items()
    }
    return {**found, "ExactInferer, as shipped": Runtime(lambda volume: inferer(volume, network_last))}


def _by_slices(run: Images, volume: Tensor) -> Tensor:
    slices = volume[0].movedim(-1, 0)
    made = torch.cat([run(some) for some in slices.split(_SLICES)])
    return made.movedim(0, -1)[None]


def measure(
    ways: Mapping[str, Runtime], volume: Tensor, repeats: int = 3, progress: bool = True
) -> dict[str, Measured]:
    """Run a volume through each, in turns, so that what else the machine does falls on all alike.

    A first round, which is not timed, gives the differences.

    Args:
        ways: as of `runtimes`.
        volume: `(1, C, X, Y, Z)`.
        repeats: timed rounds.
        progress: show a bar.

    Raises:
        ValueError: when repeats is below 1, or a runtime gives a result of another shape than the first.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be >= 1, got {repeats}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    differences: dict[str, float] = {}
    truth: Tensor | None = None
    with torch.inference_mode(), tqdm(total=(repeats + 1) * len(ways), leave=False, disable=not progress) as bar:
        for turn in range(repeats + 1):
            for name, way in ways.items():
                bar.set_description(name)
                run: Callable[[], Tensor] = partial(way.run, volume)
                result, taken = timed(run, volume.device)
                if turn:
                    seconds[name].append(taken)
                else:
                    truth = result if truth is None else truth
                    differences[name] = _difference(name, result, truth)
                bar.update()
    return {name: Measured(statistics.median(seconds[name]), differences[name]) for name in ways}


def _difference(name: str, result: Tensor, truth: Tensor) -> float:
    if result.shape != truth.shape:
        raise ValueError(f"{name}: expected a result of {tuple(truth.shape)}, got {tuple(result.shape)}")
    extent = float(truth.max() - truth.min()) or 1.0
    return float((result - truth).abs().max()) / extent
