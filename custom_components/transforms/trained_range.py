"""Is a scan like those of the training? If not, it is done all the same, with a warning that says so."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from ..tensors import plain
from .intensity import percentile

FOREGROUND = 0.02  # of the robust [0, 1] scale: above the empty background and most of the noise of air
PERCENTILES = (5, 25, 50, 75, 95)
FIELDS = ("scale_factor", "spacing", "intensity")

Range = Sequence[float]


def intensity_profile(img: torch.Tensor) -> dict[str, float]:
    """Intensity distribution of a robustly scaled scan `(1, *spatial)` in six numbers.

    `foreground` is the share of voxels above 0.02; `"5"`, `"25"`, `"50"`, `"75"`, `"95"` are percentiles of them.
    """
    x = plain(img)
    foreground = x[x > FOREGROUND]
    share = foreground.numel() / x.numel()
    return {"foreground": share, **{str(q): percentile(foreground, q) if share else 0.0 for q in PERCENTILES}}


def measure_intensity_limits(images: Iterable[torch.Tensor], margin: float = 0.1) -> dict[str, list[float]]:
    """Range of each number of `intensity_profile` over the LR scans of a training, a block for `CheckTrainedRanged`.

    Args:
        images: robustly scaled scans `(1, *spatial)`; an iterator, so that one at a time is in memory.
        margin: widens each range on both sides, in units of the [0, 1] scale: a few scans do not show all.

    Raises:
        ValueError: when there are no scans or the margin is negative.
    """
    profiles = [intensity_profile(img) for img in images]
    if not profiles or margin < 0:
        raise ValueError(f"expected scans and margin >= 0, got {len(profiles)} scans and margin {margin}")
    limits = {}
    for name in profiles[0]:
        values = [profile[name] for profile in profiles]
        limits[name] = [round(max(min(values) - margin, 0.0), 3), round(max(values) + margin, 3)]
    return limits


def _listed(values: Iterable[float]) -> str:
    return " x ".join(f"{v:.3g}" for v in values)


def trained_range_warnings(image: MetaTensor, lowres: MetaTensor, limits: Mapping[str, Any]) -> list[str]:
    """What of a scan is outside the range of the training, one sentence each; empty when nothing is.

    A grid has a whole number of voxels: half a HR voxel over the extent is no reason to warn.

    Args:
        image: the scan on the HR grid, for its shape and spacing.
        lowres: the robustly scaled LR scan.
        limits: any of `scale_factor` and `spacing` (of the HR grid, mm), each `[low, high]` for every axis, and
            `intensity`, a dictionary of such ranges as `measure_intensity_limits` gives it.
    """
    shape = image.shape[1:]
    slack = [0.5 / n + 1e-6 for n in shape]
    factors = [n / m for n, m in zip(shape, lowres.shape[1:], strict=True)]
    spacing = [float(v) for v in image.pixdim]
    found = []
    for name, label, unit, values in (
        ("scale_factor", "scale factor", "", factors),
        ("spacing", "target spacing", " mm", spacing),
    ):
        if name not in limits:
            continue
        low, high = limits[name]
        if any(v * (1 + s) < low or v * (1 - s) > high for v, s in zip(values, slack, strict=True)):
            found.append(f"{label} {_listed(values)}{unit} is outside the trained range of {low:g} to {high:g}{unit}")
    if not limits.get("intensity"):
        return found
    profile = intensity_profile(lowres)
    odd = []
    for name, (low, high) in limits["intensity"].items():
        value = profile[str(name)]
        if not low <= value <= high:
            label = "share of foreground" if name == "foreground" else f"percentile {name} of the foreground"
            odd.append(f"{label} {value:.2f}, trained {low:.2f} to {high:.2f}")
    if odd:
        found.append(f"intensity distribution is outside the trained range: {'; '.join(odd)}")
    return found


def _check_limits(limits: Mapping[str, Any]) -> None:
    unknown = sorted(set(limits) - set(FIELDS))
    if unknown:
        raise ValueError(f"limits must be among {FIELDS}, got {unknown}")
    names = {str(name) for name in limits.get("intensity", {})}
    known = {"foreground", *map(str, PERCENTILES)}
    if names - known:
        raise ValueError(f"limits of intensity must be among {sorted(known)}, got {sorted(names - known)}")
    ranges = [limits[name] for name in FIELDS[:2] if name in limits] + list(limits.get("intensity", {}).values())
    for pair in ranges:
        if len(pair) != 2 or not pair[0] <= pair[1]:
            raise ValueError(f"each limit must be a range [low, high], got {pair}")


class CheckTrainedRanged(MapTransform):
    """Add the sentences of `trained_range_warnings` to the item's list under `warnings`.

    Args:
        keys: the scan on the HR grid.
        lowres_key: the robustly scaled LR scan.
        limits: see `trained_range_warnings`; empty for no check.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError: on an unknown name in the limits, or a range that is none.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        lowres_key: str = "lowres",
        limits: Mapping[str, Any] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.lowres_key, self.limits = lowres_key, dict(limits or {})
        _check_limits(self.limits)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        d["warnings"] = list(d.get("warnings", []))
        for key in self.key_iterator(d):
            d["warnings"] += trained_range_warnings(d[key], d[self.lowres_key], self.limits)
        return d
