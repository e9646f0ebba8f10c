"""Intensities: to [0, 1] by robust percentiles, and back to the scan's own units."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..errors import ScanError
from ..tensors import plain

MAX_SAMPLES = 2**24  # torch.quantile takes no more; larger scans are read with a stride


def percentile(x: torch.Tensor, q: float) -> float:
    """The `q`-th percentile, `q` in [0, 100], of all voxels (of a regular subset beyond 2^24 voxels)."""
    flat = x.reshape(-1)
    flat = flat[:: -(-flat.numel() // MAX_SAMPLES)]
    return float(torch.quantile(flat.float(), q / 100))


class RobustScale(Transform):
    """Scale a scan so that two percentiles become 0 and 1: `y = (x - lower) / (upper - lower)`.

    Nothing is clipped by default, so that a bright vessel is kept and does not set the scale. The limits are written into the
    meta data (`intensity_lower`, `intensity_upper`, `intensity_min`) for `RestoreIntensity`.

    Args:
        lower: percentile that becomes 0; None takes the value 0 itself, as the protocol of the evaluation tables does.
        upper: percentile that becomes 1.
        clip: clip the result to [0, 1], for the HR images of training and evaluation.

    Raises:
        ValueError: when the percentiles are not in order.
        ScanError: when the scan is constant between them.
    """

    def __init__(self, lower: float | None = 0.1, upper: float = 99.9, clip: bool = False) -> None:
        if not 0 <= (lower or 0) < upper <= 100:
            raise ValueError(f"expected percentiles 0 <= lower < upper <= 100, got {lower} and {upper}")
        self.lower, self.upper, self.clip = lower, upper, clip

    def __call__(self, img: torch.Tensor) -> MetaTensor:
        """Scale `(C, *spatial)`; the result keeps the affine and meta data."""
        x = plain(img)
        low = 0.0 if self.lower is None else percentile(x, self.lower)
        high = percentile(x, self.upper)
        if not high > low:
            low, high = float(x.min()), float(x.max())  # a few bright voxels on an empty background
        if not high > low:
            raise ScanError(f"expected an image with contrast, got the constant {low:g}")
        y = (x.float() - low).div_(high - low)
        meta = dict(img.meta) if isinstance(img, MetaTensor) else {}
        meta.update(intensity_lower=low, intensity_upper=high, intensity_min=float(x.min()))
        return MetaTensor(y.clamp_(0, 1) if self.clip else y, meta=meta)


class RestoreIntensity(Transform):
    """Undo `RobustScale` in place by the limits in the meta data of a reference image.

    A scan without negative values gets none by the network's overshoot.

    Raises:
        ScanError: on call, when the image says that it lies where the reference does, and has another shape.
    """

    def __call__(self, img: torch.Tensor, reference: MetaTensor) -> MetaTensor:
        """Scale `img` `(C, *spatial)` back to the units of the scan; a plain tensor takes the meta data of `reference`."""
        meta = dict(img.meta if isinstance(img, MetaTensor) else reference.meta)
        same_place = isinstance(img, MetaTensor) and torch.equal(img.affine, reference.affine)
        if same_place and img.shape[1:] != reference.shape[1:]:  # a network that upsamples, given the interpolated scan
            raise ScanError(f"expected a result of shape {tuple(reference.shape[1:])}, got {tuple(img.shape[1:])}")
        low, high = float(reference.meta["intensity_lower"]), float(reference.meta["intensity_upper"])
        y = plain(img).mul_(high - low).add_(low)
        if float(reference.meta["intensity_min"]) >= 0:
            y.clamp_(min=0)
        return MetaTensor(y, meta=meta)


class RobustScaled(MapTransform):
    """Dictionary version of `RobustScale`."""

    def __init__(
        self,
        keys: KeysCollection,
        lower: float | None = 0.1,
        upper: float = 99.9,
        clip: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.scale = RobustScale(lower, upper, clip)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.scale(d[key])
        return d


class RestoreIntensityd(MapTransform):
    """Dictionary version of `RestoreIntensity`.

    Args:
        keys: images to bring back; a plain tensor must be on the grid of the reference.
        reference_key: the image that carries the limits.
    """

    def __init__(self, keys: KeysCollection, reference_key: str = "image", allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.restore = RestoreIntensity()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        reference = d[self.reference_key]
        for key in self.key_iterator(d):
            d[key] = self.restore(d[key], reference)
        return d
