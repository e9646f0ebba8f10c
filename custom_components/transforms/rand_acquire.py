"""Simulate the acquisition on random patches, for training. The arithmetic is in `acquisition`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable, Transform

from ..acquisition import PROTOCOLS, Protocol, SeparableOperator, add_rician_noise, interpolation_matrix
from ..tensors import plain
from .acquire import Factor, per_axis
from .patch import inner_patch, per_network_axis


@lru_cache(maxsize=256)  # a whole factor has few grid positions, which come again; others are computed for each sample
def _axis_matrices(
    protocol: Protocol, kind: str | None, size: int, margin: int, factor: float, first: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Acquisition of one axis of a patch whose first LR centre lies at `first`, and interpolation to its inner voxels."""
    n = size + 2 * margin
    if kind is None:
        count = max(size // int(factor), 1)
        return protocol.matrix(n, first + factor * torch.arange(count, dtype=torch.float64), factor), None
    inner = torch.arange(margin, margin + size, dtype=torch.float64)
    centres = torch.arange(first, n - 0.5, factor, dtype=torch.float64)
    return protocol.matrix(n, centres, factor), interpolation_matrix(len(centres), (inner - first) / factor, kind)


class RandAcquire(Randomizable, Transform):
    """Make a training pair from a HR patch: draw an acquisition, apply it, interpolate back to the HR grid.

    The position of the LR grid within the patch is random, so that the network meets every sub-voxel offset that a whole volume
    has. The patch carries a margin on each side, which is cut off at the end: blur and spline see real neighbours.

    For networks that upsample, `kind` None leaves out the interpolation: the pair is the LR patch and the HR patch of its extent,
    the outer voxel borders of both on each other.

    Args:
        scale_factors: list of factors, each one number or one per axis, from which one is drawn per sample (section 4 of Pham
            2019). The axes of an anisotropic one are permuted at random, but not without interpolation, as the network upsamples
            each axis by a factor of its own, nor for 2D networks: there the last factor is the one across the slices, and
            (2, 2, 1) leaves their own thickness, as the papers do that work on slices.
        patch_size: size of the HR patch, one number or one per axis of the network; the input must be larger by `2 * margin`.
        protocols: names in `custom_components.acquisition.PROTOCOLS`, one drawn per sample.
        noise_std: range of the standard deviation of Rician noise on the LR image, in units of the image.
        noise_prob: probability of noise.
        margin: voxels of context on each side.
        kind: interpolation to the HR grid; None: none, for whole factors only, and the HR patch is cut to a multiple of the factor.
        spatial_dims: of the network; 2: the input is one slice with margin, `(1, *(size + 2 margin), 1 + 2 margin)`, and the axis
            across the slices is dropped from the pair. Without interpolation a thick LR slice has its centre on that of the HR
            slice.

    Raises:
        ValueError: on an empty list, an unknown protocol, spatial_dims other than 2 or 3, a factor that is not whole or larger
            than the patch where there is no interpolation, a factor with interpolation for which a patch with its margins holds no
            LR voxel wherever the LR grid begins, or a patch of another size.
    """

    def __init__(
        self,
        scale_factors: Sequence[Factor] = (2.0,),
        patch_size: int | Sequence[int] = 25,
        protocols: Sequence[str | Protocol] = ("gaussian_spline",),
        noise_std: tuple[float, float] = (0.0, 0.0),
        noise_prob: float = 0.0,
        margin: int = 12,
        kind: str | None = "bspline",
        spatial_dims: int = 3,
    ) -> None:
        if not scale_factors or not protocols:
            raise ValueError("expected at least one scale factor and one protocol, got none")
        unknown = [p for p in protocols if isinstance(p, str) and p not in PROTOCOLS]
        if unknown:
            raise ValueError(f"protocols must be among {tuple(PROTOCOLS)}, got {unknown}")
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        values = [float(f) for factor in scale_factors for f in (factor if isinstance(factor, Sequence) else [factor])]
        if kind is None and not all(f.is_integer() for f in values):
            raise ValueError(f"without interpolation scale_factors must be whole numbers, got {list(scale_factors)}")
        self.spatial_dims = spatial_dims
        self.scale_factors = list(scale_factors)
        self.protocols = [PROTOCOLS[p] if isinstance(p, str) else p for p in protocols]
        self.patch_size, self.margin, self.kind = patch_size, margin, kind
        self.noise_std, self.noise_prob = noise_std, noise_prob

    def randomize(self, data: Any = None) -> None:
        """Draw factor, protocol, grid offsets and noise for a patch of `data` spatial dimensions."""
        dims = int(data)
        factors = per_axis(self.scale_factors[self.R.randint(len(self.scale_factors))], dims)
        permuted = self.spatial_dims == 3 and self.kind is not None
        self.factors = tuple(factors[i] for i in self.R.permutation(dims)) if permuted else factors
        self.protocol = self.protocols[self.R.randint(len(self.protocols))]
        self.offsets = [
            (f - 1) / 2 + (self.R.randint(int(f)) if f == int(f) else self.R.uniform(0, f)) for f in self.factors
        ]
        noisy = self.R.random_sample() < self.noise_prob
        self.std = float(self.R.uniform(*self.noise_std)) if noisy else 0.0
        self.noise_seed = int(self.R.randint(2**31 - 1))

    def _check_extent(self, shape: Sequence[int]) -> None:
        """Refuse factors larger than a patch with its margins: some position of the LR grid then has no voxel centre in it."""
        for factor in self.scale_factors:
            factors = per_axis(factor, len(shape))
            sizes = (
                list(shape) if self.spatial_dims == 2 else [min(shape)] * len(shape)
            )  # for volumes they are permuted
            for f, n in zip(factors, sizes, strict=True):
                if f > 1 and f > n - 0.5:
                    raise ValueError(
                        f"expected at least {f + 0.5:g} voxels with margins where the factor is {f:g}, got {n}: raise the margin"
                    )

    def __call__(self, hr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """HR patch `(1, *(patch_size + 2 margin))` to the pair (interpolated LR, HR), each `(1, *patch_size)`.

        Without interpolation LR is `(1, *(patch_size // factor))` and HR `factor` times as large.
        """
        dims = hr.ndim - 1
        if self.spatial_dims == 2 and dims != 3:
            raise ValueError(f"expected a patch of 3 axes, the slices last, got {list(hr.shape[1:])} voxels")
        size = per_network_axis(self.patch_size, self.spatial_dims, dims)
        if [n - 2 * self.margin for n in hr.shape[1:]] != list(size):
            raise ValueError(
                f"expected a patch of {[p + 2 * self.margin for p in size]} voxels, got {list(hr.shape[1:])}"
            )
        if self.kind is not None:
            self._check_extent(hr.shape[1:])
        self.randomize(dims)
        if self.kind is None:
            # the LR grid begins with the patch; a slice, which is thinner than an LR voxel, is the middle of one
            self.offsets = [self.margin + (min(f, p) - 1) / 2 for f, p in zip(self.factors, size, strict=True)]
            if any(f > p for f, p in zip(self.factors[: self.spatial_dims], size, strict=False)):
                raise ValueError(f"expected a patch of at least {self.factors} voxels, got {self.patch_size}")
        x = plain(hr)[None]
        acquire: list[torch.Tensor | None] = []
        interpolate: list[torch.Tensor | None] = []
        for axis, (p, f, offset) in enumerate(zip(size, self.factors, self.offsets, strict=True)):
            if f == 1:  # what is not acquired needs no margin
                x = x.narrow(axis + 2, self.margin, p)
                acquire.append(None)
                interpolate.append(None)
            else:
                first = offset if self.kind is None else offset % f
                there, back = _axis_matrices(self.protocol, self.kind, p, self.margin, f, first)
                acquire.append(there)
                interpolate.append(back)
        lr = SeparableOperator(acquire)(x)
        if self.std:
            lr = add_rician_noise(lr, self.std, torch.Generator().manual_seed(self.noise_seed))
        image = SeparableOperator(interpolate)(lr)[0]
        if self.spatial_dims == 2:
            image = image[..., 0]
        target = inner_patch(hr, self.margin, self.spatial_dims)
        if self.kind is None:
            extent = [slice(n * int(f)) for n, f in zip(image.shape[1:], self.factors, strict=False)]
            box = (slice(None), *extent)
            target = target[box].clone()
        return image.clone(), target


class RandAcquired(Randomizable, MapTransform):
    """Dictionary version of `RandAcquire`: `image` becomes the (interpolated) LR patch, `target` the HR patch."""

    def __init__(
        self,
        keys: KeysCollection,
        scale_factors: Sequence[Factor] = (2.0,),
        patch_size: int | Sequence[int] = 25,
        protocols: Sequence[str | Protocol] = ("gaussian_spline",),
        noise_std: tuple[float, float] = (0.0, 0.0),
        noise_prob: float = 0.0,
        margin: int = 12,
        kind: str | None = "bspline",
        spatial_dims: int = 3,
        target_key: str = "target",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.acquire = RandAcquire(
            scale_factors, patch_size, protocols, noise_std, noise_prob, margin, kind, spatial_dims
        )
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
