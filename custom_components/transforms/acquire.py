"""Simulate the acquisition: whole scans for evaluation, random patches for training. The arithmetic is in `acquisition`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform

from ..acquisition import (
    PROTOCOLS,
    Protocol,
    SeparableOperator,
    acquisition_operator,
    add_rician_noise,
    interpolation_matrix,
    rescaled_affine,
)
from ..scans import ScanError

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

    Raises:
        ScanError: when a whole factor is larger than its axis.
    """

    def __init__(
        self, scale_factor: Factor = 2.0, protocol: str = "gaussian_spline", noise_std: float = 0.0, seed: int = 0
    ) -> None:
        self.scale_factor, self.protocol, self.noise_std, self.seed = scale_factor, protocol, noise_std, seed

    def __call__(self, hr: MetaTensor, scale_factor: Factor | None = None) -> tuple[MetaTensor, MetaTensor]:
        """HR `(1, *spatial)` to the pair (LR, cropped HR), each with its affine."""
        factors = per_axis(self.scale_factor if scale_factor is None else scale_factor, hr.ndim - 1)
        shape = [n - n % int(f) if f == int(f) else n for n, f in zip(hr.shape[1:], factors, strict=True)]
        if 0 in shape:
            raise ScanError(f"expected at least {factors} voxels for this scale factor, got {tuple(hr.shape[1:])}")
        lr_shape = [max(round(n / f), 1) for n, f in zip(shape, factors, strict=True)]
        box = (slice(None), *(slice(0, n) for n in shape))
        hr = MetaTensor(hr.as_tensor()[box], meta=dict(hr.meta))
        lr = acquisition_operator(shape, lr_shape, self.protocol)(hr.as_tensor()[None])[0]
        lr = add_rician_noise(lr, self.noise_std, torch.Generator().manual_seed(self.seed))
        return MetaTensor(lr, meta={**hr.meta, "affine": rescaled_affine(hr.affine, shape, lr_shape)}), hr


class Acquired(MapTransform):
    """Dictionary version of `Acquire`: `image` becomes the LR scan, `target` the HR truth.

    Args:
        keys: the HR image.
        target_key: where the HR truth goes.
        factor_key: item field that holds a scale factor of its own for this item, in place of `scale_factor`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        scale_factor: Factor = 2.0,
        protocol: str = "gaussian_spline",
        noise_std: float = 0.0,
        seed: int = 0,
        target_key: str = "target",
        factor_key: str = "scale_factor",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.acquire = Acquire(scale_factor, protocol, noise_std, seed)
        self.target_key, self.factor_key = target_key, factor_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[self.target_key] = self.acquire(d[key], d.get(self.factor_key))
        return d


@lru_cache(maxsize=256)  # a whole factor has few grid positions, which come again; others are computed for each sample
def _axis_matrices(
    protocol: Protocol, kind: str, size: int, margin: int, factor: float, first: float
) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Acquisition of one axis of a patch whose first LR centre lies at `first`, and interpolation to its inner voxels."""
    n = size + 2 * margin
    inner = torch.arange(margin, margin + size, dtype=torch.float64)
    if factor == 1:
        return None, torch.eye(n)[margin : margin + size]
    centres = torch.arange(first, n - 0.5, factor, dtype=torch.float64)
    return protocol.matrix(n, centres, factor), interpolation_matrix(len(centres), (inner - first) / factor, kind)


