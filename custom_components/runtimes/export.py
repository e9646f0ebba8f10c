"""Write a network for other runtimes, as a file that takes any number of images of any size."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..errors import ScanError
from ..files import PathLike, atomic_write

INPUT, OUTPUT = "x", "pred"  # names in an ONNX file; the first is that of the networks' argument
_AXES = {2: ("h", "w"), 3: ("d", "h", "w")}
_EXAMPLE = (8, 10, 12)  # any sizes do; the batch of two is no accident: torch.export takes a size of one for fixed


def expect_packages(purpose: str, *names: str) -> None:
    """Refuse in one line when a package is missing.

    Raises:
        ScanError: naming those that are missing.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ScanError(f"{purpose}: expected the packages {', '.join(names)}, got no {' and no '.join(missing)}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch says about its own exporters: that TorchScript is deprecated and that torchvision is not there."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`torch\.jit\.\w+` is deprecated", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        log.setLevel(level)


def free_axes(spatial_dims: int, batch: bool = True) -> dict[int, Any]:
    """What `dynamic_shapes` of torch.export takes for an image of any size, in a batch of any size or in one that is fixed.

    Raises:
        ValueError: when `spatial_dims` is neither 2 nor 3.
    """
    if spatial_dims not in _AXES:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    names = {**({0: "batch"} if batch else {}), **dict(enumerate(_AXES[spatial_dims], 2))}
    return {axis: torch.export.Dim(name, min=1) for axis, name in names.items()}


def export_torchscript(network: nn.Module, path: PathLike) -> None:
    """Write TorchScript, the format of MONAI's `ckpt_export`, which puts configs and metadata into the file besides.

    Args:
        network: maps `(B, C, *spatial)` to `(B, C', *(factor * spatial))`; in evaluation mode.
        path: the file, as a rule `.ts`.

    Raises:
        ValueError: when the network is in training mode.
        ScanError: when the file cannot be written.
    """
    _expect_evaluation(network)
    with quiet(), atomic_write(path) as partial:
        torch.jit.script(network).save(str(partial))


def export_program(network: nn.Module, path: PathLike, spatial_dims: int, in_channels: int = 1) -> None:
    """Write a program of `torch.export`, in which batch and sizes are free; a wished shape is no input of it.

    Args:
        network: as in `export_torchscript`.
        path: the file; torch asks for `.pt2`.
        spatial_dims: 2 or 3.
        in_channels: C.

    Raises:
        ValueError: when the network is in training mode or `spatial_dims` is neither 2 nor 3.
        ScanError: when the file cannot be written.
    """
    _expect_evaluation(network)
    free, example = free_axes(spatial_dims), _example(spatial_dims, in_channels)
    with quiet(), torch.no_grad(), atomic_write(path) as partial:
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes={INPUT: free}), partial)


def export_onnx(network: nn.Module, path: PathLike, spatial_dims: int, in_channels: int = 1) -> None:
    """Write ONNX with input `x` and output `pred`, of which batch and sizes are free; it needs the packages onnx and onnxscript.

    Args:
        network: as in `export_torchscript`.
        path: the file, as a rule `.onnx`; weights are inside.
        spatial_dims: 2 or 3.
        in_channels: C.

    Raises:
        ValueError: when the network is in training mode or `spatial_dims` is neither 2 nor 3.
        ScanError: when a package is missing or the file cannot be written.
    """
    _expect_evaluation(network)
    free, example = free_axes(spatial_dims), _example(spatial_dims, in_channels)
    expect_packages("ONNX export", "onnx", "onnxscript")
    with quiet(), torch.no_grad(), atomic_write(path) as partial:
        torch.onnx.export(
            network,
            (example,),
            f=str(partial),
            dynamo=True,
            dynamic_shapes={INPUT: free},
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )


def _example(spatial_dims: int, in_channels: int) -> torch.Tensor:
    return torch.zeros(2, in_channels, *_EXAMPLE[:spatial_dims])


def _expect_evaluation(network: nn.Module) -> None:
    if network.training:
        raise ValueError("network must be in evaluation mode, got one in training mode")
