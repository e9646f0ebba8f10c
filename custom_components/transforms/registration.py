"""How well two scans are registered to each other: the grids, the heads, and the anatomy inside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from ..acquisition import SeparableOperator
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


def same_grid(source: MetaTensor, target: MetaTensor) -> bool:
    """Whether two scans `(1, X, Y, Z)` are on one grid: the corners of the target's lie within 0.01 mm of those of the source's."""
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
