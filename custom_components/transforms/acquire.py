"""Simulate the acquisition of whole scans, for evaluation. The arithmetic is in `acquisition`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..acquisition import acquisition_operator, add_rician_noise, rescaled_affine, slice_axis
from ..errors import ScanError

Factor = float | Sequence[float]


def per_axis(factor: Factor, dims: int) -> tuple[float, ...]:
    """A scale factor as one number per axis.

    Raises:
        ValueError: on a wrong number of values, or one below 1.
    """
    values = (float(factor),) * dims if isinstance(factor, (int, float)) else tuple(float(v) for v in factor)
    if len(values) != dims or not all(1 <= v < float("inf") for v in values):
        raise ValueError(f"a scale factor must be one number or {dims} numbers >= 1, got {factor}")
    return values


class Acquire(Transform):
    """Acquire a whole HR volume at low resolution: blur, sample, Rician noise.

    Axes with a whole factor are first cropped to a multiple of it, as in the papers; on other axes the LR size is rounded.

    Args:
        scale_factor: LR voxel size in HR voxels, one number or one per axis.
        protocol: a name in `custom_components.acquisition.PROTOCOLS`.
        noise_std: standard deviation of Rician noise, in units of the image.
        seed: seed of the noise, the same for each scan.
        in_plane_only: leave the slices as thick as they are (see `custom_components.acquisition.slice_axis`). The pair's meta data
            then have `slice_axis`, as LR voxels may be larger in the plane than across.

    Raises:
        ScanError: when a whole factor is larger than its axis.
    """

    def __init__(
        self,
        scale_factor: Factor = 2.0,
        protocol: str = "gaussian_spline",
        noise_std: float = 0.0,
        seed: int = 0,
        in_plane_only: bool = False,
    ) -> None:
        self.scale_factor, self.protocol, self.noise_std, self.seed = scale_factor, protocol, noise_std, seed
        self.in_plane_only = in_plane_only

    def __call__(self, hr: MetaTensor, scale_factor: Factor | None = None) -> tuple[MetaTensor, MetaTensor]:
        """HR `(1, *spatial)` to the pair (LR, cropped HR), each with its affine."""
        factors = per_axis(self.scale_factor if scale_factor is None else scale_factor, hr.ndim - 1)
        # the slice thickness of the HR scan does not hold for the LR one
        meta = {name: value for name, value in hr.meta.items() if name != "slice_thickness"}
        if self.in_plane_only:
            across = slice_axis(hr.shape[1:], hr.affine)
            meta["slice_axis"] = across
            factors = tuple(1.0 if axis == across else f for axis, f in enumerate(factors))
        shape = [n - n % int(f) if f == int(f) else n for n, f in zip(hr.shape[1:], factors, strict=True)]
        if 0 in shape:
            raise ScanError(f"expected at least {factors} voxels for this scale factor, got {tuple(hr.shape[1:])}")
        lr_shape = [max(round(n / f), 1) for n, f in zip(shape, factors, strict=True)]
        box = (slice(None), *(slice(0, n) for n in shape))
        hr = MetaTensor(hr.as_tensor()[box], meta=meta)
        lr = acquisition_operator(shape, lr_shape, self.protocol)(hr.as_tensor()[None])[0]
        lr = add_rician_noise(lr, self.noise_std, torch.Generator().manual_seed(self.seed))
        return MetaTensor(lr, meta={**hr.meta, "affine": rescaled_affine(hr.affine, shape, lr_shape)}), hr


class Acquired(MapTransform):
    """Dictionary version of `Acquire`: `image` becomes the LR scan, `target` the HR truth.

    Args:
        keys: the HR image.
        target_key: where the HR truth goes.
        factor_key: item field that holds a scale factor of its own for this item, in place of `scale_factor`. With `in_plane_only`
            the two factors of the plane come to stand there: reports name them `2x2`, whichever axis the slices lie across.
    """

    def __init__(
        self,
        keys: KeysCollection,
        scale_factor: Factor = 2.0,
        protocol: str = "gaussian_spline",
        noise_std: float = 0.0,
        seed: int = 0,
        in_plane_only: bool = False,
        target_key: str = "target",
        factor_key: str = "scale_factor",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.acquire = Acquire(scale_factor, protocol, noise_std, seed, in_plane_only)
        self.target_key, self.factor_key = target_key, factor_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        factor = d.get(self.factor_key)
        for key in self.key_iterator(d):
            d[key], target = self.acquire(d[key], factor)
            d[self.target_key] = target
            if self.acquire.in_plane_only:
                factors = per_axis(self.acquire.scale_factor if factor is None else factor, target.ndim - 1)
                d[self.factor_key] = tuple(f for axis, f in enumerate(factors) if axis != target.meta["slice_axis"])
        return d
