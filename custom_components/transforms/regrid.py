"""From the LR grid to the HR grid over the same field of view, before a network that works on the HR grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..acquisition import interpolation_operator, rescaled_affine, slice_axis, target_shape
from ..errors import ScanError


class ToTargetGrid(Transform):
    """Interpolate a scan to a finer grid of the same physical extent and put its affine right.

    The result's meta data get `slice_axis`, the array axis across the slices, for networks that work on slices. An axis of one
    voxel, across a single slice, is kept as it is.

    Args:
        target_spacing: voxel size in mm, one number or one per array axis; 0 keeps an axis.
        scale_factor: upsampling factor instead, one number or one per array axis; both None: the default.
        kind: `nearest`, `linear`, `cubic` or `bspline` (see `custom_components.acquisition.interpolation_matrix`).
        slice_axis: array axis across the slices, 0 to 2; None: that of the scan's meta data, else found from its grid (see
            `custom_components.acquisition.slice_axis`).
        in_plane_only: keep the axis across the slices as it is, whatever the target.

    Raises:
        ValueError: when both are given, or what is no number, or a slice axis that is none.
        ScanError: when they do not fit a scan (a target coarser than the scan, a wrong number of axes).
    """

    def __init__(
        self,
        target_spacing: Sequence[float] | float | None = None,
        scale_factor: Sequence[float] | float | None = None,
        kind: str = "bspline",
        slice_axis: int | None = None,
        in_plane_only: bool = False,
        default_factor: float = 2.0,
    ) -> None:
        if slice_axis not in (None, 0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1, 2 or None, got {slice_axis!r}")
        if target_spacing is not None and scale_factor is not None:
            raise ValueError("expected target_spacing or scale_factor, got both")
        for name, value in (("target_spacing", target_spacing), ("scale_factor", scale_factor)):
            given = value if isinstance(value, Sequence) else [value]
            if value is not None and not all(isinstance(v, Real) for v in given):  # a command line gives text too
                raise ValueError(f"{name} must be one number or one per axis, such as [1,1,2.5], got {value!r}")
        self.target_spacing = target_spacing
        if not 1 <= default_factor < float("inf"):
            raise ValueError(f"default_factor must be >= 1, got {default_factor!r}")
        self.scale_factor = default_factor if target_spacing is None and scale_factor is None else scale_factor
        self.kind, self.slice_axis, self.in_plane_only = kind, slice_axis, in_plane_only

    def __call__(self, img: MetaTensor, shape: Sequence[int] | None = None) -> MetaTensor:
        """Interpolate `(C, *spatial)`; `shape` asks for this HR shape in place of the transform's own target."""
        size = tuple(img.shape[1:])
        meta = dict(img.meta)
        if len(size) == 3:
            given = meta.get("slice_axis") if self.slice_axis is None else self.slice_axis
            meta["slice_axis"] = slice_axis(size, img.affine) if given is None else given
        if shape is None:
            across = meta.get("slice_axis") if self.in_plane_only else None
            kept = [n == 1 or axis == across for axis, n in enumerate(size)]
            spacing = [float(v) for v in img.pixdim]
            try:
                shape = target_shape(
                    size, spacing, _except(kept, self.target_spacing, 0.0), _except(kept, self.scale_factor, 1.0)
                )
            except ValueError as error:
                raise ScanError(str(error)) from error
        operator = interpolation_operator(size, shape, self.kind)
        meta["affine"] = rescaled_affine(img.affine, size, shape)
        return MetaTensor(operator(img.as_tensor()[None])[0], meta=meta)


def _except(
    kept: Sequence[bool], target: Sequence[float] | float | None, keep: float
) -> Sequence[float] | float | None:
    """A target with the value that keeps an axis on those that are kept; as it is where it does not fit the axes."""
    if target is None:
        return None
    values = target if isinstance(target, Sequence) else [target] * len(kept)
    if len(values) != len(kept):
        return target
    return [keep if stays else value for stays, value in zip(kept, values, strict=True)]


class ToTargetGridd(MapTransform):
    """Dictionary version of `ToTargetGrid`; the LR scan stays in the item under `lowres_key`.

    Args:
        keys: scans to interpolate.
        like_key: when the item holds this image, its grid is the target: the HR truth of an evaluation.
        lowres_key: where the scan of the first key is kept as it was, with the `slice_axis` of the result in its meta data.
    """

    def __init__(
        self,
        keys: KeysCollection,
        target_spacing: Sequence[float] | float | None = None,
        scale_factor: Sequence[float] | float | None = None,
        kind: str = "bspline",
        slice_axis: int | None = None,
        in_plane_only: bool = False,
        default_factor: float = 2.0,
        like_key: str = "target",
        lowres_key: str = "lowres",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.to_grid = ToTargetGrid(target_spacing, scale_factor, kind, slice_axis, in_plane_only, default_factor)
        self.like_key, self.lowres_key = like_key, lowres_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        shape = d[self.like_key].shape[1:] if isinstance(d.get(self.like_key), torch.Tensor) else None
        for key in self.key_iterator(d):
            lowres = d[key]
            d[key] = self.to_grid(lowres, shape)
            if self.lowres_key not in d:
                axis = {k: v for k, v in d[key].meta.items() if k == "slice_axis"}
                d[self.lowres_key] = MetaTensor(lowres, meta={**lowres.meta, **axis})
        return d
