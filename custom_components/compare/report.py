"""The report of a comparison: tables, tests and figures as Markdown and as one HTML page."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from math import isfinite, isnan, nan
from pathlib import Path
from typing import Any

from ..errors import ScanError, reason
from ..figures import loss_curves, mean_intervals, rank_bars, residual_pictures, score_bars, speed_scatter
from ..files import PathLike, atomic_write
from .anova import anova
from .html import html_page
from .paired import paired_tests
from .results import Result
from .sections import Figure, Section, markdown_page
from .statistics import scores_of, within_scan_intervals
from .study import Study
from .tables import (
    LABELS,
    anova_table,
    failure_table,
    method_table,
    metric_label,
    number,
    paired_table,
    rank_table,
    ranks,
    scan_table,
    score_table,
    seconds_and_gain,
)

logger = logging.getLogger(__name__)

RANKED = ("psnr", "ssim")
TESTED = ("psnr", "ssim", "psnr_head", "ssim_head")


class _Writer:
    """Draws figures into the folder of a report; one that cannot be drawn is named in its section."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def figure(
        self,
        section: Section,
        name: str,
        caption: str,
        draw: Callable[..., None],
        *given: Any,
        dark: bool = False,
        **options: Any,
    ) -> None:
        """Call `draw(*given, path=..., **options)` and put the picture into the section."""
        path = self.folder / "figures" / f"{name}.png"
        try:
            draw(*given, path=path, **options)
            section.figures.append(Figure(path, caption, dark))
        except ScanError as error:
            with contextlib.suppress(OSError):
                path.unlink()  # that of an earlier report
            logger.warning("%s", error)
            section.paragraphs.append(f"No figure {name}: {reason(error)}")


def write_report(output_dir: PathLike, results: Sequence[Result], study: Study) -> None:
    """Write `report.md`, `report.html` and `figures/*.png` of a comparison.

    It may be called again as results come in, and with results that are missing.

    Args:
        output_dir: folder of the report.
        results: one per scale factor, scan and method.
        study: what was compared.

    Raises:
        ScanError: when a file cannot be written.
    """
    folder = Path(output_dir)
    writer = _Writer(folder)
    results = [r for r in results if r.method in study.methods and r.scale_factor in study.scale_factors]
    sections = [_introduction(results, study)]
    sections += [_scale_factor(results, study, factor, writer) for factor in study.scale_factors]
    sections += [_ranking(results, study, writer), _statistics(results, study, writer), _speed(results, study, writer)]
    if study.loss_curves:
        training = Section(
            "Training",
            ["Losses with another power p, or reduced in another way, have another unit: compare their course."],
        )
        writer.figure(training, "loss", "Training loss (figure 1 of the p-norm paper).", loss_curves, study.loss_curves)
        sections.append(training)
    failures = failure_table(results)
    if failures:
        sections.append(Section("Failures", tables=[failures]))
    title = f"Comparison of {len(study.methods)} methods on {len({r.scan for r in results})} scans"
    texts = {"report.md": markdown_page(title, sections, folder), "report.html": html_page(title, sections)}
    for name, text in texts.items():
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def _introduction(results: Sequence[Result], study: Study) -> Section:
    factors = ", ".join(f"x{f}" for f in study.scale_factors)
    failed = sum(bool(r.error) for r in results)
    text = (
        f"LR scans were made once from each HR scan by the protocol {study.protocol} at the scale factors {factors}, with "
        f"{f'Rician noise of standard deviation {study.noise_std:g}' if study.noise_std else 'no noise'}; HR is in [0, 1]. "
        "Each method got the same LR file in a process of its own, through its bundle's inference workflow."
    )
    missing = f"{failed} of {len(results)} results are missing; the reasons stand under Failures." if failed else ""
    return Section("", [text, *([missing] if missing else [])], study.command, [method_table(study)])


