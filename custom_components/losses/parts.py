"""Losses of a network that gives a result, the noise in it and its expected error in three channels."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from ..networks.any_scale import LEAST_STD
from .elementwise import difference

HIGHEST_STD = 2.7  # of expected errors, on the [0, 1] scale


def _check(pred: torch.Tensor, target: torch.Tensor) -> None:
    if min(pred.ndim, target.ndim) < 2 or (len(pred), *pred.shape[2:]) != (len(target), *target.shape[2:]):
        raise ValueError(
            f"expected a prediction and a target of one size, got {tuple(pred.shape)} and {tuple(target.shape)}"
        )
    if pred.shape[1] != 3 or target.shape[1] != 2:
        raise ValueError(
            f"expected a prediction of 3 channels and a target of 2, got {pred.shape[1]} and {target.shape[1]}"
        )


def finest_detail(x: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of each image from its mean over 3 voxels per axis, `(B, *spatial)` to `(B,)`."""
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[x.ndim - 2]
    smooth = pool(x[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
    return (x - smooth).square().flatten(1).mean(1)


def detail_loss(pred: torch.Tensor, target: torch.Tensor, floor: float | None = None) -> torch.Tensor:
    """Functional form of `DetailLoss`; shapes and errors as there.

    Example:
        >>> detail_loss(torch.full((1, 3, 4), 0.75), torch.full((1, 2, 4), 0.25))
        tensor(0.0625)
    """
    _check(pred, target)
    squared = difference(pred[:, 0], target.sum(1)).square()
    if floor is None:
        return squared.mean()
    return (squared.flatten(1).mean(1) / (finest_detail(target[:, 0].to(squared)) + floor)).mean()


def noise_loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Functional form of `NoiseLoss`; shapes and errors as in `DetailLoss`."""
    _check(pred, target)
    return difference(pred[:, 1], target[:, 1]).square().mean()


def error_likelihood_loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Functional form of `ErrorLikelihoodLoss`; shapes and errors as in `DetailLoss`."""
    _check(pred, target)
    squared = difference(pred[:, 0], target[:, 0]).detach().square()
    std = pred[:, 2].to(squared).clamp(LEAST_STD, HIGHEST_STD)
    return (squared / std.square() + 2 * std.log()).mean()


class DetailLoss(nn.Module):
    r"""Mean squared error of the result against the truth with the noise that the spline has: :math:`E(\hat x_0 - x - U n)^2`.

    The spline in the result has the noise of the scan; with the same in the target, what the network has to add is the detail
    alone. What of the noise can be told is learnt by `NoiseLoss`.

    With a `floor` the error of each sample is divided by its energy of detail: scans are judged in dB, each alike, where plain
    squared errors would listen to the noisiest of them.

    .. math:: \frac{E(\hat x_0 - x - U n)^2}{E(x - \bar x)^2 + \text{floor}}, \quad \bar x \text{: mean over 3 voxels per axis}

    Args:
        floor: energy, in units of the [0, 1] scale squared, that keeps samples without detail from counting much; None: plain mean
            squared error.

    Shape:
        pred `(B, 3, *spatial)`: result, noise, expected standard deviation of the error; target `(B, 2, *spatial)`: truth, noise,
        all on the [0, 1] scale; the result is a scalar.

    Raises:
        ValueError: on a floor that is not positive; on call, on other channels or unlike sizes.
    """

    def __init__(self, floor: float | None = None) -> None:
        super().__init__()
        if floor is not None and not 0 < floor < math.inf:
            raise ValueError(f"floor must be > 0 or None, got {floor}")
        self.floor = floor

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of `pred` `(B, 3, *spatial)` against `target` `(B, 2, *spatial)`."""
        return detail_loss(pred, target, self.floor)


class NoiseLoss(nn.Module):
    r"""Mean squared error of the noise, on the HR grid: :math:`E(\hat n - U n)^2`. Shapes and errors as `DetailLoss`."""

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of `pred` `(B, 3, *spatial)` against `target` `(B, 2, *spatial)`."""
        return noise_loss(pred, target)


class ErrorLikelihoodLoss(nn.Module):
    r"""Negative logarithm of a normal likelihood: :math:`E(e^2 / \hat\sigma^2 + 2 \log \hat\sigma)`, :math:`e = \hat x_0 - x`.

    Its minimum is at :math:`\hat\sigma^2 = E[e^2]`. The paper trains the result by it too; here no gradient goes to the result,
    which is not made worse where that is hard. :math:`\hat\sigma` is kept within [3e-4, 2.7], of gradient 0 beyond. It is twice the
    logarithm, without its constant.

    Shapes and errors as `DetailLoss`.

    Reference:
        A. Kendall, Y. Gal, What uncertainties do we need in Bayesian deep learning for computer vision?, 2017, arXiv:1703.04977.
    """

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of `pred` `(B, 3, *spatial)` against `target` `(B, 2, *spatial)`."""
        return error_likelihood_loss(pred, target)
