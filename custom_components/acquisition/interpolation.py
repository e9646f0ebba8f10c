"""Interpolation along one axis as a matrix: nearest, linear, Keys cubic and cubic B-spline with its prefilter."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch

BOUNDARIES = ("nearest", "reflect", "mirror")
PAD = 12  # edge voxels added before the B-spline prefilter; its pole to this power is 1.4e-7


def fold(index: torch.Tensor, n: int, boundary: str) -> torch.Tensor:
    """Map indices beyond `0 .. n - 1` back inside.

    `nearest` repeats the edge voxel, `reflect` mirrors at the outer voxel border (`b a | a b c`), `mirror` at the outer voxel
    centre (`c b | a b c`); the names are those of `scipy.ndimage`.
    """
    if boundary == "nearest" or n == 1:
        return index.clamp(0, n - 1)
    if boundary == "reflect":
        index = index % (2 * n)
        return torch.where(index < n, index, 2 * n - 1 - index)
    if boundary == "mirror":
        index = index % (2 * n - 2)
        return torch.where(index < n, index, 2 * n - 2 - index)
    raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")


def _linear(t: torch.Tensor) -> torch.Tensor:
    return (1 - t.abs()).clamp(min=0)


def _keys_cubic(t: torch.Tensor) -> torch.Tensor:
    t = t.abs()
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, torch.zeros_like(t)))


def _cubic_bspline(t: torch.Tensor) -> torch.Tensor:
    t = t.abs()
    near = 2 / 3 - t * t * (1 - t / 2)
    return torch.where(t <= 1, near, (2 - t).clamp(min=0) ** 3 / 6)


KERNELS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    "linear": (_linear, 1.0),
    "cubic": (_keys_cubic, 2.0),
    "bspline": (_cubic_bspline, 2.0),
}


@lru_cache(maxsize=64)
def _bspline_prefilter(n: int, boundary: str) -> torch.Tensor:
    """Voxel values to cubic B-spline coefficients: the inverse of the tridiagonal [1/6, 4/6, 1/6], `(n, n)` float64."""
    basis = torch.diag(torch.full((n,), 4 / 6, dtype=torch.float64))
    for i in range(n):
        for neighbour in (i - 1, i + 1):
            basis[i, int(fold(torch.tensor(neighbour), n, boundary))] += 1 / 6
    inverse: torch.Tensor = torch.linalg.inv(basis)
    return inverse


def kernel_matrix(
    n: int, positions: torch.Tensor, kernel: Callable[[torch.Tensor], torch.Tensor], radius: float, boundary: str
) -> torch.Tensor:
    """Weights `kernel(i - x_j)` of voxel `i` for the point `x_j`, each row summing to 1: `(len(positions), n)` float64."""
    positions = positions.to(torch.float64)
    offsets = torch.arange(-math.ceil(radius), math.ceil(radius) + 1)
    index = positions.floor().long()[:, None] + offsets
    weights = kernel(index - positions[:, None])
    weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(len(positions), n, dtype=torch.float64)
    return matrix.scatter_add_(1, fold(index, n, boundary), weights)


def interpolation_matrix(
    n: int, positions: torch.Tensor, kind: str = "bspline", boundary: str = "nearest", stretch: float = 1.0
) -> torch.Tensor:
    """Matrix that interpolates `n` voxels of one axis at the given points.

    Args:
        n: number of voxels.
        positions: `(m,)` points in voxel indices; beyond the outer voxel centres the axis goes on as `boundary` says.
        kind: `nearest`, `linear`, `cubic` (Keys, a = -1/2) or `bspline` (cubic, with prefilter: it passes through the voxels).
        boundary: `nearest`, `reflect` or `mirror` (see `fold`).
        stretch: widens the kernel by this factor against aliasing when sampling coarsely (Matlab's `imresize`); >= 1, for
            `linear` and `cubic` only.

    Returns:
        `(m, n)` float64; each row sums to 1.

    Raises:
        ValueError: on an unknown kind or boundary, or a stretch that does not fit.

    References:
        R. Keys, Cubic convolution interpolation for digital image processing, 1981, doi:10.1109/TASSP.1981.1163711.
        M. Unser, Splines: a perfect fit for signal and image processing, 1999, doi:10.1109/79.799930.
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {BOUNDARIES}, got {boundary!r}")
    if kind not in ("nearest", *KERNELS):
        raise ValueError(f"kind must be one of {('nearest', *KERNELS)}, got {kind!r}")
    if stretch < 1 or (stretch > 1 and kind not in ("linear", "cubic")):
        raise ValueError(f"stretch must be 1, or above 1 for linear and cubic, got {stretch} for {kind}")
    positions = positions.to(torch.float64)
    if kind == "nearest":
        index = fold((positions + 0.5).floor().long(), n, boundary)
        return torch.nn.functional.one_hot(index, n).to(torch.float64)
    kernel, radius = KERNELS[kind]
    if kind != "bspline":
        return kernel_matrix(n, positions, lambda t: kernel(t / stretch), radius * stretch, boundary)
    if n == 1:
        return torch.ones(len(positions), 1, dtype=torch.float64)
    if boundary != "nearest":
        return kernel_matrix(n, positions, kernel, radius, boundary) @ _bspline_prefilter(n, boundary)
    # The edge is repeated before the prefilter, which itself needs a symmetric end; far enough out that it does not matter.
    padded = n + 2 * PAD
    repeat = torch.nn.functional.one_hot((torch.arange(padded) - PAD).clamp(0, n - 1), n).to(torch.float64)
    weights = kernel_matrix(padded, positions + PAD, kernel, radius, "reflect")
    return weights @ (_bspline_prefilter(padded, "reflect") @ repeat)
