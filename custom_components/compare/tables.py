"""The tables of a comparison's report as cells of text, for Markdown and HTML alike."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from .anova import Anova
from .paired import PairedTest
from .results import Result
from .statistics import (
    CONFIDENCE,
    Difference,
    best,
    common_scans,
    difference,
    mean_and_deviation,
    rank_points,
    scores_of,
)
from .study import Study

LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "rmse": "RMSE"}
DIGITS = {"psnr": 2, "ssim": 4, "rmse": 4}
NONE = "-"


class Cell(NamedTuple):
    """Text of a cell, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass
class Table:
    """A table with what is to be said about it.

    Attributes:
        title: one line; empty where the section's says it.
        rows: of cells, the first the head.
        notes: sentences that stand below it.
    """

    title: str
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)


def metric_label(metric: str) -> str:
    """`psnr_head` -> `PSNR (dB), head`."""
    return LABELS[metric.removesuffix("_head")] + (", head" if metric.endswith("_head") else "")


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number with so many digits after the point; `-` for NaN."""
    return NONE if isnan(value) else f"{value:{'+' if sign else ''}.{digits}f}"


def p_text(p: float) -> str:
    """A probability to two digits; `-` for NaN."""
    return NONE if isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def interval(given: Difference, digits: int) -> str:
    """A mean difference and its interval: `+0.52 [+0.31, +0.73]`."""
    text = number(given.mean, digits, True)
    return text if isnan(given.low) else f"{text} [{given.low:+.{digits}f}, {given.high:+.{digits}f}]"


def _row(*texts: str) -> list[Cell]:
    return [Cell(t) for t in texts]


def score_table(results: Sequence[Result], study: Study, factor: str, in_head: bool) -> Table:
    """Methods as rows: each metric with its deviation, the gain over the reference, seconds and memory."""
    metrics = [m + ("_head" if in_head else "") for m in LABELS]
    tables = {m: scores_of(results, factor, m) for m in (*metrics, "seconds", "peak_memory_gib")}
    scans = {r.scan for r in results if r.scale_factor == factor}
    count = {m: len(tables[metrics[0]].get(m, {})) for m in study.methods}
    most = max(count.values(), default=0)
    means = {
        m: {name: mean_and_deviation(t.get(name, {}).values()) for name in study.methods} for m, t in tables.items()
    }
    winners = {m: best({name: means[m][name][0] for name in study.methods if count[name] == most}, m) for m in metrics}
    head = ["method", "scans"]
    for metric in metrics:
        label = LABELS[metric.removesuffix("_head")]
        head += [label] if metric.startswith("rmse") else [label, f"gain over {study.reference}"]
    rows = [_row(*head, *([] if in_head else ["seconds", "memory (GiB)"]))]
    for name in study.methods:
        row = _row(name, f"{count[name]} of {len(scans)}")
        for metric in metrics:
            digits = DIGITS[metric.removesuffix("_head")]
            mean, deviation = means[metric][name]
            spread = "" if isnan(deviation) else f" \u00b1 {deviation:.{digits}f}"
            row.append(Cell(number(mean, digits) + spread, name in winners[metric]))
            if not metric.startswith("rmse"):
                gain = (
                    NONE
                    if name == study.reference
                    else interval(difference(tables[metric], name, study.reference), digits)
                )
                row.append(Cell(gain))
        if not in_head:
            row += _row(number(means["seconds"][name][0], 1), number(means["peak_memory_gib"][name][0], 2))
        rows.append(row)
    notes = []
    if not in_head:
        notes.append(
            "Mean \u00b1 standard deviation of the sample over the scans; best means in bold. Gain: mean of the paired differences "
            f"from {study.reference} on the scans that both finished, with the {100 * CONFIDENCE:g} % interval by Student's t."
        )
    if min(count.values(), default=0) < most:
        notes.append(
            "Not every method finished every scan: those with fewer scans are left out of the choice of the best."
        )
    return Table("Inside the head" if in_head else "Whole array", rows, notes)


def scan_table(results: Sequence[Result], study: Study, factor: str, metric: str = "psnr") -> Table:
    """A row per scan, a column per method."""
    scores = scores_of(results, factor, metric)
    digits = DIGITS[metric.removesuffix("_head")]
    rows = [_row("scan", *study.methods)]
    for scan in dict.fromkeys(r.scan for r in results if r.scale_factor == factor):
        values = {m: scores.get(m, {}).get(scan, nan) for m in study.methods}
        winners = best(values, metric)
        rows.append([Cell(scan), *(Cell(number(v, digits), m in winners) for m, v in values.items())])
    return Table(f"{metric_label(metric)} per scan", rows)


def ranks(results: Sequence[Result], study: Study, metrics: Sequence[str] = ("psnr", "ssim")) -> dict[str, Any]:
    """Scale factor -> metric -> the points of the ranked methods and the number of scans that they come from."""
    return {
        f: {m: rank_points(scores_of(results, f, m), study.rank, m.startswith("rmse")) for m in metrics}
        for f in study.scale_factors
    }


def rank_table(points: Mapping[str, Mapping[str, tuple[Mapping[str, float], int]]], study: Study) -> Table:
    """Rank points of `ranks`: a row per method, a column per scale factor and metric."""
    columns = {(f, m): given for f, metrics in points.items() for m, given in metrics.items()}
    rows = [_row("method", *(f"x{f} {LABELS[m].split()[0]}" for f, m in columns))]
    winners = {key: best(given[0], "rmse") for key, given in columns.items()}
    for name in study.rank:
        cells = (Cell(NONE if isnan(p[name]) else f"{p[name]:g}", name in winners[k]) for k, (p, _) in columns.items())
        rows.append([Cell(name), *cells])
    counts = ", ".join(f"x{f} {LABELS[m].split()[0]} {n}" for (f, m), (_, n) in columns.items())
    note = (
        f"Each scan gives its methods points from 1 (best) to {len(study.rank)}; equal scores share the mean of their places. Sums "
        f"over the scans that all of these methods finished ({counts}); fewer points are better."
    )
    return Table("Rank points", rows, [note])


def paired_table(tests: Sequence[PairedTest], metric: str) -> Table:
    """Paired tests of one metric."""
    digits = DIGITS[metric.removesuffix("_head")]
    head = ("factor", "method", "against", "scans", "difference", "p", "p (Holm)", "least p", "rank-biserial", "d_z")
    rows = [_row(*head)]
    reasons: dict[str, list[str]] = {}
    for test in tests:
        scale, pair = f"x{test.scale_factor}", (test.first, test.second)
        values = (p_text(test.p), p_text(test.p_holm), p_text(test.p_floor))
        effects = (number(test.rank_biserial, 2, True), number(test.cohens_dz, 2, True))
        rows.append(_row(scale, *pair, str(test.gain.scans), interval(test.gain, digits), *values, *effects))
        if test.reason:
            reasons.setdefault(test.reason, []).append(f"{test.first} against {test.second} at {scale}")
    notes = [f"Holm's correction is over the {sum(isfinite(t.p) for t in tests)} tests of this table."]
    notes += [f"No test ({reason}): {'; '.join(which)}." for reason, which in reasons.items()]
    return Table(metric_label(metric), rows, notes)


def anova_table(made: Mapping[str, Sequence[Anova]]) -> Table:
    """Analyses of variance, metric -> analyses."""
    rows = [_row("metric", "factor", "effect", "df", "F", "p", "partial eta\u00b2", "scans", "methods")]
    notes = [
        "Two-way analysis of variance with the scan as block: per scale factor method and scan without replication, over all of "
        "them method x scale factor. Only scans that all the methods finished; df: of the effect and of the residual. It takes the "
        "differences between any two methods as equally variable, which the paired tests do not."
    ]
    for metric, analyses in made.items():
        for one in analyses:
            where = ", ".join(f"x{f}" for f in one.scale_factors)
            counts = (str(one.scans), str(len(one.methods)))
            for e in one.effects:
                values = (f"{e.df}, {e.df_residual}", f"{e.f:.4g}", p_text(e.p), f"{e.partial_eta_squared:.3f}")
                rows.append(_row(metric_label(metric), where, e.name, *values, *counts))
            if not one.effects:
                rows.append(_row(metric_label(metric), where, "method", *[NONE] * 4, *counts))
                notes.append(f"No analysis of {metric_label(metric)} at {where}: {one.reason}.")
    return Table("Analysis of variance", rows, notes)


def failure_table(results: Sequence[Result]) -> Table | None:
    """Scans that a method did not finish, and why; None when there are none."""
    failed = [r for r in results if r.error]
    rows = [
        _row("factor", "method", "scan", "reason"),
        *(_row(f"x{r.scale_factor}", r.method, r.scan, r.error) for r in failed),
    ]
    return Table("", rows) if failed else None


def method_table(study: Study) -> Table:
    """What each method is made of."""
    rows = [_row("method", "bundle", "overlays", "options")]
    for name, method in study.methods.items():
        options = [f"{k} = {_value(v)}" for k, v in method.options.items()]
        options += [f"x{f}: {k} = {_value(v)}" for f, given in method.by_scale.items() for k, v in given.items()]
        overlays = ", ".join(Path(p).name for p in method.overlays)
        rows.append(_row(name, Path(method.bundle).name, overlays or NONE, "; ".join(options) or NONE))
    return Table("Methods", rows, ["Files are given by their names."])


def _value(value: Any) -> str:
    return os.path.basename(value) if isinstance(value, str) and os.path.isabs(value) else str(value)


def seconds_and_gain(results: Sequence[Result], study: Study, factor: str) -> dict[str, tuple[float, float]]:
    """Method -> mean seconds and PSNR gain over the reference, on the scans that both finished."""
    scores, seconds = scores_of(results, factor, "psnr"), scores_of(results, factor, "seconds")
    found = {}
    for name in study.methods:
        scans = [s for s in common_scans(scores, [name, study.reference]) if s in seconds[name]]
        mean = fmean(seconds[name][s] for s in scans) if scans else nan
        found[name] = (mean, difference(scores, name, study.reference).mean)
    return found
