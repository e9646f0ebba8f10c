"""How far a network looks: the halo that a tile needs on each side, found from the network itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LARGEST_HALO = 512
_PHASES = 4  # neighbouring positions of the probe; a network with strides answers differently at some of them


@dataclass(frozen=True)
class Footprint:
    """Per axis: input voxels that an output voxel sees on each side, and output voxels per input voxel."""

    halo: tuple[int, ...]
    factor: tuple[int, ...]


def receptive_field(network: Callable[[Tensor], Tensor], spatial_dims: int, in_channels: int) -> tuple[int, ...]:
    """Halo in voxels that the network needs on each side of a tile, per axis.

    One voxel of a volume that is thin but for one axis is set to NaN; the outputs that become NaN are those that see
    it. NaN passes through rectifiers, zero weights and clamps alike, so the answer depends on the network's structure
    and not on its weights.

    Args:
        network: maps `(B, C, *spatial)` to `(B, C', *(factor * spatial))` with integer factors. It is not changed.
        spatial_dims: number of spatial axes.
        in_channels: C.

    Returns:
        Voxels of the input grid, per axis; 10 for ten convolutions of size 3.

    Raises:
        ValueError: if the halo is above 512 voxels (as under pooling or normalisation over the whole volume), or if the
            network treats neighbouring voxels differently (as under strides).

    Example:
        >>> receptive_field(torch.nn.Conv2d(1, 1, (3, 5), padding="same"), 2, 1)
        (1, 2)
    """
    return footprint(network, spatial_dims, in_channels).halo


def footprint(network: Callable[[Tensor], Tensor], spatial_dims: int, in_channels: int) -> Footprint:
    """Halo and upsampling factor of a network; arguments and errors as `receptive_field`."""
    dtype, device = torch.float32, torch.device("cpu")
    if isinstance(network, nn.Module):
        # On the CPU: there convolutions are sums over the kernel, while FFT and Winograd kernels would spread NaN.
        with warnings.catch_warnings():  # the parameters of a copied ScriptModule are no leaves, of which `to` warns
            warnings.filterwarnings(
                "ignore", message="The .grad attribute of a Tensor that is not a leaf", category=UserWarning
            )
            network = copy.deepcopy(network).to(device)
        parameter = next(network.parameters(), None)
        if parameter is not None and parameter.is_floating_point():
            dtype = parameter.dtype
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        found = [_along(network, axis, spatial_dims, in_channels, dtype) for axis in range(spatial_dims)]
    return Footprint(tuple(halo for halo, _ in found), tuple(factor for _, factor in found))


def _along(
    network: Callable[[Tensor], Tensor], axis: int, spatial_dims: int, channels: int, dtype: torch.dtype
) -> tuple[int, int]:
    length, thin = 64, 1
    while True:
        shape = [length if a == axis else thin for a in range(spatial_dims)]
        try:
            halo = _reach(network, shape, axis, channels, dtype)
        except RuntimeError as error:  # such as reflection padding wider than the thin axes
            if thin >= 16:
                raise ValueError(f"the network must work on small volumes, but on {tuple(shape)}: {error}") from error
            thin *= 2
            continue
        if halo is not None:
            return halo
        if length >= 2 * LARGEST_HALO + _PHASES:
            raise ValueError(
                f"the receptive field must be finite, at most {LARGEST_HALO} voxels per side; axis {axis} is beyond"
            )
        length = min(4 * length, 2 * LARGEST_HALO + _PHASES + 1)


def _reach(
    network: Callable[[Tensor], Tensor], shape: list[int], axis: int, channels: int, dtype: torch.dtype
) -> tuple[int, int] | None:
    """Halo and factor along an axis; None if the volume is too short to tell."""
    first = (shape[axis] - _PHASES) // 2
    volume = torch.full((_PHASES, channels, *shape), 0.5, dtype=dtype)
    for phase in range(_PHASES):
        volume[phase].select(axis + 1, first + phase).fill_(float("nan"))
    try:
        output = network(volume)
    except Exception as error:  # whatever a stranger's forward raises on a thin volume
        raise RuntimeError(str(error)) from error
    if not isinstance(output, Tensor) or output.ndim != volume.ndim:
        raise ValueError(f"the network must return one tensor of {volume.ndim} axes, got {_kind(output)}")
    factors = [divmod(m, n) for m, n in zip(output.shape[2:], shape, strict=True)]
    if any(rest or not whole for whole, rest in factors):
        sizes = f"{tuple(shape)}, got {tuple(output.shape[2:])}"
        raise RuntimeError(f"output size must be an integer multiple of the input's {sizes}")
    factor = factors[axis][0]
    seen: set[tuple[int, int]] = set()
    for phase in range(_PHASES):
        touched = torch.isnan(output[phase]).transpose(axis + 1, -1).flatten(0, -2).any(0).nonzero().flatten()
        if not len(touched):
            raise RuntimeError("no output voxel depends on the input")
        if int(touched[0]) == 0 or int(touched[-1]) == output.shape[axis + 2] - 1:
            return None
        seen.add((int(touched[0]) - (first + phase) * factor, int(touched[-1]) - (first + phase) * factor))
    if len(seen) > 1:
        reached = f"neighbours on axis {axis} reach {sorted(seen)} (strides?)"
        raise ValueError(f"the network must treat all voxels alike, but {reached}")
    ((low, high),) = seen
    return max(-(low // factor), high // factor), factor


def _kind(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