class RandAcquire(Randomizable, Transform):
    """Make a training pair from a HR patch: draw an acquisition, apply it, interpolate back to the HR grid.

    The position of the LR grid within the patch is random, so that the network meets every sub-voxel offset that a whole volume
    has. The patch carries a margin on each side, which is cut off at the end: blur and spline see real neighbours.

    Args:
        scale_factors: list of factors, each one number or one per axis, from which one is drawn per sample (section 4 of Pham
            2019); the axes of an anisotropic one are permuted at random.
        patch_size: size of the pair, one number or one per axis; the input must be larger by `2 * margin`.
        protocols: names in `custom_components.acquisition.PROTOCOLS`, one drawn per sample.
        noise_std: range of the standard deviation of Rician noise on the LR image, in units of the image.
        noise_prob: probability of noise.
        margin: voxels of context on each side.
        kind: interpolation to the HR grid.

    Raises:
        ValueError: on an empty list, an unknown protocol, or a patch of another size.
    """

    def __init__(
        self,
        scale_factors: Sequence[Factor] = (2.0,),
        patch_size: int | Sequence[int] = 25,
        protocols: Sequence[str | Protocol] = ("gaussian_spline",),
        noise_std: tuple[float, float] = (0.0, 0.0),
        noise_prob: float = 0.0,
        margin: int = 12,
        kind: str = "bspline",
    ) -> None:
        if not scale_factors or not protocols:
            raise ValueError("expected at least one scale factor and one protocol, got none")
        unknown = [p for p in protocols if isinstance(p, str) and p not in PROTOCOLS]
        if unknown:
            raise ValueError(f"protocols must be among {tuple(PROTOCOLS)}, got {unknown}")
        self.scale_factors = list(scale_factors)
        self.protocols = [PROTOCOLS[p] if isinstance(p, str) else p for p in protocols]
        self.patch_size, self.margin, self.kind = patch_size, margin, kind
        self.noise_std, self.noise_prob = noise_std, noise_prob

    def randomize(self, data: Any = None) -> None:
        """Draw factor, protocol, grid offsets and noise for a patch of `data` spatial dimensions."""
        dims = int(data)
        factors = per_axis(self.scale_factors[self.R.randint(len(self.scale_factors))], dims)
        self.factors = tuple(factors[i] for i in self.R.permutation(dims))
        self.protocol = self.protocols[self.R.randint(len(self.protocols))]
        self.offsets = [
            (f - 1) / 2 + (self.R.randint(int(f)) if f == int(f) else self.R.uniform(0, f)) for f in self.factors
        ]
        noisy = self.R.random_sample() < self.noise_prob
        self.std = float(self.R.uniform(*self.noise_std)) if noisy else 0.0
        self.noise_seed = int(self.R.randint(2**31 - 1))

    def __call__(self, hr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """HR patch `(1, *(patch_size + 2 margin))` to the pair (interpolated LR, HR), each `(1, *patch_size)`."""
        dims = hr.ndim - 1
        size = (self.patch_size,) * dims if isinstance(self.patch_size, int) else tuple(self.patch_size)
        if [n - 2 * self.margin for n in hr.shape[1:]] != list(size):
            raise ValueError(
                f"expected a patch of {[p + 2 * self.margin for p in size]} voxels, got {list(hr.shape[1:])}"
            )
        self.randomize(dims)
        x = (hr.as_tensor() if isinstance(hr, MetaTensor) else hr)[None]
        acquire, interpolate = [], []
        for p, f, offset in zip(size, self.factors, self.offsets, strict=True):
            there, back = _axis_matrices(self.protocol, self.kind, p, self.margin, f, offset % f)
            acquire.append(there)
            interpolate.append(back)
        lr = SeparableOperator(acquire)(x)
        if self.std:
            lr = add_rician_noise(lr, self.std, torch.Generator().manual_seed(self.noise_seed))
        image = SeparableOperator(interpolate)(lr)[0]
        inner = (slice(None), *(slice(self.margin, self.margin + p) for p in size))
        return image, x[0][inner].clone()


class RandAcquired(Randomizable, MapTransform):
    """Dictionary version of `RandAcquire`: `image` becomes the interpolated LR patch, `target` the HR patch."""

    def __init__(
        self,
        keys: KeysCollection,
        scale_factors: Sequence[Factor] = (2.0,),
        patch_size: int | Sequence[int] = 25,
        protocols: Sequence[str | Protocol] = ("gaussian_spline",),
        noise_std: tuple[float, float] = (0.0, 0.0),
        noise_prob: float = 0.0,
        margin: int = 12,
        kind: str = "bspline",
        target_key: str = "target",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.acquire = RandAcquire(scale_factors, patch_size, protocols, noise_std, noise_prob, margin, kind)
        self.target_key = target_key

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandAcquired:
        """Forward the random state to the array transform."""
        self.acquire.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[self.target_key] = self.acquire(d[key])
        return d
