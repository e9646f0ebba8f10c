"""The loss of an estimate of how a scan was acquired."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from .elementwise import difference


def acquisition_loss(pred: torch.Tensor, target: torch.Tensor, delta: float = 0.3) -> torch.Tensor:
    """Functional form of `AcquisitionLoss`; shapes and errors as there.

    Example:
        >>> acquisition_loss(torch.tensor([[0.9, 1.0, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, torch.nan, 0.0]]))
        tensor(0.0017)
    """
    if not 0 < delta < math.inf:
        raise ValueError(f"delta must be > 0, got {delta}")
    error = difference(pred, target)
    known = ~target.isnan()
    # before the loss: the gradient of a NaN is NaN even where it is masked behind it
    error = error.masked_fill(~known, 0.0)
    total = functional.huber_loss(error, torch.zeros_like(error), reduction="sum", delta=delta)
    return total / known.sum().clamp_min(1)


class AcquisitionLoss(nn.Module):
    r"""Mean Huber loss of widths and noise, over those that are known.

    .. math:: L = \frac{1}{|K|} \sum_{k \in K} h(\hat a_k - a_k), \quad
        h(e) = \tfrac12 e^2 \text{ where } |e| \le \delta, \text{ else } \delta (|e| - \tfrac12 \delta)

    Squared where an estimate is near, so that it tends to the mean of what a scan may be; linear beyond, for patches that tell
    nothing. Where nothing is known it is 0.

    Args:
        delta: where it turns linear, in LR voxels for widths and units of 0.03 for the noise; 0.3 is above the error of most.

    Shape:
        pred, target `(B, N)`; NaN in the target is not known. The result is a scalar.

    Raises:
        ValueError: on a delta that is not positive, or unlike shapes.

    Reference:
        P. J. Huber, Robust estimation of a location parameter, 1964, doi:10.1214/aoms/1177703732.
    """

    def __init__(self, delta: float = 0.3) -> None:
        super().__init__()
        if not 0 < delta < math.inf:
            raise ValueError(f"delta must be > 0, got {delta}")
        self.delta = delta

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of `pred` against `target`, both `(B, N)`."""
        return acquisition_loss(pred, target, self.delta)

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"delta={self.delta}"
