"""The Charbonnier loss: a smooth absolute error, which an outlier pulls no harder than any other voxel."""

from __future__ import annotations

import math

import torch
from torch import nn

from .elementwise import REDUCTIONS, difference, reduced


def _check(eps: float, reduction: str) -> None:
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be > 0, got {eps}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def charbonnier_loss(
    pred: torch.Tensor, target: torch.Tensor, eps: float = 1e-3, reduction: str = "mean"
) -> torch.Tensor:
    """Functional form of `CharbonnierLoss`; arguments and errors as there.

    Example:
        >>> charbonnier_loss(torch.tensor([[0.4]]), torch.tensor([[0.1]]), eps=0.4)
        tensor(0.5000)
    """
    _check(eps, reduction)
    error = difference(pred, target)
    loss = torch.hypot(error, torch.full_like(error, eps))  # squares neither overflow nor vanish
    return reduced(loss, reduction)


class CharbonnierLoss(nn.Module):
    r"""Absolute error, rounded off to a parabola where it is below eps.

    .. math:: L = \sqrt{(y - z)^2 + \epsilon^2}, \qquad
        \frac{\partial L}{\partial y} = \frac{y - z}{\sqrt{(y - z)^2 + \epsilon^2}} \in (-1, 1)

    Where y = z the gradient is 0 and the loss is eps, not 0, as the paper writes it: with the mean, eps is the least value.

    The paper gives one voxel's loss (equation 2) and the mean over the N samples of a batch (equation 4), and does not say whether
    a sample's voxels are summed. Its equation 6 adds a gradient term that is a sum over voxels, so `batchmean`, the sum over a
    sample's voxels, is how we read it. The default here is the mean over voxels and batch, so that one learning rate holds for any
    patch and batch size; `GradientDifferenceLoss` divides by the same number, so that equation 6 keeps its balance either way.

    Args:
        eps: error below which the loss is a parabola, in units of the image, > 0; 1e-3 in the paper.
        reduction: `mean`, `batchmean` (sum over voxels, mean over the batch), `sum` or `none`.

    Shape:
        `pred`, `target`: `(B, C, *spatial)`, any range; the result is a scalar, or of that shape with `none`, in float32 for inputs
        of half precision.

    Raises:
        ValueError: on eps <= 0, another reduction, unlike shapes.

    Example:
        >>> CharbonnierLoss()(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))
        tensor(1.0000)

    Reference:
        L. Song, Q. Wang, T. Liu, H. Li, J. Fan, J. Yang, B. Hu, Deep robust residual network for brain MRI super-resolution, 2020,
        doi:10.21203/rs.3.rs-117695/v1. Equations 2 to 4.
    """

    def __init__(self, eps: float = 1e-3, reduction: str = "mean") -> None:
        super().__init__()
        _check(eps, reduction)
        self.eps, self.reduction = eps, reduction

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of `pred` against `target`, both `(B, C, *spatial)`."""
        return charbonnier_loss(pred, target, self.eps, self.reduction)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"eps={self.eps:g}, reduction={self.reduction}"
