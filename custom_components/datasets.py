"""Datasets: whole scans one by one, where a bad one does not stop the others, and random patches of cached scans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import Dataset

from .errors import reason


def with_scale_factors(items: Sequence[Mapping[str, Any]], scale_factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Each scan at each scale factor: one item per pair, with the field `scale_factor`."""
    return [{**item, "scale_factor": factor} for item in items for factor in scale_factors]


class ScanDataset(Dataset):
    """Whole scans; one that cannot be loaded becomes an item with the key `error`, its reason in one line.

    Args:
        data: items of `custom_components.scans.find_scans` or `custom_components.splits.training_scans`.
        transform: the preprocessing.
    """

    def __getitem__(self, index: int | slice | Sequence[int]) -> Any:
        if not isinstance(index, int):
            return super().__getitem__(index)
        try:
            return self._transform(index)
        except Exception as error:  # whatever a file makes a reader raise must not stop the other files
            return {**self.data[index], "error": reason(error)}


class RandomPatches(Dataset):
    """`patches_per_scan` random patches of each scan in an epoch.

    Args:
        data: loaded scans, say a `monai.data.CacheDataset`.
        transform: cuts and degrades one patch; its random part is drawn anew for each sample.
        patches_per_scan: samples per scan in an epoch; 3200 in Pham 2019.

    Raises:
        ValueError: when there are no scans or patches.
    """

    def __init__(
        self, data: Sequence[Mapping[str, Any]], transform: Callable[[Any], Any], patches_per_scan: int = 3200
    ) -> None:
        if len(data) < 1 or patches_per_scan < 1:
            raise ValueError(f"expected scans and patches_per_scan >= 1, got {len(data)} and {patches_per_scan}")
        super().__init__(data, transform)
        self.patches_per_scan = patches_per_scan

    def __len__(self) -> int:
        return len(self.data) * self.patches_per_scan

    def _transform(self, index: int) -> Any:
        return self.transform(self.data[index % len(self.data)])
