"""Background stays background: where a scan is exactly empty, its result is too."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from torch.nn.functional import interpolate

from ..tensors import plain


def _widened(mask: torch.Tensor, margin: int) -> torch.Tensor:
    """The voxels within `margin` of the mask along each axis: one pass per axis, as a box is separable."""
    for axis in range(1, mask.ndim):
        wide = mask.clone()
        for step in range(1, min(margin, mask.shape[axis] - 1) + 1):
            rest = mask.shape[axis] - step
            wide.narrow(axis, 0, rest).logical_or_(mask.narrow(axis, step, rest))
            wide.narrow(axis, step, rest).logical_or_(mask.narrow(axis, 0, rest))
        mask = wide
    return mask


def empty_background(lowres: torch.Tensor, shape: Sequence[int], margin: int = 1) -> torch.Tensor:
    """Where a LR scan is exactly empty, on the HR grid of the same field of view.

    A LR voxel is empty when it and all voxels within `margin` of it have the scan's lowest value: the zeros around a
    skull-stripped brain, but not noisy air. A HR voxel takes the answer of the LR voxel in which its centre lies.

    Args:
        lowres: `(1, *spatial)`, any unit.
        shape: spatial HR shape.
        margin: LR voxels, along each axis, that an empty voxel keeps from any other value; 1 is the reach of the blur.

    Returns:
        bool, `(1, *shape)`; it and the LR masks are all the memory that is used.
    """
    lowres = plain(lowres)
    mask = _widened(lowres != lowres.min(), margin).logical_not_()
    fine = interpolate(mask.view(torch.uint8)[None], size=tuple(shape), mode="nearest-exact")
    return fine[0].view(torch.bool)


class KeepBackground(Transform):
    """Give the exactly empty background of a scan its value back, in place; see `empty_background`.

    It works in any unit that the result and the LR scan share: before `RestoreIntensity`.

    Args:
        margin: LR voxels that an empty voxel keeps from any other value.

    Raises:
        ValueError: when the margin is negative.
    """

    def __init__(self, margin: int = 1) -> None:
        if margin < 0:
            raise ValueError(f"margin must be >= 0, got {margin}")
        self.margin = margin

    def __call__(self, img: torch.Tensor, lowres: torch.Tensor) -> torch.Tensor:
        """Change the result `img` `(1, *spatial)` where the scan `lowres` `(1, *spatial_lr)` is empty."""
        mask = empty_background(lowres, img.shape[1:], self.margin)
        plain(img).masked_fill_(mask.to(img.device), float(lowres.min()))
        return img


class KeepBackgroundd(MapTransform):
    """Dictionary version of `KeepBackground`.

    Args:
        keys: results on the HR grid.
        lowres_key: the LR scan, in the same unit.
        margin: LR voxels that an empty voxel keeps from any other value.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        lowres_key: str = "lowres",
        margin: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lowres_key = lowres_key
        self.keep = KeepBackground(margin)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.keep(d[key], d[self.lowres_key])
        return d
