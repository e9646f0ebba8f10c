"""A batch whose truth is how it was acquired: to train an estimator by."""

from __future__ import annotations

import math
from typing import Any

import torch

from .changed_batch import ChangedBatch
from .rand_acquire_batch import Prepared


def acquisition_target(condition: torch.Tensor) -> torch.Tensor:
    """Widths and noise of a condition `(B, 14)` of `custom_components.networks.acquisition_condition`, `(B, 4)`.

    Widths are in LR voxels, the noise in `NOISE_UNIT`s; what the condition does not tell is NaN.
    """
    widths, known = condition[:, 2:12:4], condition[:, 3:12:4]
    values = torch.cat([widths, condition[:, 12:13]], 1)
    return values.masked_fill(torch.cat([known, condition[:, 13:14]], 1) == 0, math.nan)


class AcquisitionBatch(ChangedBatch):
    """Acquire a batch, and ask how that was done in place of the truth.

    Args:
        acquire: makes the batch. What it does not tell (`known_prob`, `noise_known_prob`) cannot be learnt: 1 for both.
    """

    def changed(self, lr: torch.Tensor, target: torch.Tensor, args: tuple[()], kwargs: dict[str, Any]) -> Prepared:
        """LR `(B, 1, *lr)`, targets `(B, 4)` and the factors `(B, 3)`, `scale_factor`."""
        condition = kwargs["condition"]
        return lr, acquisition_target(condition), args, {"scale_factor": condition[:, 0:12:4].exp2()}
