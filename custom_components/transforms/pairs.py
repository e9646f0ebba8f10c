"""Pairs of registered scans: bring both onto one grid, make sure that they are a pair, and cut training pairs of patches."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, SpatialResample, Transform

from ..errors import ScanError
from ..tensors import plain
from .patch import inner_patch
from .registration import covered_share, dice, head_mask, registration_gain, same_grid


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

        if not same_grid(source, target):
            need("share of the target's field of view that is covered", covered_share(source, target), self.min_overlap)
            moved = self.resample(MetaTensor(source.as_tensor(), affine=source.affine), target.affine, target.shape[1:])
            source = MetaTensor(plain(moved).float(), meta={**source.meta, "affine": target.affine.clone()})
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
