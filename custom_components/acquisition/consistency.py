"""The image nearest to a result that gives the scan when it is acquired again."""

from __future__ import annotations

import torch

from .modes import AcquisitionModes
from .operators import SeparableOperator

LEAST_RATIO = 1e-3  # modes of a smaller gain are not in a float32 scan


def make_consistent(
    x: torch.Tensor, y: torch.Tensor, operator: SeparableOperator, noise_to_error: float = 0.0
) -> torch.Tensor:
    r"""Correct a result by what its acquisition tells, in closed form.

    .. math:: x' = x + A^T (A A^T + \rho^2 I)^{-1} (y - A x) = \arg\min_z \|A z - y\|^2 + \rho^2 \|z - x\|^2

    In the singular modes of `A`, one small decomposition per axis, this is a product on the LR grid: exact, where others iterate.
    For a scan without noise and :math:`\rho` = 0 it is the orthogonal projection on all images that `A` maps to the scan. The truth
    is one of them: no result comes farther from it.

    Args:
        x: result, `(B, C, *spatial)`.
        y: scan, `(B, C, *spatial_lr)`, in the unit of `x`.
        operator: the acquisition `A`, as `acquisition_operator` gives it.
        noise_to_error: rho, the standard deviation of the scan's noise over that of the error of `x`; 1e-3 at least is used.

    Returns:
        A new image of the shape of `x`.

    Raises:
        ValueError: on a negative ratio, or shapes that the operator does not take.
    """
    if not 0 <= noise_to_error < float("inf"):
        raise ValueError(f"noise_to_error must be >= 0, got {noise_to_error}")
    return AcquisitionModes(operator, y.shape[2:]).correct(x, y, max(noise_to_error, LEAST_RATIO) ** 2)
