"""A batch made of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Randomizable

from .rand_acquire_batch import Prepared, RandAcquireBatch


class ChangedBatch(Randomizable):
    """Acquire a batch, and change it: a base for what trains by other truths than HR patches.

    Args:
        acquire: makes the batch.
    """

    def __init__(self, acquire: RandAcquireBatch) -> None:
        self.acquire = acquire

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> ChangedBatch:
        """Seed the acquisition; nothing else is random here."""
        self.acquire.set_random_state(seed, state)
        return self

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **_: Any,
    ) -> Prepared:
        """What `acquire` makes of the arguments, changed."""
        return self.changed(*self.acquire(batchdata, device, non_blocking))

    def changed(self, lr: torch.Tensor, target: torch.Tensor, args: tuple[()], kwargs: dict[str, Any]) -> Prepared:
        """The batch that training sees, by what `RandAcquireBatch` gives; for each subclass to say."""
        raise NotImplementedError
