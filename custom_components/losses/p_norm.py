"""The p-norm loss: errors to a power between 1 and 2, so that outliers weigh less than under the squared error."""

from __future__ import annotations

import math

import torch
from torch import nn

from .elementwise import REDUCTIONS, difference, magnitude_power, reduced


def _check(reduction: str, matched_at: float | None) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
    if matched_at is not None and not 0 < matched_at < math.inf:
        raise ValueError(f"matched_at must be > 0, got {matched_at}")


def p_norm_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    p: float | torch.Tensor = 1.9,
    reduction: str = "mean",
    matched_at: float | None = None,
) -> torch.Tensor:
    """Functional form of `PNormLoss` with a fixed p > 0; the other arguments and errors as there.

    Example:
        >>> p_norm_loss(torch.tensor([[0.5]]), torch.tensor([[0.1]]), p=1.0)
        tensor(0.4000)
    """
    _check(reduction, matched_at)
    if not 0 < p < math.inf:
        raise ValueError(f"p must be > 0, got {p}")
    loss = magnitude_power(difference(pred, target), p)
    if matched_at is not None:
        loss = loss * (2 / p) * matched_at ** (2 - p)
    return reduced(loss, reduction)


def generalised_gaussian_nll(pred: torch.Tensor, target: torch.Tensor, p: float | torch.Tensor) -> torch.Tensor:
    r"""Mean negative log-likelihood of the errors under the generalised Gaussian of shape p and of the scale that fits best.

    .. math:: \frac1p + \log\frac{2\,\Gamma(1/p)}{p} + \frac1p\log\left(p\,\overline{|e|^p}\right)

    As a function of the network it falls where the p-norm loss falls; as a function of p it has its minimum at the shape of the
    errors (2 for Gaussian ones, 1 for Laplacian ones), while the p-norm loss itself only ever asks for the largest p.
    """
    error = difference(pred, target)
    shape = torch.as_tensor(p, dtype=error.dtype, device=error.device)
    mean = magnitude_power(error, shape).mean().clamp_min(torch.finfo(error.dtype).tiny)
    return (1 + torch.log(shape * mean)) / shape + math.log(2) + torch.lgamma(1 / shape) - torch.log(shape)


class PNormLoss(nn.Module):
    r"""Error to the power p, between the absolute (p = 1) and the squared error (p = 2).

    .. math:: E = \sum_i \sum_j |y_{ij} - z_{ij}|^p, \qquad
        \frac{\partial E}{\partial y_{ij}} = p\,|y_{ij} - z_{ij}|^{p-1} \operatorname{sign}(y_{ij} - z_{ij})

    The paper sums (its equation 2). The default here is the mean over voxels and batch, so that one learning rate holds for any
    patch and batch size; `batchmean`, the sum over a sample's voxels, is what Caffe's loss layers do but for their factor 1/2.
    Where y = z the gradient is 0 for every p, also for p = 1, at which the paper's sign(0) = 1 would push a perfect voxel away.

    The gradient of a typical error e of 0.02 is 1 at p = 1 and 0.04 at p = 2: at a learning rate tuned for p = 2, plain gradient
    descent takes steps 25 times too long at p = 1. `matched_at=s` multiplies the loss by (2 / p) s^(2 - p), after which an error of
    s has the gradient 2 s of the squared error for every p.

    Args:
        p: power, 1.9 by default, the best in the paper.
        reduction: `mean`, `batchmean` (sum over voxels, mean over the batch), `sum` (equation 2) or `none`.
        matched_at: error s > 0, in units of the image, at which all p have one gradient; None as in the paper.
        learnable: make p a parameter in (1, 2) (hand `parameters()` to the optimizer); the loss is then `generalised_gaussian_nll`,
            and `reduction` and `matched_at` have no part in it.
        allow_any: let p be any positive number; below 1 it is no norm and its gradient has no bound at 0.

    Shape:
        `pred`, `target`: `(B, C, *spatial)`, any range; the result is a scalar, or of that shape with `none`, in float32 for inputs
        of half precision.

    Raises:
        ValueError: on p outside [1, 2], another reduction, `matched_at` <= 0, unlike shapes.

    Example:
        >>> PNormLoss(p=1.5)(torch.full((1, 1, 4, 4), 0.25), torch.zeros(1, 1, 4, 4))
        tensor(0.1250)

    Reference:
        K. Thurnhofer-Hemsi, E. Lopez-Rubio, N. Roe-Vellve, M. A. Molina-Cabello, Deep learning networks with p-norm loss layers
        for spatial resolution enhancement of 3D medical images, IWINAC 2019, doi:10.1007/978-3-030-19651-6_28. Equations 2 to 4.
    """

    def __init__(
        self,
        p: float = 1.9,
        reduction: str = "mean",
        matched_at: float | None = None,
        learnable: bool = False,
        allow_any: bool = False,
    ) -> None:
        super().__init__()
        _check(reduction, matched_at)
        if learnable and not 1 < p < 2:
            raise ValueError(f"a learnable p must start between 1 and 2, got {p}")
        self.reduction, self.matched_at, self.allow_any = reduction, matched_at, allow_any
        self.logit: nn.Parameter | None = None
        self.set_p(p)
        if learnable:
            self.logit = nn.Parameter(torch.tensor(math.log((p - 1) / (2 - p))))

    @property
    def p(self) -> float:
        """The power in use."""
        return self._p if self.logit is None else 1 + float(torch.sigmoid(self.logit.detach()))

    def set_p(self, p: float) -> None:
        """Change p, as `monai.handlers.ParamSchedulerHandler` does to anneal it.

        Raises:
            ValueError: on p out of range, or when p is learnt.
        """
        if self.logit is not None:
            raise ValueError("p is learnt and cannot be set")
        if not (0 < p < math.inf if self.allow_any else 1 <= p <= 2):
            raise ValueError(f"p must be {'> 0' if self.allow_any else 'from 1 to 2'}, got {p}")
        self._p = float(p)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of `pred` against `target`, both `(B, C, *spatial)`."""
        if self.logit is not None:
            return generalised_gaussian_nll(pred, target, 1 + torch.sigmoid(self.logit))
        return p_norm_loss(pred, target, self._p, self.reduction, self.matched_at)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"p={self.p:g}, reduction={self.reduction}, matched_at={self.matched_at}"
