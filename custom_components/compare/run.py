"""Run the methods of a study on the scans that lack a result, each in a process of its own, and score what comes out."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import __version__
from ..acquisition import PROTOCOLS
from ..batches.summary_file import NAME, read_rows
from ..errors import reason
from ..scans import scan_stem
from .definition import config_files, definition, overlay, sha256
from .notes import read_json, write_json
from .process import last_error, only_one, start
from .results import Result, read_results, write_results
from .score import prepare_scan, score_file
from .study import Study

NOTES = "method.json"  # in a method's folder: what it is, and the time and memory of each scan


class Comparison:
    """A study that is being made: it computes what is missing, keeps `results.csv` up to date, and can be killed at any time.

    A result is computed again when its scan, the protocol or the noise changed, when its method's definition changed, or when it
    failed before; a result without a row is only scored.

    Args:
        study: what to compare.
        keep_open: file descriptor of the study's lock; see `start`.
    """

    def __init__(self, study: Study, keep_open: int) -> None:
        self.study, self.keep_open = study, keep_open
        self.path = study.output_dir / "results.csv"
        self.rows: dict[tuple[str, str, str], Result] = {}
        for row in read_results(self.path) if self.path.exists() else []:
            self.rows[row.scale_factor, row.scan, row.method] = row

    def results(self) -> list[Result]:
        """Rows of the study so far, in its order."""
        study = self.study
        keys = ((f, s["stem"], m) for f in study.scale_factors for s in study.scans for m in study.methods)
        return [self.rows[key] for key in keys if key in self.rows]

    def _add(self, row: Result) -> None:
        self.rows[row.scale_factor, row.scan, row.method] = row
        write_results(self.path, self.results())

    def _forget(self, factor: str, files: Sequence[Path], scan: str | None = None, method: str | None = None) -> None:
        """Drop the rows of a scan or a method at a scale factor, then their files: killed between, files alone are left."""
        old = [
            k for k in self.rows if k[0] == factor and (scan is None or k[1] == scan) and (not method or k[2] == method)
        ]
        for key in old:
            del self.rows[key]
        if old:
            write_results(self.path, self.results())
        for file in files:
            file.unlink(missing_ok=True)

    def prepare(self, factor: str, item: Mapping[str, str]) -> None:
        """Make the LR scan, the truth and the head mask of a HR scan, where they are not there or were made otherwise."""
        study, scan = self.study, item["stem"]
        notes, protocol = study.folder(factor) / "scans.json", repr(PROTOCOLS[study.protocol])
        own: dict[str, Any] = {
            "sha256": sha256(Path(item["image"])),
            "protocol": protocol,
            "noise_std": study.noise_std,
        }
        own |= {"seed": study.seed if study.noise_std else None, "version": __version__}
        files = [p(factor, scan) for p in (study.truth_path, study.head_path, study.lowres_path)]
        if read_json(notes).get(scan) == own and all(p.is_file() for p in files):
            return
        self._forget(factor, list(study.folder(factor).glob(f"*/{glob.escape(scan)}_sr.nii.gz")), scan=scan)
        write_json(notes, {k: v for k, v in read_json(notes).items() if k != scan})
        prepare_scan(study, factor, item["image"], scan)
        write_json(notes, {**read_json(notes), scan: own})

    def refuse(self, factor: str, scan: str, why: str) -> None:
        """Note for each method that a HR scan cannot be used."""
        for name in self.study.methods:
            self._add(Result(scan, factor, name, error=why))

    def renew(self, factor: str, name: str) -> None:
        """Let go of what a method made when it was another one.

        Raises:
            ValueError, ScanError: as `definition`.
        """
        folder, wanted = self.study.folder(factor, name), definition(self.study, factor, name)
        if read_json(folder / NOTES).get("definition") != wanted:
            self._forget(factor, [*folder.glob("*_sr.*"), folder / NOTES, folder / NAME], method=name)
            write_json(folder / NOTES, {"definition": wanted, "scans": {}})

    def run(self, factor: str, name: str, scans: Sequence[str], tell: Callable[[str], None]) -> Iterator[Result]:
        """Rows of a method on scans with a LR scan, the new ones added to `results.csv`."""
        study, folder = self.study, self.study.folder(factor, name)
        try:
            self.renew(factor, name)
        except ValueError as error:  # it was right at the start: a file has gone since
            for scan in scans:
                self._add(Result(scan, factor, name, error=reason(error)))
                yield self.rows[factor, scan, name]
            return
        for scan in scans:
            row = self.rows.get((factor, scan, name))
            if row is not None and (row.error or isnan(row.psnr)):
                self._forget(factor, [study.result_path(factor, name, scan)], scan, name)
        missing = [s for s in scans if not study.result_path(factor, name, s).is_file()]
        errors = self._compute(factor, name, missing, tell) if missing else {}
        told = self._harvest(folder)
        for scan in scans:
            if (factor, scan, name) not in self.rows or scan in missing:
                tell(f"x{factor}, {name}, scoring")
                self._add(self._row(factor, name, scan, told.get(scan, {}), errors))
            yield self.rows[factor, scan, name]

    def _row(self, factor: str, name: str, scan: str, told: Mapping[str, float], errors: Mapping[str, str]) -> Result:
        if scan in errors:
            return Result(scan, factor, name, error=errors[scan])
        try:
            numbers: dict[str, Any] = {**score_file(self.study, factor, name, scan), **told}
            return Result(scan, factor, name, **numbers)
        except Exception as error:  # whatever a damaged result raises must not stop the others
            return Result(scan, factor, name, error=reason(error))

    def _compute(self, factor: str, name: str, scans: Sequence[str], tell: Callable[[str], None]) -> dict[str, str]:
        """Run a method on scans; the reason for each that has no result then."""
        study, folder = self.study, self.study.folder(factor, name)
        self._harvest(folder)  # of a run before that was killed: the next one writes a summary of its own
        (folder / NAME).unlink(missing_ok=True)
        write_json(folder / "run.json", overlay(study, factor, name, scans))
        configs = str([*config_files(study.methods[name]), str(folder / "run.json")])
        log = folder / "log.txt"
        before = log.stat().st_size if log.exists() else 0
        tell(f"x{factor}, {name}, 0 of {len(scans)} computed")
        code = start(
            ["run", "--config_file", configs, "--bundle_root", str(study.methods[name].bundle)],
            log,
            self.keep_open,
            lambda: tell(f"x{factor}, {name}, {len(_summary(folder))} of {len(scans)} computed"),
        )
        with log.open("rb") as file:
            file.seek(before)
            printed = file.read().decode("utf-8", "replace")
        ended = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}: {last_error(printed)}"
        reasons = {scan: row["error"] for scan, row in _summary(folder).items() if row["error"]}
        lost = [s for s in scans if not study.result_path(factor, name, s).is_file()]
        return {scan: reasons.get(scan, ended) for scan in lost}

    def _harvest(self, folder: Path) -> dict[str, dict[str, float]]:
        """Seconds and memory of each scan that was ever done here: of the last run's summary, and of runs before."""
        notes = read_json(folder / NOTES)
        done = {scan: row for scan, row in _summary(folder).items() if row["status"] == "ok"}
        columns = ("seconds", "peak_memory_gib")
        told = {scan: {c: float(row[c]) for c in columns if row.get(c)} for scan, row in done.items()}
        scans: dict[str, dict[str, float]] = {**notes.get("scans", {}), **told}
        if scans != notes.get("scans"):
            write_json(folder / NOTES, {**notes, "scans": scans})
        return scans


