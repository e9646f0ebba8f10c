"""Pairs of registered scans: bring both onto one grid, make sure that they are a pair, and cut training pairs of patches."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialResample, Transform

from ..acquisition import SeparableOperator
from ..errors import ScanError
from .intensity import percentile

SAME_GRID = 0.01  # mm by which the corners of two grids may differ
LEVELS = 16  # of grey, for mutual information
REACH = 4.0  # mm of the local mean that is taken off before
HEAD_REACH = 2.0  # mm of the local mean that the head is found in
MAX_VOXELS = 2**21  # that mutual information is measured on, about


def _index_map(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """From voxels of the target to voxels of the source, `(4, 4)`."""
    inverse: torch.Tensor = torch.linalg.inv(source.double())
    return inverse @ target.double()


def _same_grid(source: MetaTensor, target: MetaTensor) -> bool:
    """Whether the corners of the target's grid lie at the same place in both."""
    if source.shape != target.shape:
        return False
    corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1]) for n in target.shape[1:])).double()
    corners = torch.cat([corners, torch.ones(len(corners), 1)], 1).T
    moved = (source.affine.double() - target.affine.double()) @ corners
    return float(moved[:3].norm(dim=0).max()) < SAME_GRID


def covered_share(source: MetaTensor, target: MetaTensor) -> float:
    """Share of the target's voxels whose centres lie in the field of view of the source, both `(1, X, Y, Z)`."""
    to_source = _index_map(source.affine, target.affine)
    inside = torch.ones(target.shape[1:], dtype=torch.bool)
    for axis, n in enumerate(source.shape[1:]):
        place = to_source[axis, 3]
        for along, m in enumerate(target.shape[1:]):
            steps = torch.arange(m, dtype=torch.float64) * to_source[axis, along]
            place = place + steps.reshape([-1 if a == along else 1 for a in range(3)])
        inside &= (place > -0.5 - 1e-6) & (place < n - 0.5 + 1e-6)
    return float(inside.double().mean())


def local_mean(x: torch.Tensor, reach: Sequence[int]) -> torch.Tensor:
    """Mean of an image `(X, Y, Z)` over `reach` voxels to each side along each axis, fewer at the borders."""
    matrices: list[torch.Tensor | None] = []
    for n, far in zip(x.shape, reach, strict=True):
        at = torch.arange(n)
        near = ((at[:, None] - at).abs() <= far).double()
        matrices.append(near / near.sum(1, keepdim=True))
    return SeparableOperator(matrices)(x[None, None])[0, 0]


def _reach(mm: float, spacing: Sequence[float]) -> list[int]:
    return [max(round(mm / size), 1) for size in spacing]


