"""From the LR grid to the HR grid over the same field of view, before a network that works on the HR grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..acquisition import interpolation_operator, rescaled_affine, target_shape
from ..errors import ScanError


class ToTargetGrid(Transform):
    """Interpolate a scan to a finer grid of the same physical extent and put its affine right.

    Args:
        target_spacing: voxel size in mm, one number or one per array axis; 0 keeps an axis.
        scale_factor: upsampling factor instead, one number or one per array axis; both None: 2 in each.
        kind: `nearest`, `linear`, `cubic` or `bspline` (see `custom_components.acquisition.interpolation_matrix`).

    Raises:
        ValueError: when both are given, or what is no number.
        ScanError: when they do not fit a scan (a target coarser than the scan, a wrong number of axes).
    """

    def __init__(
        self,
        target_spacing: Sequence[float] | float | None = None,
        scale_factor: Sequence[float] | float | None = None,
        kind: str = "bspline",
    ) -> None:
        if target_spacing is not None and scale_factor is not None:
            raise ValueError("expected target_spacing or scale_factor, got both")
        for name, value in (("target_spacing", target_spacing), ("scale_factor", scale_factor)):
            given = value if isinstance(value, Sequence) else [value]
            if value is not None and not all(isinstance(v, Real) for v in given):  # a command line gives text too
                raise ValueError(f"{name} must be one number or one per axis, such as [1,1,2.5], got {value!r}")
        self.target_spacing = target_spacing
        self.scale_factor = 2.0 if target_spacing is None and scale_factor is None else scale_factor
        self.kind = kind

    def __call__(self, img: MetaTensor, shape: Sequence[int] | None = None) -> MetaTensor:
        """Interpolate `(C, *spatial)`; `shape` asks for this HR shape in place of the transform's own target."""
        size = tuple(img.shape[1:])
        if shape is None:
            spacing = [float(v) for v in img.pixdim]
            try:
                shape = target_shape(size, spacing, self.target_spacing, self.scale_factor)
            except ValueError as error:
                raise ScanError(str(error)) from error
        operator = interpolation_operator(size, shape, self.kind)
        meta = {**img.meta, "affine": rescaled_affine(img.affine, size, shape)}
        return MetaTensor(operator(img.as_tensor()[None])[0], meta=meta)


class ToTargetGridd(MapTransform):
    """Dictionary version of `ToTargetGrid`; the LR scan stays in the item under `lowres_key`.

    Args:
        keys: scans to interpolate.
        like_key: when the item holds this image, its grid is the target: the HR truth of an evaluation.
        lowres_key: where the scan of the first key is kept as it was.
    """

    def __init__(
        self,
        keys: KeysCollection,
        target_spacing: Sequence[float] | float | None = None,
        scale_factor: Sequence[float] | float | None = None,
        kind: str = "bspline",
        like_key: str = "target",
        lowres_key: str = "lowres",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.to_grid = ToTargetGrid(target_spacing, scale_factor, kind)
        self.like_key, self.lowres_key = like_key, lowres_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        shape = d[self.like_key].shape[1:] if isinstance(d.get(self.like_key), torch.Tensor) else None
        for key in self.key_iterator(d):
            d.setdefault(self.lowres_key, d[key])
            d[key] = self.to_grid(d[key], shape)
        return d
