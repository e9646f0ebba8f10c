"""The gradient difference loss: the slopes between neighbouring voxels must be as steep as in the target."""

from __future__ import annotations

import math

import torch
from torch import nn

from .elementwise import difference, magnitude_power

REDUCTIONS = ("mean", "batchmean", "sum")


def _check(alpha: float, reduction: str) -> None:
    if not 1 <= alpha < math.inf:
        raise ValueError(f"alpha must be >= 1, got {alpha}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def gradient_difference_loss(
    pred: torch.Tensor, target: torch.Tensor, alpha: float = 2.0, absolute: bool = True, reduction: str = "mean"
) -> torch.Tensor:
    """Functional form of `GradientDifferenceLoss`; arguments and errors as there.

    Example:
        >>> gradient_difference_loss(torch.tensor([[[0.0, 0.5, 0.0]]]), torch.zeros(1, 1, 3), reduction="sum")
        tensor(0.5000)
    """
    _check(alpha, reduction)
    error = difference(pred, target)
    if error.ndim < 3:
        raise ValueError(f"expected images (B, C, *spatial), got the shape {tuple(pred.shape)}")
    y, z = pred.to(error.dtype), target.to(error.dtype)
    total = error.new_zeros(())
    for axis in range(2, error.ndim):
        slope = z.diff(dim=axis).abs() - y.diff(dim=axis).abs() if absolute else error.diff(dim=axis)
        total = total + magnitude_power(slope, alpha).sum()
    return total / {"mean": error.numel(), "batchmean": len(error), "sum": 1}[reduction]


class GradientDifferenceLoss(nn.Module):
    r"""Difference of the steepness of prediction and target, summed over the spatial axes.

    .. math:: L = \sum_i \sum_{\text{axis } a} \Big| |z_i - z_{i - a}| - |y_i - y_{i - a}| \Big|^\alpha

    with :math:`i - a` the neighbour of voxel i one step back along the axis, where there is one. Slopes are per voxel, not per mm.

    With the paper's inner absolute values an edge may fall where it should rise at no cost, and where y is flat the gradient is 0
    (that of the absolute value is taken as 0 at 0), so the loss alone sharpens no constant image: it belongs beside a loss on the
    voxels. `absolute=False` compares the slopes with their signs.

    The paper sums over voxels (equation 5). `mean` divides that sum by the voxels of the batch, not by the fewer differences, as
    the mean of `CharbonnierLoss` does: equation 6, their sum, then is that of `batchmean` over a constant.

    Args:
        alpha: power of the difference, >= 1; 2 in the paper.
        absolute: compare how steep the slopes are (equation 5), not where they go.
        reduction: `mean`, `batchmean` (sum over voxels, mean over the batch) or `sum`.

    Shape:
        `pred`, `target`: `(B, C, *spatial)` of any number of spatial axes and any range; the result is a scalar, in float32 for
        inputs of half precision.

    Raises:
        ValueError: on alpha < 1, another reduction, unlike shapes or no spatial axis.

    Example:
        >>> GradientDifferenceLoss(reduction="sum")(torch.eye(2)[None, None], torch.zeros(1, 1, 2, 2))
        tensor(4.)

    Reference:
        M. Mathieu, C. Couprie, Y. LeCun, Deep multi-scale video prediction beyond mean square error, 2016, arXiv:1511.05440; as
        used by L. Song et al., Deep robust residual network for brain MRI super-resolution, 2020,
        doi:10.21203/rs.3.rs-117695/v1. Equations 5 and 6.
    """

    def __init__(self, alpha: float = 2.0, absolute: bool = True, reduction: str = "mean") -> None:
        super().__init__()
        _check(alpha, reduction)
        self.alpha, self.absolute, self.reduction = alpha, absolute, reduction

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of `pred` against `target`, both `(B, C, *spatial)`."""
        return gradient_difference_loss(pred, target, self.alpha, self.absolute, self.reduction)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"alpha={self.alpha:g}, absolute={self.absolute}, reduction={self.reduction}"
