"""Slices that carry information: those at the ends of a scan, which show air alone, teach a network nothing."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..acquisition import slice_axis
from ..errors import ScanError
from ..tensors import plain


def _check(level: float, share: float, min_variance: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    if not min_variance >= 0:
        raise ValueError(f"min_variance must be >= 0, got {min_variance}")
    if not abs(level) < float("inf"):
        raise ValueError(f"level must be finite, got {level}")


def informative_slices(
    volume: torch.Tensor, axis: int, level: float = 0.1, share: float = 0.1, min_variance: float = 1e-3
) -> torch.Tensor:
    """Which slices of a volume carry information: enough of the slice is foreground, and it is not uniform.

    A slice counts when at least `share` of its voxels are above `level`, and the variance of its voxels is at least `min_variance`.

    Args:
        volume: `(X, Y, Z)`, in [0, 1] for the defaults.
        axis: array axis across the slices, 0 to 2.
        level: intensity above which a voxel is foreground.
        share: least part of a slice that is foreground, in [0, 1]; a tenth by default, as of a head that only just begins.
        min_variance: least variance over the slice; the default is a standard deviation of 3 % of the range.

    Returns:
        Booleans, one per slice.

    Raises:
        ValueError: on a value out of range or another number of axes.

    Example:
        >>> informative_slices(torch.rand(8, 8, 4) * torch.tensor([0.0, 1.0, 1.0, 0.0]), axis=2)
        tensor([False,  True,  True, False])
    """
    _check(level, share, min_variance)
    if volume.ndim != 3:
        raise ValueError(f"expected a volume (X, Y, Z), got the shape {tuple(volume.shape)}")
    if axis not in (0, 1, 2):
        raise ValueError(f"axis must be 0, 1 or 2, got {axis}")
    slices = volume.movedim(axis, 0).flatten(1)
    foreground = (slices > level).double().mean(1)
    return (foreground >= share) & (slices.double().var(1, correction=0) >= min_variance)


class KeepInformativeSlices(Transform):
    """Crop a scan along its slice axis from the first to the last slice that carries information.

    Slices between them stay, also those that carry none: a scan has no holes. The affine of the result is that of its first slice:
    each voxel stays where it is in mm.

    Args:
        level: see `informative_slices`.
        share: see `informative_slices`.
        min_variance: see `informative_slices`.
        axis: array axis across the slices, 0 to 2; None: found from the scan (see `custom_components.acquisition.slice_axis`).

    Raises:
        ValueError: on a value out of range; on call, on a shape other than `(C, X, Y, Z)`.
        ScanError: on call, when no slice carries information.
    """

    def __init__(
        self, level: float = 0.1, share: float = 0.1, min_variance: float = 1e-3, axis: int | None = None
    ) -> None:
        _check(level, share, min_variance)
        if axis not in (None, 0, 1, 2):
            raise ValueError(f"axis must be 0, 1, 2 or None, got {axis}")
        self.level, self.share, self.min_variance, self.axis = level, share, min_variance, axis

    def bounds(self, img: torch.Tensor) -> tuple[int, int, int]:
        """Axis, first and end slice of a scan `(C, X, Y, Z)`, by its first channel."""
        if img.ndim != 4:
            raise ValueError(f"expected a scan (C, X, Y, Z), got the shape {tuple(img.shape)}")
        affine = img.affine if isinstance(img, MetaTensor) else torch.eye(4)
        axis = slice_axis(img.shape[1:], affine) if self.axis is None else self.axis
        volume = plain(img)[0]
        kept = informative_slices(volume, axis, self.level, self.share, self.min_variance).nonzero()
        if not len(kept):
            name = f"{img.meta.get('filename_or_obj', 'scan')}: " if isinstance(img, MetaTensor) else ""
            raise ScanError(
                f"{name}expected a slice with {self.share:.0%} of its voxels above {self.level:g} and a variance of "
                f"{self.min_variance:g}, got none in {volume.shape[axis]} slices"
            )
        return axis, int(kept[0]), int(kept[-1]) + 1

    @staticmethod
    def crop(img: torch.Tensor, axis: int, start: int, end: int) -> torch.Tensor:
        """Slices `start` to `end` of a scan `(C, X, Y, Z)` along an array axis, with the affine that belongs to them."""
        if not isinstance(img, MetaTensor):
            return img.narrow(axis + 1, start, end - start).clone()
        affine = img.affine.clone()
        affine[:3, 3] += start * affine[:3, axis]
        result = MetaTensor(img.as_tensor().narrow(axis + 1, start, end - start).clone(), meta=dict(img.meta))
        result.affine = affine
        return result

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """Scan `(C, X, Y, Z)` to one of fewer slices."""
        return self.crop(img, *self.bounds(img))


class KeepInformativeSlicesd(MapTransform):
    """Dictionary version of `KeepInformativeSlices`; all keys, scans on one grid, are cropped as the first is."""

    def __init__(
        self,
        keys: KeysCollection,
        level: float = 0.1,
        share: float = 0.1,
        min_variance: float = 1e-3,
        axis: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.keep = KeepInformativeSlices(level, share, min_variance, axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        keys = list(self.key_iterator(d))
        shapes = [tuple(d[key].shape[1:]) for key in keys]
        if len(set(shapes)) > 1:
            raise ValueError(f"expected scans on one grid, got the shapes {shapes}")
        bounds = self.keep.bounds(d[keys[0]]) if keys else None
        for key in keys:
            if bounds is not None:
                d[key] = self.keep.crop(d[key], *bounds)
        return d
