"""Datasets: whole scans one by one, where a bad one does not stop the others, and random patches of cached scans."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import DataLoader, Dataset
from monai.data.utils import no_collation
from torch.utils.data import get_worker_info

from .errors import reason
from .memory import peak_memory, reset_peak_memory


def with_scale_factors(items: Sequence[Mapping[str, Any]], scale_factors: Sequence[Any]) -> list[dict[str, Any]]:
    """Each scan at each scale factor: one item per pair, with the field `scale_factor`."""
    return [{**item, "scale_factor": factor} for item in items for factor in scale_factors]


class ScanDataset(Dataset):
    """Whole scans; one that cannot be loaded becomes an item with the key `error`, its reason in one line.

    In a worker process of a loader an item also gets `loading`: its `seconds`, and `peak_memory` of the worker in bytes.

    Args:
        data: items of `custom_components.scans.find_scans` or `custom_components.splits.training_scans`.
        transform: the preprocessing.
    """

    def __getitem__(self, index: int | slice | Sequence[int]) -> Any:
        if not isinstance(index, int):
            return super().__getitem__(index)
        if get_worker_info() is None:
            return self._item(index)
        reset_peak_memory()
        started = time.perf_counter()
        item = self._item(index)
        return {**item, "loading": {"seconds": time.perf_counter() - started, "peak_memory": peak_memory()}}

    def _item(self, index: int) -> Any:
        try:
            return self._transform(index)
        except Exception as error:  # whatever a file makes a reader raise must not stop the other files
            return {**self.data[index], "error": reason(error)}


class ScanLoader(DataLoader):
    """Scans of a `ScanDataset` one by one, as lists of one item; with workers the next ones are loaded while one is computed.

    Each worker keeps one loaded scan ready, in shared memory (`/dev/shm`; a container may need more of it than it has by default).

    Args:
        dataset: the scans.
        num_workers: processes that load; 0 loads in this one, when a scan is asked for.

    Raises:
        ValueError: unless `num_workers` is a whole number >= 0.
    """

    def __init__(self, dataset: Dataset, num_workers: int = 0) -> None:
        if not isinstance(num_workers, int) or num_workers < 0:
            raise ValueError(f"num_workers must be a whole number >= 0, got {num_workers!r}")
        ahead = {"prefetch_factor": 1} if num_workers else {}
        super().__init__(dataset, num_workers=num_workers, batch_size=1, collate_fn=no_collation, **ahead)


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
