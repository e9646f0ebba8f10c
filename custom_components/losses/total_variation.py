"""Total variation: how much an image changes from voxel to voxel."""

from __future__ import annotations

import math

import torch
from torch import nn

from .elementwise import REDUCTIONS, reduced


def _check(eps: float, reduction: str) -> None:
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be > 0, got {eps}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def total_variation_loss(pred: torch.Tensor, eps: float = 1e-3, reduction: str = "mean") -> torch.Tensor:
    """Functional form of `TotalVariationLoss`; arguments and errors as there.

    Example:
        >>> total_variation_loss(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), eps=1e-6)
        tensor(0.2500)
    """
    _check(eps, reduction)
    if pred.ndim < 3:
        raise ValueError(f"expected an image (B, C, *spatial), got the shape {tuple(pred.shape)}")
    image = pred.to(torch.promote_types(pred.dtype, torch.float32))
    squares = torch.zeros_like(image)
    for axis in range(2, image.ndim):
        last = image.narrow(axis, image.shape[axis] - 1, 1)
        squares = squares + image.diff(dim=axis, append=last).square()
    loss = squares / ((squares + eps**2).sqrt() + eps)  # the formula without its cancellation: exactly 0 at 0
    return reduced(loss, reduction)


class TotalVariationLoss(nn.Module):
    r"""Smooth isotropic total variation, a prior on the network's output.

    .. math:: TV(Y) = \sum_i \left(\sqrt{|\nabla y_i|^2 + \epsilon^2} - \epsilon\right)

    with forward differences, 0 at the end of an axis. Slopes are per voxel, not per mm. A constant image has the value 0 and the
    gradient 0; slopes below eps are taken as noise and smoothed as by a squared penalty.

    Args:
        eps: slope at which the penalty turns from squared to absolute, in units of the image, > 0. The default is ours, the eps of
            `CharbonnierLoss`: LRTV has none, as its solver needs no derivative.
        reduction: `mean` over voxels and batch, `batchmean` (sum over voxels, mean over the batch), `sum` or `none`.

    Shape:
        `(B, C, *spatial)` of any number of spatial axes and any range; the result is a scalar, or of that shape with `none`, in
        float32 for input of half precision.

    Raises:
        ValueError: on eps <= 0, another reduction, or no spatial axis.

    Example:
        >>> TotalVariationLoss(eps=1e-6)(torch.ones(1, 1, 4, 4))
        tensor(0.)

    Reference:
        F. Shi, J. Cheng, L. Wang, P.-T. Yap, D. Shen, LRTV: MR image super-resolution with low-rank and total variation
        regularizations, 2015, doi:10.1109/TMI.2015.2437894.
    """

    def __init__(self, eps: float = 1e-3, reduction: str = "mean") -> None:
        super().__init__()
        _check(eps, reduction)
        self.eps, self.reduction = eps, reduction

    def forward(self, pred: torch.Tensor) -> torch.Tensor:
        """Total variation of `pred`, `(B, C, *spatial)`."""
        return total_variation_loss(pred, self.eps, self.reduction)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"eps={self.eps:g}, reduction={self.reduction}"
