"""A network in NVIDIA TensorRT, by MONAI's own compiler; written after its source, not tried on hardware."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from monai.networks import trt_compile
from torch import nn

from ..errors import ScanError
from .export import INPUT, expect_packages, free_axes

_PRECISIONS = ("fp32", "tf32", "fp16", "bf16")


def tensorrt_network(
    network: nn.Module,
    checkpoint: str | Path,
    spatial_dims: int,
    size: int,
    in_channels: int = 1,
    precision: str = "fp32",
) -> nn.Module:
    """Let a network build a TensorRT engine on its first call and run in it from then on; for `TileInferer`.

    The engine stands beside the weights as `<checkpoint>.<precision>_<size>.plan` and is used again; it is built anew when the
    weights are newer, and when the GPU or TensorRT is another one. Weights are to be loaded before the first call.

    Args:
        network: on the GPU.
        checkpoint: file of its weights, of which the age is compared with the engine's.
        spatial_dims: 2 or 3.
        size: voxels per axis that the engine takes, at most; it is fastest at this one.
        in_channels: channels of the input.
        precision: `fp32`, `tf32`, `fp16` or `bf16`; only the first keeps the accuracy that the other runtimes have.

    Returns:
        The network itself, in which MONAI's `trt_compile` has replaced `forward`.

    Raises:
        ValueError: on arguments out of range.
        ScanError: in one line, when a package or the GPU is missing, where MONAI would go on in PyTorch.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    if size < 2:
        raise ValueError(f"size must be >= 2, got {size}")
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {_PRECISIONS}, got {precision!r}")
    expect_packages("TensorRT", "tensorrt", "polygraphy", "onnx", "onnxscript")
    if not torch.cuda.is_available():
        raise ScanError("TensorRT: expected a CUDA GPU, got none")
    takes = inspect.signature(network.forward).parameters
    smallest, largest = ([1, in_channels, *[n] * spatial_dims] for n in (1, size))
    arguments: dict[str, object] = {
        "precision": precision,
        "input_profiles": [{INPUT: [smallest, largest, largest]}],
        # MONAI would name the axes of x alone, which torch.onnx refuses where there is an optional argument too
        "export_args": {
            "dynamic_shapes": {name: free_axes(spatial_dims, batch=False) if name == INPUT else None for name in takes}
        },
    }
    if Path(checkpoint).is_file():
        arguments["timestamp"] = int(Path(checkpoint).stat().st_mtime)
    compiled: nn.Module = trt_compile(network, f"{checkpoint}.{precision}_{size}", args=arguments)
    return compiled