def head_mask(x: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """The rough head in an image `(X, Y, Z)`: above a tenth of the way from its 2nd to its 98th percentile, as Smith, 2002 (BET).

    The image is averaged over 2 mm to each side before, so that the noise of the air stays below.
    """
    x = local_mean(x, _reach(HEAD_REACH, spacing))
    low, high = percentile(x, 2), percentile(x, 98)
    return x > low + 0.1 * (high - low)


def dice(a: torch.Tensor, b: torch.Tensor) -> float:
    """Dice overlap of two masks, 1 where both are empty."""
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def _grey_levels(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    low, high = percentile(x[mask], 1), percentile(x[mask], 99)
    return ((x - low) * (LEVELS / max(high - low, 1e-30))).clamp_(0, LEVELS - 1).to(torch.uint8)


def _mutual_information(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two lists of grey levels, in nat."""
    joint = torch.bincount(a.long() * LEVELS + b.long(), minlength=LEVELS**2).double().reshape(LEVELS, LEVELS)
    joint /= max(len(a), 1)
    apart = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    seen = joint > 0
    return float((joint[seen] * (joint[seen] / apart[seen]).log()).sum())


def _overlay(shape: Sequence[int], axis: int, step: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What of two images lies upon each other when the second is shifted; some millions of voxels at most are looked at."""
    thin = max(round((math.prod(shape) / MAX_VOXELS) ** (1 / 3)), 1)
    first, second = [slice(None, None, thin)] * 3, [slice(None, None, thin)] * 3
    first[axis] = slice(max(-step, 0), shape[axis] - max(step, 0), thin)
    second[axis] = slice(max(step, 0), shape[axis] - max(-step, 0), thin)
    return tuple(first), tuple(second)


def registration_gain(
    x: torch.Tensor,
    y: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor],
    spacing: Sequence[float],
    shift: float = 5.0,
) -> float:
    """Mutual information of two images `(X, Y, Z)` in their place, over the best one when they are shifted along an axis.

    It is that of the images without their `local_mean` over 4 mm to each side, inside both heads and 6 mm or more from their
    outlines: it speaks of the anatomy, not of outline, shading and gross contrast. Well above 1 for two scans of one head that
    are registered, of whatever contrast; about 1 for two different heads; below 1 where the registration is off by more
    than half the shift.

    Args:
        x: image.
        y: image on the same grid.
        heads: masks of the two.
        spacing: voxel sizes in mm.
        shift: in mm.
    """
    reach = _reach(REACH, spacing)
    rim = _reach(REACH + HEAD_REACH, spacing)  # the masks are wider than the heads
    inner = [head & (local_mean(head.float(), rim) > 0.999) for head in heads]
    if not (inner[0] & inner[1]).any():
        return 0.0
    levels = [_grey_levels(image - local_mean(image, reach), mask) for image, mask in zip((x, y), inner, strict=True)]

    def similarity(axis: int, step: int) -> float:
        first, second = _overlay(x.shape, axis, step)
        both = inner[0][first] & inner[1][second]
        return _mutual_information(levels[0][first][both], levels[1][second][both])

    steps = enumerate(_reach(shift, spacing))
    elsewhere = [similarity(axis, way * step) for axis, step in steps if x.shape[axis] > 2 * step for way in (1, -1)]
    return similarity(0, 0) / max([*elsewhere, 1e-12])


class CheckPair(Transform):
    """Make sure that two scans are a pair that is registered to each other; bring the first onto the grid of the second.

    Where the grids differ, the source is resampled by its affine in world coordinates (nothing is registered here), with its edge
    voxels continued where the target's field of view is larger. Then three questions: is most of the target's field of view
    covered by the source's; do the heads overlap (`head_mask`); and does the anatomy inside them fit better than when
    shifted (`registration_gain`). The Dice says little about that: it is 0.9 for two heads in MNI space. On scans of 1 mm there
    the gain was 4 to 16 for two contrasts of one head, 7 with 1 mm of displacement, 2.2 with 2 mm, 0.5 with 3 mm, and
    0.7 to 1.1 for scans of two heads; 3.7 to 4.9 for two contrasts of a head in slices of 3 mm.

    Args:
        min_overlap: smallest share of the target's field of view that the source covers.
        min_dice: smallest Dice overlap of the heads.
        min_gain: smallest gain; 0 leaves this check out.
        shift: of the gain's comparison, in mm.
        order: of the spline that resamples, 0 to 5.

    Raises:
        ScanError: when the scans are no pair.
    """

    def __init__(
        self,
        min_overlap: float = 0.9,
        min_dice: float = 0.7,
        min_gain: float = 2.0,
        shift: float = 5.0,
        order: int = 3,
    ) -> None:
        if not (0 <= min_overlap <= 1 and 0 <= min_dice <= 1):
            raise ValueError(f"min_overlap and min_dice must be from 0 to 1, got {min_overlap} and {min_dice}")
        if not (min_gain >= 0 and shift > 0):
            raise ValueError(f"expected min_gain >= 0 and shift > 0, got {min_gain} and {shift}")
        self.min_overlap, self.min_dice, self.min_gain, self.shift = min_overlap, min_dice, min_gain, shift
        # the spline backend has scipy's names for padding
        self.resample = SpatialResample(mode=order, padding_mode="nearest")

    def __call__(self, source: MetaTensor, target: MetaTensor) -> tuple[MetaTensor, MetaTensor]:
        """Source and target, `(1, X, Y, Z)` each, to both on the target's grid."""
        names = f"{source.meta.get('filename_or_obj', 'source')} and {target.meta.get('filename_or_obj', 'target')}"

        def need(what: str, value: float, least: float) -> None:
            if not value >= least:
                raise ScanError(
                    f"expected a pair registered to each other ({what} >= {least:g}), got {value:.3f}: {names}"
                )

        if not _same_grid(source, target):
            need("share of the target's field of view that is covered", covered_share(source, target), self.min_overlap)
            moved = self.resample(MetaTensor(source.as_tensor(), affine=source.affine), target.affine, target.shape[1:])
            voxels = moved.as_tensor() if isinstance(moved, MetaTensor) else moved
            source = MetaTensor(voxels.float(), meta={**source.meta, "affine": target.affine.clone()})
        x, y = source.as_tensor()[0], target.as_tensor()[0]
        spacing = [float(size) for size in target.pixdim]
        heads = head_mask(x, spacing), head_mask(y, spacing)
        need("Dice of the heads", dice(*heads), self.min_dice)
        if self.min_gain:
            gain = registration_gain(x, y, heads, spacing, self.shift)
            need(f"similarity over that when {self.shift:g} mm off", gain, self.min_gain)
        return source, target


class CheckPaird(MapTransform):
    """Dictionary version of `CheckPair`.

    Args:
        keys: the source and the target, loaded.
        min_overlap, min_dice, min_gain, shift, order: see `CheckPair`.

    Raises:
        ValueError: when there are not two keys.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "target"),
        min_overlap: float = 0.9,
        min_dice: float = 0.7,
        min_gain: float = 2.0,
        shift: float = 5.0,
        order: int = 3,
    ) -> None:
        super().__init__(keys)
        if len(self.keys) != 2:
            raise ValueError(f"expected two keys, source and target, got {self.keys}")
        self.check = CheckPair(min_overlap, min_dice, min_gain, shift, order)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        source, target = self.keys
        d[source], d[target] = self.check(d[source], d[target])
        return d


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
    plain = x.as_tensor() if isinstance(x, MetaTensor) else x
    box = (slice(None), *(slice(m, n - m) for m, n in zip(margins, x.shape[1:], strict=True)))
    inner = plain[box]
    if spatial_dims == 2 and dims == 3:
        if inner.shape[-1] != 1:
            raise ValueError(
                f"expected a patch of one slice with margin {margin}, got {list(x.shape[1:])} voxels, the slices last"
            )
        inner = inner[..., 0]
    return inner.clone()


class TakePaird(MapTransform):
    """Where a pair of scans takes the place of a simulated one: patches without their margin, see `inner_patch`.

    Args:
        keys: the patches, cut at one place.
        margin: voxels on each side, one number or one per axis of the patch.
        spatial_dims: of the network; 2 drops the last axis.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "target"),
        margin: int | Sequence[int] = 12,
        spatial_dims: int = 3,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.margin, self.spatial_dims = margin, spatial_dims

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = inner_patch(d[key], self.margin, self.spatial_dims)
        return d
