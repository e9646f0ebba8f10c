"""The expected error of a result, beside the result: taken out of the network's channels, and into the scan's units."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..errors import ScanError
from ..tensors import plain
from .background import empty_background


def split_uncertainty(img: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Result and expected standard deviation of its error, which share the memory of the channels they come from.

    Args:
        img: `(2, *spatial)`: both; `(1, *spatial)`: the result alone.

    Returns:
        `(1, *spatial)` each, with the meta data of `img`; None in the place of what is not there.

    Raises:
        ValueError: on another number of channels.
    """
    if img.shape[0] not in (1, 2):
        raise ValueError(f"expected 1 or 2 channels, the result and its uncertainty, got {img.shape[0]}")
    parts = plain(img).split(1)
    if isinstance(img, MetaTensor):
        parts = tuple(MetaTensor(part, meta=dict(img.meta)) for part in parts)
    return parts[0], parts[1] if len(parts) == 2 else None


class SplitUncertaintyd(MapTransform):
    """Take the second channel of a result, where there is one, to a key of its own: first in a postprocessing.

    Args:
        keys: results, `(1, *spatial)` or `(2, *spatial)`, of which the first channel stays.
        uncertainty_key: where the second channel of the first of them goes; those of the others get their key behind it.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self, keys: KeysCollection = "pred", uncertainty_key: str = "uncertainty", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.uncertainty_key = uncertainty_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], spread = split_uncertainty(d[key])
            if spread is not None:
                name = self.uncertainty_key if key == self.keys[0] else f"{self.uncertainty_key}_{key}"
                d[name] = spread
        return d


class RestoreUncertainty(Transform):
    """Bring a standard deviation from the [0, 1] scale of `RobustScale` to the scan's units, in place: `s (upper - lower)`.

    Unlike the intensities of `RestoreIntensity` a spread has no offset.

    Raises:
        ScanError: on call, when the map and the reference have another shape.
    """

    def __call__(self, img: torch.Tensor, reference: MetaTensor) -> MetaTensor:
        """Scale `(1, *spatial)` by the limits of `reference`, of which a plain tensor takes the meta data: the grid too."""
        if img.shape[1:] != reference.shape[1:]:
            raise ScanError(f"expected a map of shape {tuple(reference.shape[1:])}, got {tuple(img.shape[1:])}")
        meta = dict(img.meta if isinstance(img, MetaTensor) else reference.meta)
        low, high = float(reference.meta["intensity_lower"]), float(reference.meta["intensity_upper"])
        return MetaTensor(plain(img).mul_(high - low), meta=meta)


class RestoreUncertaintyd(MapTransform):
    """Dictionary version of `RestoreUncertainty`; it is 0 where `KeepBackgroundd` gives a result the scan's empty background.

    Args:
        keys: maps of standard deviations, on the grid of the reference.
        reference_key: the image that carries the limits, before or after `RestoreIntensityd`.
        lowres_key: the LR scan, in any unit; an item may lack it.
        margin: of the empty background, as for `KeepBackgroundd`.
        allow_missing_keys: whether an item may lack a key, as it does where no uncertainty was asked for.
    """

    def __init__(
        self,
        keys: KeysCollection = "uncertainty",
        reference_key: str = "image",
        lowres_key: str = "lowres",
        margin: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key, self.lowres_key, self.margin = reference_key, lowres_key, margin
        self.restore = RestoreUncertainty()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.restore(d[key], d[self.reference_key])
            if self.lowres_key in d:
                mask = empty_background(d[self.lowres_key], d[key].shape[1:], self.margin)
                plain(d[key]).masked_fill_(mask.to(d[key].device), 0.0)
        return d
