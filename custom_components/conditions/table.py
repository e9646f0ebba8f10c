"""The table of an evaluation over many conditions, and where in it a bundle gains least over the spline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..markdown import markdown_table

Condition = tuple[str, float]  # protocol, standard deviation of the noise

METRICS = {"psnr": ("PSNR", 2), "ssim": ("SSIM", 4)}
PARTS = ("spline", "model", "gain", "worst_gain")
COLUMNS = ("protocol", "noise_std", "scale_factor", "scans", *(f"{m}_{part}" for m in METRICS for part in PARTS))


def rows_of(condition: Condition, by_factor: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Rows of `conditions.csv` from those of one evaluation's `metrics_by_factor.csv` (see `EvaluationReport`)."""
    spline = {row["scale_factor"]: row for row in by_factor if row["method"] == "spline"}
    rows = []
    for model in (row for row in by_factor if row["method"] == "model"):
        factor = model["scale_factor"]
        row: dict[str, Any] = dict(zip(COLUMNS, (*condition, factor, int(model["scans"])), strict=False))
        for m in METRICS:
            means = (spline[factor][f"{m}_mean"], model[f"{m}_mean"])
            values = (*means, model[f"{m}_gain"], model[f"{m}_worst_gain"])
            row |= {f"{m}_{part}": float(value) for part, value in zip(PARTS, values, strict=True)}
        rows.append(row)
    return rows


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown, and below them the least gain of any scan; empty without rows."""
    if not rows:
        return ""
    names = [f"{name} {part.replace('_', ' ')}" for name, _ in METRICS.values() for part in PARTS]
    lines = [["protocol", "noise", "factor", "scans", *names]]
    for row in rows:
        cells = [f"{row[f'{m}_{p}']:{'+' * ('gain' in p)}.{d}f}" for m, (_, d) in METRICS.items() for p in PARTS]
        lines.append([row["protocol"], f"{row['noise_std']:g}", row["scale_factor"], str(row["scans"]), *cells])
    text = markdown_table(lines)
    for m, (name, digits) in METRICS.items():
        least = min(rows, key=lambda row: float(row[f"{m}_worst_gain"]))
        where = f"{least['protocol']}, noise {least['noise_std']:g}, factor {least['scale_factor']}"
        text += f"\nLeast gain in {name} of any scan: {least[f'{m}_worst_gain']:+.{digits}f} ({where}).\n"
    return text
