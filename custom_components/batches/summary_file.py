"""The file `summary.csv`: the record of what was done in a folder, which several runs may change at the same time."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import PathLike, atomic_write, locked

NAME = "summary.csv"
COLUMNS = (
    *("file", "status", "output", "uncertainty", "shape_in", "shape_out", "spacing_in", "spacing_out", "seconds"),
    *("peak_memory_gib", "peak_gpu_memory_gib", "consistency_error", "warnings", "error", "fingerprint"),
)


def read_rows(path: PathLike) -> list[dict[str, str]]:
    """Lines of a summary, each with all `COLUMNS`; none where there is no such file, or another one under its name."""
    with (
        contextlib.suppress(OSError, csv.Error),
        Path(path).open(newline="", encoding="utf-8", errors="replace") as file,
    ):
        return [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(file) if row.get("file")]
    return []


def merge_rows(path: PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to a summary; those of other scans stay, and the file is replaced as a whole.

    A line takes the place of the one of its `file`. A line of another scan with an output of the same name goes, as that output is
    no longer there. Processes that do so at the same time wait for each other.

    Raises:
        ScanError: when the file cannot be written.
    """
    with locked(path):
        merged: dict[str, Mapping[str, Any]] = {row["file"]: row for row in read_rows(path)}
        for row in rows:
            output = Path(row.get("output") or "").name
            for file in [f for f, old in merged.items() if f != row["file"] and output]:
                if Path(merged[file].get("output") or "").name == output:
                    del merged[file]
            merged[row["file"]] = row
        with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.DictWriter(opened, COLUMNS)
            writer.writeheader()
            writer.writerows(merged.values())