def _summary(folder: Path) -> dict[str, dict[str, str]]:
    """Lines of the `summary.csv` in a folder by scan."""
    return {scan_stem(row["file"]): row for row in read_rows(folder / NAME)}


def compare(study: Study) -> list[Result]:
    """Compute and score what a study lacks, then write its report; the rows of `results.csv`.

    A scan or a method that fails leaves rows with the reason, and the others go on.

    Raises:
        ValueError, ScanError: before anything is computed, when a method cannot be run; when the folder cannot be written.
    """
    pairs = [(factor, name) for factor in study.scale_factors for name in study.methods]
    for factor, name in pairs:
        definition(study, factor, name)
    with only_one(study.output_dir) as lock:
        comparison = Comparison(study, lock)
        for factor, name in pairs:  # at once, so that the table never holds what a method was before
            comparison.renew(factor, name)
        with tqdm(total=len(pairs) * len(study.scans), unit="result") as bar:
            ready = {factor: _prepared(comparison, factor, bar) for factor in study.scale_factors}
            for factor, name in pairs:
                for _ in comparison.run(factor, name, ready[factor], partial(_tell, bar)):
                    bar.update()
        results = comparison.results()
        write_results(comparison.path, results)
        from .report import write_report

        write_report(study.output_dir, results, study)
    return results


def _tell(bar: Any, text: str) -> None:
    if bar.desc != f"{text}: ":  # a log would get a line for each
        bar.set_description(text)


def _prepared(comparison: Comparison, factor: str, bar: Any) -> list[str]:
    """Stems of the scans that are ready for the methods; the others get their rows."""
    ready = []
    for item in comparison.study.scans:
        _tell(bar, f"x{factor}, LR scan of {item['stem']}")
        try:
            comparison.prepare(factor, item)
            ready.append(item["stem"])
        except Exception as error:  # one bad scan must not stop the others
            comparison.refuse(factor, item["stem"], reason(error))
            bar.update(len(comparison.study.methods))
    return ready
