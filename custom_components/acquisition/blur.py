"""Blur along one axis as a square matrix: the slice profile, or the point-spread function."""

from __future__ import annotations

import math

import torch

from .interpolation import kernel_matrix

FWHM_PER_SIGMA = 2 * math.sqrt(2 * math.log(2))


def gaussian_matrix(n: int, sigma: float, truncate: float = 4.0, boundary: str = "reflect") -> torch.Tensor:
    """Gaussian blur of standard deviation `sigma` voxels, sampled and normalised: `(n, n)` float64.

    Equal to `scipy.ndimage.gaussian_filter1d(..., sigma, truncate=truncate, mode=boundary)`. FWHM = 2.3548 sigma.

    Raises:
        ValueError: when sigma or truncate is not positive.
    """
    if not (0 < sigma < math.inf and truncate > 0):
        raise ValueError(f"sigma and truncate must be positive, got {sigma} and {truncate}")
    radius = int(truncate * sigma + 0.5)
    centres = torch.arange(n, dtype=torch.float64)

    def bell(t: torch.Tensor) -> torch.Tensor:
        return torch.where(t.abs() <= radius, torch.exp(-0.5 * (t / sigma) ** 2), 0.0)

    return kernel_matrix(n, centres, bell, radius, boundary)


def box_matrix(n: int, width: float, boundary: str = "reflect", positions: torch.Tensor | None = None) -> torch.Tensor:
    """Average over a box of `width` voxels around each point, `(len(positions), n)` float64: an ideal slice profile.

    The weight of a voxel is the part of it that lies in the box, so that neither the width nor a point need be whole.

    Args:
        n: number of voxels.
        width: of the box, in voxels.
        boundary: continuation beyond the ends: `nearest`, `reflect` or `mirror`.
        positions: `(m,)` centres of the boxes in voxel indices; None takes the voxel centres.

    Raises:
        ValueError: when the width is not positive.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive, got {width}")
    half = width / 2

    def overlap(t: torch.Tensor) -> torch.Tensor:
        return ((t + 0.5).clamp(max=half) - (t - 0.5).clamp(min=-half)).clamp(min=0)

    return kernel_matrix(n, torch.arange(n) if positions is None else positions, overlap, half + 0.5, boundary)
