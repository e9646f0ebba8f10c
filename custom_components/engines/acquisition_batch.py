"""A batch whose truth is how it was acquired: to train an estimator by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable

from .rand_acquire_batch import RandAcquireBatch


def acquisition_target(condition: torch.Tensor) -> torch.Tensor:
    """Widths and noise of a condition `(B, 14)` of `custom_components.networks.acquisition_condition`, `(B, 4)`.

    Widths are in LR voxels, the noise in `NOISE_UNIT`s; what the condition does not tell is NaN.
    """
    widths, known = condition[:, 2:12:4], condition[:, 3:12:4]
    values = torch.cat([widths, condition[:, 12:13]], 1)
    return values.masked_fill(torch.cat([known, condition[:, 13:14]], 1) == 0, math.nan)


class AcquisitionBatch(Randomizable):
    """Acquire a batch, and ask how that was done in place of the truth.

    Args:
        acquire: makes the batch. What it does not tell (`known_prob`, `noise_known_prob`) cannot be learnt: 1 for both.
    """

    def __init__(self, acquire: RandAcquireBatch) -> None:
        self.acquire = acquire

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> AcquisitionBatch:
        """Seed the acquisition; nothing else is random here."""
        self.acquire.set_random_state(seed, state)
        return self

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[()], dict[str, Any]]:
        """LR `(B, 1, *lr)` and targets `(B, 4)` and the factors `(B, 3)`, `scale_factor`; arguments as `RandAcquireBatch`'s."""
        lr, _truth, args, told = self.acquire(batchdata, device, non_blocking)
        condition = told["condition"]
        return lr, acquisition_target(condition), args, {"scale_factor": condition[:, 0:12:4].exp2()}
