"""Run the evaluations of a bundle that are missing, each in a process of its own, and keep their table."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..compare.definition import sha256
from ..compare.notes import read_json, write_json
from ..compare.process import last_error, only_one
from ..compare.study import ROOT
from ..files import atomic_write
from .table import COLUMNS, Condition, report, rows_of

POLL = 0.5  # seconds between two looks at the processes
NOTES = "made_by.json"


@dataclass
class Conditions:
    """Evaluations of one bundle, a folder each.

    Attributes:
        bundle: folder of the bundle, whose train.json and evaluate.json are run.
        output_dir: folder of all that comes out.
        conditions: protocols with their noise.
        ids: config ids for each evaluation.
        known: whether the bundle is told protocol and noise, by `known_acquisition` and `known_noise_std`.
        options: further arguments of `python -m monai.bundle run`.
    """

    bundle: Path
    output_dir: Path
    conditions: Sequence[Condition]
    ids: Mapping[str, Any] = field(default_factory=dict)
    known: bool = False
    options: Sequence[str] = ()

    def folder(self, condition: Condition) -> Path:
        """Folder of a condition's evaluation."""
        protocol, noise = condition
        return self.output_dir / f"{protocol}_{noise:g}"

    def definition(self, condition: Condition) -> dict[str, Any]:
        """What an evaluation is: the config laid over the bundle's, the options and the weights."""
        protocol, noise = condition
        given = {"bundle_root": str(self.bundle), "checkpoint": str(self.bundle / "models" / "model.pt"), **self.ids}
        given |= {"val_protocol": protocol, "val_noise_std": noise, "output_dir": str(self.folder(condition))}
        given |= {"known_acquisition": protocol, "known_noise_std": noise} if self.known else {}
        weights = Path(given["checkpoint"])
        digest = sha256(weights) if weights.is_file() else None
        made: dict[str, Any] = json.loads(
            json.dumps({"config": given, "options": list(self.options), "weights": digest})
        )
        return made

    def command(self, condition: Condition) -> list[str]:
        """The command of an evaluation."""
        files = [self.bundle / "configs" / f"{name}.json" for name in ("train", "evaluate")]
        configs = [str(file) for file in (*files, self.folder(condition) / "run.json")]
        return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(configs), *self.options]

    def finished(self, condition: Condition) -> bool:
        """Whether an evaluation is there, whole and as it is asked for."""
        notes = read_json(self.folder(condition) / NOTES)
        return bool(notes.get("finished")) and notes.get("definition") == self.definition(condition)

    def _start(self, condition: Condition) -> subprocess.Popen[bytes]:
        folder, made = self.folder(condition), self.definition(condition)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(folder / "run.json", made["config"])
        write_json(folder / NOTES, {"definition": made, "finished": False})
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with (folder / "log.txt").open("wb") as log:
            return subprocess.Popen(
                self.command(condition),
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _tell(self, bar: Any) -> None:
        """Show how many scans are evaluated, a scan at each scale factor."""
        files = [self.folder(condition) / "metrics.csv" for condition in self.conditions]
        text = f"{sum(file.read_text('utf-8').count(',spline,') for file in files if file.is_file())} scans"
        if text != bar.postfix:  # a log would get a line for each
            bar.set_postfix_str(text)

    def _end(self, condition: Condition, code: int) -> str:
        """Why an evaluation failed; empty when it did not."""
        folder = self.folder(condition)
        if not code:
            write_json(folder / NOTES, {**read_json(folder / NOTES), "finished": True})
            return ""
        log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        return f"ended with exit code {code}: {last_error(log)}"

    def rows(self) -> list[dict[str, Any]]:
        """Rows of all evaluations that are there as they are asked for, also of those in which a scan failed."""
        found = []
        for condition in self.conditions:
            file = self.folder(condition) / "metrics_by_factor.csv"
            made = read_json(self.folder(condition) / NOTES).get("definition")
            if file.is_file() and made == self.definition(condition):
                with file.open(newline="", encoding="utf-8") as opened:
                    found += rows_of(condition, list(csv.DictReader(opened)))
        return found

    def write(self) -> str:
        """Write `conditions.csv` and `conditions.md`; the text of the latter."""
        rows = self.rows()
        text = report(rows)
        with (
            atomic_write(self.output_dir / "conditions.csv") as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        with atomic_write(self.output_dir / "conditions.md") as partial:
            partial.write_text(text, encoding="utf-8")
        return text

    def run(self, jobs: int = 1) -> dict[Condition, str]:
        """Compute what is missing, so many evaluations at a time, and write the table; the reason for each that failed.

        Raises:
            ScanError: when another run works in the folder, or it cannot be written.
        """
        failed: dict[Condition, str] = {}
        with only_one(self.output_dir):
            waiting = [condition for condition in self.conditions if not self.finished(condition)]
            running: dict[Condition, subprocess.Popen[bytes]] = {}
            done = len(self.conditions) - len(waiting)
            try:
                with tqdm(total=len(self.conditions), initial=done, unit="condition") as bar:
                    while waiting or running:
                        for condition in waiting[: jobs - len(running)]:
                            running[condition] = self._start(condition)
                        waiting = [condition for condition in waiting if condition not in running]
                        self._tell(bar)
                        time.sleep(POLL)
                        for condition in [c for c, process in running.items() if process.poll() is not None]:
                            reason = self._end(condition, running.pop(condition).returncode)
                            failed |= {condition: reason} if reason else {}
                            self.write()
                            bar.update()
            finally:
                for process in running.values():  # we are being stopped
                    process.terminate()
                    process.wait()
            self.write()
        return failed
