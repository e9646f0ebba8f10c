"""Grids in voxels and millimetres: the field of view is kept at its outer voxel borders."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def centred_positions(n_in: int, n_out: int) -> torch.Tensor:
    """Centres of `n_out` voxels that cover the extent of `n_in` voxels, in input voxel indices.

    `x_j = (j + 1/2) n_in / n_out - 1/2`, float64 of shape `(n_out,)`: the convention of `scipy.ndimage.zoom(grid_mode=True)`.
    """
    return (torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5


def corner_positions(n_in: int, n_out: int) -> torch.Tensor:
    """`n_out` points from the first to the last voxel centre of `n_in`, as `scipy.ndimage.zoom` has them by default.

    The extent changes by this convention: it is there to reproduce published protocols, not for new work.
    """
    return torch.linspace(0, n_in - 1, n_out, dtype=torch.float64)


def target_shape(
    shape: Sequence[int],
    spacing: Sequence[float],
    target_spacing: Sequence[float] | float | None = None,
    scale_factor: Sequence[float] | float | None = None,
) -> tuple[int, ...]:
    """Shape of the HR grid over the extent of a LR scan: the extent divided by the target spacing, rounded.

    Args:
        shape: voxels of the LR scan per array axis.
        spacing: its voxel size in mm per array axis.
        target_spacing: wished voxel size in mm, one number or one per axis; 0 keeps that axis as it is.
        scale_factor: upsampling factor instead, one number or one per axis, each >= 1.

    Returns:
        The HR shape. The spacing that results exactly is `spacing * shape / result`.

    Raises:
        ValueError: when not exactly one of the two is given, when a value is not finite, when the number of values does not
            fit the axes, or when the target is coarser than the scan.
    """
    name, given = ("target_spacing", target_spacing) if scale_factor is None else ("scale_factor", scale_factor)
    if given is None or (target_spacing is not None and scale_factor is not None):
        raise ValueError(
            "expected either target_spacing or scale_factor, got " + ("neither" if given is None else "both")
        )
    values = [float(given)] * len(shape) if isinstance(given, (int, float)) else [float(v) for v in given]
    if len(values) != len(shape):
        raise ValueError(f"{name} must be one number or {len(shape)} numbers, got {len(values)}")
    result = []
    for axis, (n, size, value) in enumerate(zip(shape, spacing, values, strict=True)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} must be finite and not negative, got {value} on axis {axis}")
        if name == "scale_factor":
            factor = value
            if factor < 1:
                raise ValueError(f"scale_factor must be >= 1, got {value:g} on axis {axis}")
        else:
            factor = size / value if value else 1.0
        new = round(n * factor)
        if new < n:
            raise ValueError(
                f"target spacing must be at most the scan's {size:.4g} mm on axis {axis} (0 keeps an axis), got {value:g} mm"
            )
        result.append(new)
    return tuple(result)


def rescaled_affine(affine: torch.Tensor, shape: Sequence[int], new_shape: Sequence[int]) -> torch.Tensor:
    """Affine of a grid of `new_shape` voxels over the same extent as `shape` voxels with `affine`.

    `A' = A [diag(s), (s - 1) / 2]` with `s = shape / new_shape`: outer voxel borders stay where they are in mm.

    Args:
        affine: `(4, 4)` (or `(d + 1, d + 1)`) from voxel indices to mm.
        shape: voxels per axis of the grid that it belongs to.
        new_shape: voxels per axis of the other grid.
    """
    affine = torch.as_tensor(affine, dtype=torch.float64)
    step = torch.tensor([n / m for n, m in zip(shape, new_shape, strict=True)], dtype=torch.float64)
    change = torch.eye(affine.shape[0], dtype=torch.float64)
    d = len(step)
    change[:d, :d] = torch.diag(step)
    change[:d, -1] = (step - 1) / 2
    return affine @ change


def slice_axis(shape: Sequence[int], affine: torch.Tensor) -> int:
    """Array axis across the slices of a scan, from 0 to 2.

    A single slice's own axis; else that of the largest voxels, where they are at least 1.2 times as large as on the other two: the
    thick slices of a 2D acquisition; else, as nothing tells, the axis nearest to head-foot, whose slices are axial. Of several such
    axes the first.

    Args:
        shape: voxels per array axis, 3 of them.
        affine: `(4, 4)`, from voxel indices to RAS+ mm.

    Raises:
        ValueError: when there are not 3 axes.

    Example:
        >>> slice_axis((256, 20, 256), torch.diag(torch.tensor([0.9, 5.0, 0.9, 1.0])))
        1
    """
    if len(shape) != 3:
        raise ValueError(f"expected 3 axes, got {len(shape)}")
    if min(shape) == 1:
        return min(range(3), key=lambda axis: shape[axis])
    columns = torch.as_tensor(affine, dtype=torch.float64)[:3, :3]
    spacing = columns.norm(dim=0)
    order = spacing.argsort()
    if spacing[order[2]] >= 1.1999 * spacing[order[1]]:  # 1.2 as float32 affines of oblique scans have it
        return int(order[2])
    return int((columns / spacing)[2].abs().argmax())
