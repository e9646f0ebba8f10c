"""Random HR patches, at the scan's own resolution or a coarser one, and what is left of a patch without its margin."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable, Transform
from torch.nn.functional import pad

from ..acquisition import PROTOCOLS, SeparableOperator, slice_axis
from ..tensors import plain

REDRAWS = 3


def per_network_axis(size: int | Sequence[int], spatial_dims: int, dims: int = 3) -> tuple[int, ...]:
    """A patch size, one number or one per axis of the network, as one per axis of the scan: 2D patches are one slice thick.

    Raises:
        ValueError: on a wrong number of values.
    """
    axes = 2 if spatial_dims == 2 else dims
    sizes = (size,) * axes if isinstance(size, int) else tuple(size)
    if len(sizes) != axes:
        raise ValueError(f"a patch size must be one number or {axes} numbers, got {size}")
    return sizes + (1,) * (dims - axes)


def inner_patch(x: torch.Tensor, margin: int | Sequence[int], spatial_dims: int = 3) -> torch.Tensor:
    """A patch without its margin, as a plain tensor of its own; for 2D networks also without its last axis of one voxel.

    Args:
        x: `(C, *(size + 2 margin))`.
        margin: voxels on each side, one number or one per axis of the patch.
        spatial_dims: of the network.

    Raises:
        ValueError: on a margin that leaves nothing or has a wrong number of values, or a last axis that is not one voxel.
    """
    dims = x.ndim - 1
    margins = (margin,) * dims if isinstance(margin, int) else tuple(margin)
    if len(margins) != dims or not all(0 <= 2 * m < n for m, n in zip(margins, x.shape[1:], strict=False)):
        raise ValueError(f"expected a patch of more than twice the margin {margin}, got {list(x.shape[1:])} voxels")
    box = (slice(None), *(slice(m, n - m) for m, n in zip(margins, x.shape[1:], strict=True)))
    inner = plain(x)[box]
    if spatial_dims == 2 and dims == 3:
        if inner.shape[-1] != 1:
            raise ValueError(
                f"expected a patch of one slice with margin {margin}, got {list(x.shape[1:])} voxels, the slices last"
            )
        inner = inner[..., 0]
    return inner.clone()


class RandHRPatch(Randomizable, Transform):
    """Cut a random patch of a HR scan, for 2D networks one of a slice; sometimes as if it had been acquired with larger voxels.

    A network that saw one voxel size fails on another (heads look larger or smaller to it): `coarsen` draws a voxel size from the
    scan's own to a multiple of it, with the slice profile that belongs to it.

    Args:
        size: voxels of the patch, one number or one per axis of the network; a smaller scan is continued by its edge voxels.
        margin: voxels more on each side, for the acquisition that comes next.
        spatial_dims: of the network. 2: patches of slices `(1, *size, 1)`, with the margin across the slices too, continued by the
            outermost slice; the scan's slice axis (see `custom_components.acquisition.slice_axis`) comes last.
        any_orientation: take slices of all three orientations, not the scan's own alone.
        share: part of the slices, spread evenly over the scan, to which patches are confined (25 to 100 % in Cherukuri 2020).
        coarsen: largest voxel size in units of the scan's own; 1 leaves scans as they are.
        prob: probability of a coarser patch.
        least_std: draw another place, three times at most, where the standard deviation of the patch with its margin is below
            this, in units of the scan: air teaches nothing. 0 takes each place.

    Raises:
        ValueError: when coarsen is below 1, the share not in (0, 1], least_std negative, spatial_dims not 2 or 3, an option for
            slices is given to a 3D network, or a scan for a 2D network has no three axes.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        coarsen: float = 1.0,
        prob: float = 0.5,
        margin: int = 0,
        spatial_dims: int = 3,
        any_orientation: bool = False,
        share: float = 1.0,
        least_std: float = 0.0,
    ) -> None:
        if coarsen < 1:
            raise ValueError(f"coarsen must be >= 1, got {coarsen}")
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if spatial_dims != 2 and (any_orientation or share < 1):
            raise ValueError(f"any_orientation and share are for spatial_dims 2, got {spatial_dims}")
        if not 0 <= least_std < math.inf:
            raise ValueError(f"least_std must be >= 0, got {least_std}")
        self.size, self.coarsen, self.prob, self.margin = size, coarsen, prob, margin
        self.spatial_dims, self.any_orientation, self.share = spatial_dims, any_orientation, share
        self.least_std = least_std

    def randomize(self, data: Any = None) -> None:
        """Draw orientation, voxel size and place in a scan `data`, `(C, *spatial)`."""
        self._draw(data)
        for _ in range(REDRAWS if self.least_std > 0 else 0):
            if self._spread(data) >= self.least_std:
                return
            self._draw(data)

    def spacing(self, img: MetaTensor) -> torch.Tensor:
        """Voxel size in mm per axis of the patch at the place that was drawn last, `(d,)` float64."""
        size: torch.Tensor = img.pixdim
        return size.to(torch.float64)[list(self.order)] * self.factor

    def _spread(self, data: torch.Tensor) -> float:
        """Standard deviation of each fourth voxel per axis, margin included, at the place that was drawn last."""
        inside = self._inside(data)
        box = (slice(None), *(slice(None, None, 4),) * (inside.ndim - 1))
        return float(inside[box].float().std(correction=0))

    def _draw(self, data: Any) -> None:
        shape = tuple(data.shape[1:])
        self.order = tuple(range(len(shape)))
        if self.spatial_dims == 2:
            if len(shape) != 3:
                raise ValueError(f"expected a scan of 3 axes for slices, got the shape {shape}")
            affine = data.affine if isinstance(data, MetaTensor) else torch.eye(4)
            across = self.R.randint(3) if self.any_orientation else slice_axis(shape, affine)
            self.order = (*(axis for axis in range(3) if axis != across), across)
            shape = tuple(shape[axis] for axis in self.order)
        size = per_network_axis(self.size, self.spatial_dims, len(shape))
        self.patch = tuple(n + 2 * self.margin for n in size)
        coarser = self.coarsen > 1 and self.R.random_sample() < self.prob
        self.factor = float(self.R.uniform(1, self.coarsen)) if coarser else 1.0
        self.extent = [math.ceil(n * self.factor) for n in self.patch]
        free = [n - e for n, e in zip(shape, self.extent, strict=True)]
        self.start = [self.R.randint(n + 1) if n > 0 else -(-n // 2) for n in free]
        if self.spatial_dims == 2:  # any slice may come, those within the margin of an end too
            count = max(round(self.share * shape[-1]), 1)
            centre = int((self.R.randint(count) + 0.5) * shape[-1] / count)
            self.start[-1] = centre - round((self.margin + 0.5) * self.factor - 0.5)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """Scan `(C, *spatial)` to a patch `(C, *(size + 2 margin))`, a plain tensor."""
        self.randomize(img)
        return self.cut(img)

    def cut(self, img: torch.Tensor) -> torch.Tensor:
        """The patch at the place that was drawn last."""
        x = self._inside(img)
        sizes = [img.shape[axis + 1] for axis in self.order]
        ends = [(s, s + e, n) for s, e, n in zip(self.start, self.extent, sizes, strict=True)]
        missing = [w for first, last, n in reversed(ends) for w in (max(-first, 0), max(last - n, 0))]
        if any(missing):
            x = pad(x[None], missing, mode="replicate")[0]
        if self.factor == 1:
            return x.clone()
        profile = PROTOCOLS["slice_profile"]
        steps = [(torch.arange(n, dtype=torch.float64) + 0.5) * self.factor - 0.5 for n in self.patch]
        matrices = [profile.matrix(e, step, self.factor) for e, step in zip(self.extent, steps, strict=True)]
        return SeparableOperator(matrices)(x[None])[0]

    def _inside(self, img: torch.Tensor) -> torch.Tensor:
        """The part of the patch that lies within the scan, a view."""
        x = plain(img).permute(0, *(axis + 1 for axis in self.order))
        ends = zip(self.start, self.extent, strict=True)
        box = (slice(None), *(slice(max(first, 0), first + n) for first, n in ends))
        return x[box]


class RandHRPatchd(Randomizable, MapTransform):
    """Dictionary version of `RandHRPatch`; all keys, scans on one grid, are cut at the same place.

    The item's `spacing` becomes the voxel size of the patch in mm, `(d,)` float64, where the first key has an affine.

    Raises:
        ValueError: as `RandHRPatch`, or when scans have unlike shapes.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size: int | Sequence[int],
        coarsen: float = 1.0,
        prob: float = 0.5,
        margin: int = 0,
        spatial_dims: int = 3,
        any_orientation: bool = False,
        share: float = 1.0,
        least_std: float = 0.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.patch = RandHRPatch(size, coarsen, prob, margin, spatial_dims, any_orientation, share, least_std)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> RandHRPatchd:
        """Forward the random state to the array transform."""
        self.patch.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        keys = list(self.key_iterator(d))
        shapes = [tuple(d[key].shape[1:]) for key in keys]
        if len(set(shapes)) > 1:
            raise ValueError(f"expected scans on one grid, got the shapes {shapes}")
        for i, key in enumerate(keys):
            if i == 0:
                self.patch.randomize(d[key])
                if isinstance(d[key], MetaTensor):
                    d["spacing"] = self.patch.spacing(d[key])
            d[key] = self.patch.cut(d[key])
        return d
