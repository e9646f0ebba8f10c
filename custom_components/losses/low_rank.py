"""The low-rank prior: a smooth count of the singular values of a slice that are not zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

REDUCTIONS = ("mean", "sum", "none")


class _SmoothRank(torch.autograd.Function):
    """Smooth rank of each matrix `(..., M, N)`, with the gradient of equation 4.

    U diag(f(s)) Z' does not depend on which U and Z an SVD chooses where singular values are equal or zero, while differentiating
    through the SVD divides by the differences of the singular values.
    """

    @staticmethod
    def forward(ctx: Any, matrices: torch.Tensor, delta: float) -> torch.Tensor:
        finite = matrices.isfinite().all(-1).all(-1)
        matrices = torch.where(finite[..., None, None], matrices, 0.0)  # the SVD of a NaN is an error
        if ctx.needs_input_grad[0]:
            u, s, zh = torch.linalg.svd(matrices, full_matrices=False)
            slope = s / delta**2 * torch.exp(-0.5 * (s / delta) ** 2)
            with torch.autocast(matrices.device.type, enabled=False):
                gradient = (u * slope[..., None, :]) @ zh
            ctx.save_for_backward(torch.where(finite[..., None, None], gradient, math.nan))
        else:
            s = torch.linalg.svdvals(matrices)
        return torch.where(finite, -torch.expm1(-0.5 * (s / delta) ** 2).sum(-1), math.nan)

    @staticmethod
    def backward(ctx: Any, above: torch.Tensor) -> tuple[torch.Tensor, None]:
        if (
            torch.is_grad_enabled()
        ):  # once_differentiable would leave the prior out without a word: `above` needs no gradient
            raise RuntimeError("the low-rank prior has no second derivative, got create_graph=True")
        (gradient,) = ctx.saved_tensors
        return above[..., None, None] * gradient, None


def _check(delta: float, slice_axis: int, reduction: str) -> None:
    if not 0 < delta < math.inf:
        raise ValueError(f"delta must be > 0, got {delta}")
    if slice_axis not in (-3, -2, -1, 0, 1, 2):
        raise ValueError(f"slice_axis must be from -3 to 2, got {slice_axis}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def low_rank_loss(
    pred: torch.Tensor, delta: float = 0.01, slice_axis: int = -1, reduction: str = "mean"
) -> torch.Tensor:
    """Functional form of `LowRankLoss`; arguments and errors as there.

    Example:
        >>> low_rank_loss(torch.ones(1, 1, 5, 7))
        tensor(1.)
    """
    _check(delta, slice_axis, reduction)
    if pred.ndim not in (4, 5):
        raise ValueError(f"expected images (B, C, X, Y) or (B, C, X, Y, Z), got the shape {tuple(pred.shape)}")
    slices = pred.movedim(2 + slice_axis % 3, 2) if pred.ndim == 5 else pred
    slices = slices.to(torch.promote_types(pred.dtype, torch.float32))
    loss: torch.Tensor = _SmoothRank.apply(slices, delta)  # type: ignore[no-untyped-call]
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


class LowRankLoss(nn.Module):
    r"""Smooth rank of each slice and channel, a prior on the network's output.

    .. math:: R_\delta(Y) = R - \sum_{i=1}^{R} e^{-\sigma_i^2 / 2 \delta^2}, \qquad
        \frac{\partial R_\delta}{\partial Y} =
        U \operatorname{diag}\left(\frac{\sigma_i}{\delta^2} e^{-\sigma_i^2 / 2 \delta^2}\right) Z'

    with the singular value decomposition :math:`Y = U \operatorname{diag}(\sigma_1, \dots, \sigma_R) Z'` and R the shorter side of
    the slice. It is the rank when each singular value is 0 or well above delta.

    The gradient is 0 for singular values of 0, also for a slice of zeros; it is largest, 0.61 / delta, at sigma = delta and below
    a thousandth of that beyond 5 delta. So delta says which singular values are taken for zero: the prior moves those only. It is
    made in the forward pass, in closed form; there is no second derivative: a backward pass with `create_graph=True` is a
    RuntimeError. A slice that is not finite gives NaN.

    The paper adds alpha = 1e-5 times the rank to half of the *summed* squared error of a patch of n voxels. Beside
    `torch.nn.MSELoss`, which is that over n / 2, its alpha is to be multiplied by 2 / n: 1.25e-8 for 40 x 40.

    A batch of 64 slices of 40 x 40 takes about 8 ms with its gradient on one CPU core, a tenth of a training step of a 2D SRCNN.

    Args:
        delta: singular value, in units of the image, below which one counts as zero; > 0, 0.01 in the paper (images in [0, 1]).
        slice_axis: spatial axis of a volume, 0 to 2 or -3 to -1, across which it is cut into slices; no part in 2D.
        reduction: `mean` or `sum` over batch, channels and slices, or `none`. The paper's loss is of one slice.

    Shape:
        `(B, C, X, Y)` or `(B, C, X, Y, Z)`, range [0, 1] with the default delta; the result is a scalar, or `(B, C)` or
        `(B, C, slices)` with `none`, from 0 to R, in float32 for input of half precision.

    Raises:
        ValueError: on delta <= 0, another axis or reduction, an input that is neither 2D nor 3D.

    Example:
        >>> LowRankLoss()(torch.eye(4)[None, None])
        tensor(4.)

    Reference:
        V. Cherukuri, T. Guo, S. J. Schiff, V. Monga, Deep MR brain image super-resolution using spatio-structural priors, 2020,
        doi:10.1109/TIP.2019.2942510. Equations 2 to 4.
    """

    def __init__(self, delta: float = 0.01, slice_axis: int = -1, reduction: str = "mean") -> None:
        super().__init__()
        _check(delta, slice_axis, reduction)
        self.delta, self.slice_axis, self.reduction = delta, slice_axis, reduction

    def forward(self, pred: torch.Tensor) -> torch.Tensor:
        """Smooth rank of `pred`, `(B, C, X, Y)` or `(B, C, X, Y, Z)`."""
        return low_rank_loss(pred, self.delta, self.slice_axis, self.reduction)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"delta={self.delta:g}, slice_axis={self.slice_axis}, reduction={self.reduction}"
