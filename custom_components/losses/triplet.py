"""The triplet loss: nearer to the truth than to the image of the step before."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import nn

from ..acquisition import SeparableOperator, acquisition_operator, interpolation_operator
from .elementwise import difference
from .perceptual import FeatureLoss


def _check(margin: float | None) -> None:
    if margin is not None and not 0 <= margin < math.inf:
        raise ValueError(f"margin must be >= 0 or None, got {margin}")


def triplet_loss(
    anchor: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor, margin: float | None = None
) -> torch.Tensor:
    r"""Mean over the batch of how much nearer the anchor is to the negative than to the positive.

    .. math:: L = \frac1B \sum_b \left( d(a_b, p_b) - d(a_b, n_b) \right), \qquad d(u, v) = \frac1n \|u - v\|_2^2

    or, with a margin m, :math:`\frac1B \sum_b \max(0, d(a_b, p_b) - d(a_b, n_b) + m)`, whose gradient at 0 is 0.

    The thesis sums squared norms; here d is their mean over the n values of a sample, so that one weight holds for any size.

    Args:
        anchor: features of the results.
        positive: of the targets.
        negative: of what the results should leave behind.
        margin: None is the thesis' equation; a number >= 0 ends the pull where the anchor is that much nearer to the positive.

    Shape:
        `(B, ...)`, all the same; the result is a scalar, in float32 for inputs of half precision.

    Raises:
        ValueError: on a negative margin, unlike shapes.

    Example:
        >>> triplet_loss(torch.tensor([[1.0]]), torch.tensor([[3.0]]), torch.tensor([[0.0]]))
        tensor(3.)
    """
    _check(margin)
    to_positive, to_negative = (difference(anchor, other).square().flatten(1).mean(1) for other in (positive, negative))
    excess = to_positive - to_negative
    return (excess if margin is None else (excess + margin).relu()).mean()


@lru_cache(maxsize=8)  # one for each patch size, else it would be made anew in each step
def _there_and_back(shape: tuple[int, ...], scale_factor: int) -> SeparableOperator:
    low = [max(1, round(n / scale_factor)) for n in shape]
    return interpolation_operator(low, shape, "cubic") @ acquisition_operator(shape, low, "bicubic")


def coarser(image: torch.Tensor, scale_factor: int) -> torch.Tensor:
    """An image `(B, C, *spatial)` acquired at 1 / scale_factor of its resolution (`bicubic`), interpolated back (cubic)."""
    return _there_and_back(tuple(image.shape[2:]), scale_factor)(image)


class TripletLoss(nn.Module):
    r"""`triplet_loss` of features phi: the result y as anchor, the target z as positive, z at a lower resolution as negative.

    .. math:: L(y, z) = d(\phi(y), \phi(z)) - d(\phi(y), \phi(U D z))

    with D the acquisition of an image of 1 / `scale_factor` of the resolution and U cubic interpolation: with the factor of the
    network U D z is the interpolated LR image. The thesis takes the result of the step before as negative (its I1, of half the
    resolution). With factor 2 that is what a faultless step before would have given: it needs neither that step nor its faults.
    `forward` takes a negative too.

    Without a margin the loss has no lower bound: its gradient in the features is
    :math:`2 (\phi(U D z) - \phi(z)) / n` wherever y is, and alone it drives y past z for ever. Beside a `FeatureLoss` of distance
    `l1` on the same features y = z stays the least as long as no difference of phi(U D z) and phi(z), times twice the weight of
    this term, is larger than the weight of that one.

    Args:
        perceptual: the loss whose `features` are compared, `FeatureLoss` or `VGGPerceptualLoss`.
        scale_factor: how much coarser the negative is, an integer >= 2.
        margin: None as in the thesis, or a number >= 0: see `triplet_loss`.

    Shape:
        `pred`, `target`: `(B, C, *spatial)` as `perceptual` takes them; the result is a scalar.

    Raises:
        ValueError: on a factor below 2, a negative margin; on call, on unlike shapes.

    Reference:
        D. Mahapatra, B. Bozorgtabar, Progressive generative adversarial networks for medical image super resolution, 2019,
        arXiv:1902.02144; as quoted in a bachelor's thesis at Universitat Pompeu Fabra on super-resolution of fetal MRI by ESRGAN,
        equation 2 and section 4.
    """

    def __init__(self, perceptual: FeatureLoss, scale_factor: int = 2, margin: float | None = None) -> None:
        super().__init__()
        _check(margin)
        if int(scale_factor) != scale_factor or scale_factor < 2:
            raise ValueError(f"scale_factor must be an integer >= 2, got {scale_factor}")
        self.perceptual, self.scale_factor, self.margin = perceptual, int(scale_factor), margin

    def forward(self, pred: torch.Tensor, target: torch.Tensor, negative: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of `pred` against `target`, both `(B, C, *spatial)`, away from `negative`, by default a coarser target."""
        if pred.shape != target.shape:
            raise ValueError(f"expected a target of shape {tuple(pred.shape)}, got {tuple(target.shape)}")
        with torch.no_grad():
            away = coarser(target.float(), self.scale_factor) if negative is None else negative
            positive, other = (self.perceptual.features(image) for image in (target, away))
        return triplet_loss(self.perceptual.features(pred), positive, other, self.margin)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"scale_factor={self.scale_factor}, margin={self.margin}"
