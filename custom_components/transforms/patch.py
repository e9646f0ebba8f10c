"""Random HR patches, at the scan's own resolution or a coarser one."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from torch.nn.functional import pad

from ..acquisition import PROTOCOLS, SeparableOperator


class RandHRPatch(Randomizable, Transform):
    """Cut a random patch of a HR scan; sometimes as if the scan had been acquired with larger voxels.

    A network that saw one voxel size fails on another (heads look larger or smaller to it): `coarsen` draws a voxel size from the
    scan's own to a multiple of it, with the slice profile that belongs to it.

    Args:
        size: voxels of the patch, one number or one per axis; a smaller scan is continued by its edge voxels.
        coarsen: largest voxel size in units of the scan's own; 1 leaves scans as they are.
        prob: probability of a coarser patch.

    Raises:
        ValueError: when coarsen is below 1.
    """

    def __init__(self, size: int | Sequence[int], coarsen: float = 1.0, prob: float = 0.5) -> None:
        if coarsen < 1:
            raise ValueError(f"coarsen must be >= 1, got {coarsen}")
        self.size, self.coarsen, self.prob = size, coarsen, prob

    def randomize(self, data: Any = None) -> None:
        """Draw voxel size and place in a scan of spatial shape `data`."""
        size = (self.size,) * len(data) if isinstance(self.size, int) else tuple(self.size)
        coarser = self.coarsen > 1 and self.R.random_sample() < self.prob
        self.factor = float(self.R.uniform(1, self.coarsen)) if coarser else 1.0
        self.extent = [math.ceil(n * self.factor) for n in size]
        self.start = [self.R.randint(max(n - e, 0) + 1) for n, e in zip(data, self.extent, strict=True)]
        self.patch = size

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """Scan `(C, *spatial)` to a patch `(C, *size)`, a plain tensor."""
        self.randomize(img.shape[1:])
        x = img.as_tensor() if isinstance(img, MetaTensor) else img
        box = (slice(None), *(slice(s, s + e) for s, e in zip(self.start, self.extent, strict=True)))
        x = x[box]
        missing = [e - n for n, e in zip(x.shape[1:], self.extent, strict=True)]
        if any(missing):
            widths = [w for m in reversed(missing) for w in (m // 2, m - m // 2)]
            x = pad(x[None], widths, mode="replicate")[0]
        if self.factor == 1:
            return x.clone()
        profile = PROTOCOLS["slice_profile"]
        steps = [(torch.arange(n, dtype=torch.float64) + 0.5) * self.factor - 0.5 for n in self.patch]
        matrices = [profile.matrix(e, step, self.factor) for e, step in zip(self.extent, steps, strict=True)]
        return SeparableOperator(matrices)(x[None])[0]


class RandHRPatchd(Randomizable, MapTransform):
    """Dictionary version of `RandHRPatch`."""

    def __init__(
        self,
        keys: KeysCollection,
        size: int | Sequence[int],
        coarsen: float = 1.0,
        prob: float = 0.5,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.cut = RandHRPatch(size, coarsen, prob)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandHRPatchd:
        """Forward the random state to the array transform."""
        self.cut.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.cut(d[key])
        return d