def _scale_factor(results: Sequence[Result], study: Study, factor: str, writer: _Writer) -> Section:
    section = Section(f"Scale factor x{factor}")
    section.tables = [score_table(results, study, factor, in_head=False)]
    if not all(isnan(r.psnr_head) for r in results):
        section.tables.append(score_table(results, study, factor, in_head=True))
    section.tables.append(scan_table(results, study, factor))
    panels = {}
    for metric in RANKED:
        scores = scores_of(results, factor, metric)
        panels[metric_label(metric)] = {m: scores.get(m, {}) for m in study.rank}
    caption = f"PSNR and SSIM of each scan at x{factor}, higher is better; the axes are cut (figures 2 and 3 of the p-norm paper)."
    writer.figure(section, f"bars_x{factor}", caption, score_bars, panels, methods=tuple(study.methods))
    psnr = scores_of(results, factor, "psnr")
    for scan in list(dict.fromkeys(r.scan for r in results if r.scale_factor == factor))[: study.pictures]:
        captions = {m: f"{number(psnr[m][scan], 2)} dB" for m in study.methods if scan in psnr.get(m, {})}
        writer.figure(
            section,
            f"residuals_x{factor}_{scan}",
            f"{scan} at x{factor}: the truth, the LR scan and each method, a detail, and what is left to the truth; grey is no "
            "error (figures 5 and 6 of the p-norm paper).",
            residual_pictures,
            study.truth_path(factor, scan),
            study.lowres_path(factor, scan),
            {m: study.result_path(factor, m, scan) for m in study.methods},
            captions=captions,
            dark=True,
        )
    return section


def _ranking(results: Sequence[Result], study: Study, writer: _Writer) -> Section:
    points = ranks(results, study, RANKED)
    section = Section("Ranking", tables=[rank_table(points, study)])
    panels = {f"x{f}": {LABELS[m].split()[0]: p for m, (p, _) in given.items()} for f, given in points.items()}
    writer.figure(section, "ranks", "Rank points, fewer are better (figure 4 of the p-norm paper).", rank_bars, panels)
    return section


def _statistics(results: Sequence[Result], study: Study, writer: _Writer) -> Section:
    text = (
        "Paired tests are Wilcoxon's signed-rank test, two-sided, over the scans that both methods finished. Least p is what so "
        "many scans can give at best, 2^(1 - n) for n differences that are not 0. Rank-biserial, from -1 to 1, is the part of the "
        "ranks in favour less the part against; d_z the mean of the differences over their standard deviation."
    )
    section = Section("Statistics", [text])
    methods = list(study.methods)
    pairs = [*((m, study.reference) for m in methods if m != study.reference), *study.pairs]
    analyses = {}
    for metric in TESTED:
        scores = {f: scores_of(results, f, metric) for f in study.scale_factors}
        if metric.endswith("_head") and not any(one for table in scores.values() for one in table.values()):
            continue
        if pairs:
            section.tables.append(paired_table(paired_tests(results, metric, study.scale_factors, pairs), metric))
        analyses[metric] = [anova({f: table}, methods) for f, table in scores.items()]
        if len(scores) > 1:
            analyses[metric].append(anova(scores, methods))
    section.tables.append(anova_table(analyses))
    panels = {}
    for factor in study.scale_factors:
        scores_here = scores_of(results, factor, "psnr")
        present = [m for m in methods if scores_here.get(m)]
        if present:
            means, count = within_scan_intervals(scores_here, present)
            intervals = {m: (d.mean, d.low, d.high) for m, d in means.items()}
            panels[f"x{factor}, {count} scans"] = {m: intervals.get(m, (nan, nan, nan)) for m in methods}
    if panels:
        note = (
            "Mean PSNR and 95 % interval once the level of each scan is taken away (after figure 10 of the DNSP paper)."
        )
        writer.figure(section, "intervals", note, mean_intervals, panels, label="PSNR (dB)", note=note)
    return section


def _speed(results: Sequence[Result], study: Study, writer: _Writer) -> Section:
    section = Section(
        "Speed", ["Seconds are those of one scan from loading to saving, on the machine of this comparison."]
    )
    panels = {f"x{f}": seconds_and_gain(results, study, f) for f in study.scale_factors}
    if any(isfinite(seconds) for panel in panels.values() for seconds, _ in panel.values()):
        label = f"PSNR gain over {study.reference} (dB)"
        writer.figure(section, "speed", f"{label} and seconds per scan.", speed_scatter, panels, label=label)
    return section
