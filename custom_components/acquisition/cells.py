"""Polynomials over LR voxels and their averages over HR voxels: what a network on the LR grid says of any finer grid."""

from __future__ import annotations

import math

import torch


def _antiderivatives(x: torch.Tensor, degree: int) -> torch.Tensor:
    """Antiderivatives of the orthonormal Legendre polynomials of the unit cell, at `x` in [0, 1]: `(*x.shape, degree + 1)`."""
    t = 2 * x - 1
    values = [torch.ones_like(t), t]
    for k in range(1, degree + 1):
        values.append(((2 * k + 1) * t * values[k] - k * values[k - 1]) / (k + 1))
    whole = [x, *((values[k + 1] - values[k - 1]) / (2 * math.sqrt(2 * k + 1)) for k in range(1, degree + 1))]
    return torch.stack(whole, -1)


def cell_average_matrix(n: int, n_hr: int, degree: int = 3) -> torch.Tensor:
    r"""Averages over `n_hr` voxels of a function that is a polynomial within each of the `n` voxels of the same extent.

    Within an LR voxel the function is :math:`\sum_k c_k P_k(t)`, `t` in [0, 1] from border to border, with the Legendre
    polynomials :math:`P_k` that are orthonormal there (:math:`P_0 = 1`, :math:`P_1 = \sqrt 3 (2t - 1)`). A HR voxel takes the mean
    over its own extent, of several LR voxels where it lies on a border of them. So grids agree with each other: the average of the
    HR voxels of a cell is the same on each grid that divides it. For a whole factor of at most `degree + 1` any HR values can be
    written so.

    Args:
        n: LR voxels.
        n_hr: HR voxels over the same extent, at least `n`.
        degree: of the polynomials.

    Returns:
        `(n_hr, n * (degree + 1))` float64; columns run over the coefficients of the first LR voxel, then of the next.

    Raises:
        ValueError: on fewer HR than LR voxels, none, or a negative degree.
    """
    if not 1 <= n <= n_hr:
        raise ValueError(f"expected 1 <= n <= n_hr, got {n} and {n_hr}")
    if degree < 0:
        raise ValueError(f"degree must be >= 0, got {degree}")
    borders = torch.arange(n_hr + 1, dtype=torch.float64) * (n / n_hr)
    first = torch.arange(n, dtype=torch.float64)
    low, high = borders[:-1, None], borders[1:, None]
    start, end = ((border - first).clamp(0, 1) for border in (low, high))
    integral = _antiderivatives(end, degree) - _antiderivatives(start, degree)
    return (integral * (n_hr / n)).reshape(n_hr, n * (degree + 1))


def sub_voxel_matrix(factor: int, degree: int = 3) -> torch.Tensor:
    """`cell_average_matrix` of one LR voxel cut into `factor` HR voxels, `(factor, degree + 1)` float64."""
    return cell_average_matrix(1, factor, degree)
