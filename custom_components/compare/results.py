"""What a comparison measured: one row per scale factor, scan and method, kept in `results.csv`."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import isnan, nan
from pathlib import Path
from typing import Any

from ..errors import ScanError, one_line
from ..files import PathLike, atomic_write


def factor_name(factor: Any) -> str:
    """Name of a scale factor, `2` or per axis `1x1x3`; three equal ones are one.

    Raises:
        ValueError: when it is not one number or three numbers from 1 on.
    """
    given = [factor] * 3 if isinstance(factor, (int, float, str)) and "x" not in str(factor) else factor
    try:
        values = [float(v) for v in (given.split("x") if isinstance(given, str) else given)]
    except (TypeError, ValueError):
        values = []
    if len(values) != 3 or not all(1 <= v < float("inf") for v in values):
        raise ValueError(f"a scale factor must be one number or 3 numbers >= 1, got {factor!r}")
    names = [f"{v:.10g}" for v in values]
    return names[0] if len(set(names)) == 1 else "x".join(names)


def factor_values(name: str) -> float | list[float]:
    """The number, or the three, that `factor_name` names."""
    values = [float(v) for v in name.split("x")]
    return values[0] if len(values) == 1 else values


@dataclass(frozen=True)
class Result:
    """Scores of one method on one scan at one scale factor.

    Attributes:
        scan: the scan's stem, unique in a study.
        scale_factor: LR voxel size in HR voxels: `2`, or per axis `1x1x3`.
        method: its name in the study.
        psnr, ssim, rmse: over the whole array, dB and 1, for a truth in [0, 1].
        psnr_head, ssim_head, rmse_head: the same inside the head mask.
        seconds: from loading to saving, as the run's summary says.
        peak_memory_gib: resident memory of the process meanwhile.
        error: why there is no result, in one line; the numbers are NaN then.
    """

    scan: str
    scale_factor: str
    method: str
    psnr: float = nan
    ssim: float = nan
    rmse: float = nan
    psnr_head: float = nan
    ssim_head: float = nan
    rmse_head: float = nan
    seconds: float = nan
    peak_memory_gib: float = nan
    error: str = ""


COLUMNS = tuple(f.name for f in fields(Result))
NUMBERS = tuple(f.name for f in fields(Result) if f.type == "float")


def _from_cells(cells: dict[str, str]) -> Result:
    numbers: dict[str, Any] = {name: float(cells[name]) if cells[name] else nan for name in NUMBERS}
    return Result(**{**cells, **numbers})


def read_results(path: PathLike) -> list[Result]:
    """Rows of a `results.csv`, in its order; an empty cell of a number is NaN.

    Raises:
        ScanError: when the file cannot be read or is no such table.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ScanError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {reader.fieldnames}")
            return [_from_cells(row) for row in reader]
    except ScanError:
        raise
    except (OSError, TypeError, ValueError, csv.Error) as error:
        raise ScanError(f"{path}: expected a table of results, got: {one_line(error)}") from error


def write_results(path: PathLike, results: Iterable[Result]) -> None:
    """Write rows as `results.csv`, whole or not at all; NaN becomes an empty cell, other numbers keep all their digits."""
    with atomic_write(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for result in results:
            values = [getattr(result, name) for name in COLUMNS]
            writer.writerow(["" if isinstance(v, float) and isnan(v) else v for v in values])
