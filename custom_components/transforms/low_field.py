"""Simulate scans of a lower field strength: whole ones for evaluation, patches for training. The arithmetic is in `acquisition`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform

from ..acquisition import FieldChange, background_noise, simulate_low_field
from ..errors import ScanError
from .patch import inner_patch, per_network_axis


class LowField(Transform):
    """A whole scan as a scanner of lower field strength would have given it, on the same grid; see `simulate_low_field`.

    Args:
        change: of field; None: from 3 to 1.5 T.
        noise_std: noise of the scan per channel, in its unit; None: measured in the air around the head.
        keep_scale: whether tissue keeps its intensity.
        seed: seed of the noise, the same for each scan.

    Raises:
        ValueError: when `noise_std` is negative.
        ScanError: when the noise is to be measured in a scan without noisy air.
    """

    def __init__(
        self,
        change: FieldChange | None = None,
        noise_std: float | None = None,
        keep_scale: bool = True,
        seed: int = 0,
    ) -> None:
        if noise_std is not None and not noise_std >= 0:
            raise ValueError(f"noise_std must be >= 0 or None, got {noise_std}")
        self.change, self.noise_std, self.keep_scale, self.seed = change or FieldChange(), noise_std, keep_scale, seed

    def __call__(self, hr: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
        """Scan `(1, *spatial)` to the pair (simulated scan, scan), each with its affine."""
        x, std = hr.as_tensor(), self.noise_std
        if std is None:
            try:
                std = background_noise(x)
            except ValueError as error:
                raise ScanError(f"{hr.meta.get('filename_or_obj', 'scan')}: {error}; set noise_std") from error
        low = simulate_low_field(x, std, self.change, self.keep_scale, torch.Generator().manual_seed(self.seed))
        return MetaTensor(low.clone(), meta=dict(hr.meta)), hr


class LowFieldd(MapTransform):
    """Dictionary version of `LowField`: `image` becomes the scan of the low field, `target` the scan as it was.

    Args:
        keys: the scan.
        change, noise_std, keep_scale, seed: see `LowField`.
        target_key: where the scan goes.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        change: FieldChange | None = None,
        noise_std: float | None = None,
        keep_scale: bool = True,
        seed: int = 0,
        target_key: str = "target",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.simulate = LowField(change, noise_std, keep_scale, seed)
        self.target_key = target_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[self.target_key] = self.simulate(d[key])
        return d


class RandLowField(Randomizable, Transform):
    """Make a training pair from a patch: draw a low field and the scan's noise, simulate.

    It takes the place of `RandAcquire`. No voxel sees its neighbours, so that a margin is cut off unused and may be 0.

    Args:
        noise_std: range of the noise per channel at the high field, in units of the image; `background_noise` measures that of a
            scan. A patch shows no air.
        patch_size: size of the pair, one number or one per axis of the network.
        margin: voxels that the patch has more on each side, one number or one per axis of the patch.
        b_low: range of the low field in T; None: that of `change`.
        change: of field; None: from 3 to 1.5 T.
        keep_scale: whether tissue keeps its intensity.
        spatial_dims: of the network; 2: the last axis of the patch, one voxel without the margin, is dropped.

    Raises:
        ValueError: on a range that is empty or out of the model's, or a patch of another size.
    """

    def __init__(
        self,
        noise_std: tuple[float, float],
        patch_size: int | Sequence[int] = 25,
        margin: int | Sequence[int] = 12,
        b_low: tuple[float, float] | None = None,
        change: FieldChange | None = None,
        keep_scale: bool = True,
        spatial_dims: int = 3,
    ) -> None:
        change = change or FieldChange()
        b_low = (change.b_low, change.b_low) if b_low is None else b_low
        for name, (start, end) in (("noise_std", noise_std), ("b_low", b_low)):
            if not 0 <= start <= end:
                raise ValueError(
                    f"{name} must be a range from a number >= 0 to one not below it, got {start} and {end}"
                )
        for field in b_low:
            replace(change, b_low=field)  # both ends must be in the model's range
        self.noise_std, self.b_low, self.change, self.keep_scale = noise_std, b_low, change, keep_scale
        self.patch_size, self.margin, self.spatial_dims = patch_size, margin, spatial_dims

    def randomize(self, data: Any = None) -> None:
        """Draw the field, the scan's noise and the seed of the noise that is added."""
        self.drawn = replace(self.change, b_low=float(self.R.uniform(*self.b_low)))
        self.std = float(self.R.uniform(*self.noise_std))
        self.noise_seed = int(self.R.randint(2**31 - 1))

    def __call__(self, hr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patch `(1, *(patch_size + 2 margin))` to the pair (simulated, patch), each `(1, *patch_size)`."""
        size = per_network_axis(self.patch_size, self.spatial_dims, hr.ndim - 1)
        target = inner_patch(hr, self.margin, self.spatial_dims)
        if tuple(target.shape[1:]) != size[: target.ndim - 1]:
            raise ValueError(
                f"expected a patch of {list(size)} voxels and a margin of {self.margin}, got {list(hr.shape[1:])}"
            )
        self.randomize()
        generator = torch.Generator().manual_seed(self.noise_seed)
        return simulate_low_field(target, self.std, self.drawn, self.keep_scale, generator).clone(), target


class RandLowFieldd(Randomizable, MapTransform):
    """Dictionary version of `RandLowField`: `image` becomes the patch of the low field, `target` the patch as it was.

    Args:
        keys: the patch.
        noise_std, patch_size, margin, b_low, change, keep_scale, spatial_dims: see `RandLowField`.
        target_key: where the patch goes.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection,
        noise_std: tuple[float, float],
        patch_size: int | Sequence[int] = 25,
        margin: int | Sequence[int] = 12,
        b_low: tuple[float, float] | None = None,
        change: FieldChange | None = None,
        keep_scale: bool = True,
        spatial_dims: int = 3,
        target_key: str = "target",
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.simulate = RandLowField(noise_std, patch_size, margin, b_low, change, keep_scale, spatial_dims)
        self.target_key = target_key

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandLowFieldd:
        """Forward the random state to the array transform."""
        self.simulate.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key], d[self.target_key] = self.simulate(d[key])
        return d
