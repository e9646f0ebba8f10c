"""A run of a bundle: the command of the README in a process of its own, its progress, its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..batches.summary_file import NAME, read_rows
from ..compare.process import last_error
from ..compare.study import ROOT
from .bundles import Bundle
from .command import Options, command

_BAR = re.compile(r"(slices|tiles):[^|\r\n]*\|[^|\r\n]*\| *(\d+)/(\d+)")
_TAIL = 4096  # bytes of the log that hold the newest bar
_GRACE = 5.0  # seconds between asking a process to end and ending it


class Progress(NamedTuple):
    """Where a run is: so many of so many slices or tiles; `total` 0 before and after them."""

    done: int
    total: int
    unit: str


def progress_in(log: str) -> Progress:
    """The newest bar of the inferer in what a run has printed."""
    bars = _BAR.findall(log)
    if not bars:
        return Progress(0, 0, "")
    unit, done, total = bars[-1]
    return Progress(int(done), int(total), unit)


class Run:
    """A bundle at work on a scan, in a process of its own that takes nothing down with it.

    Args:
        bundle: the bundle.
        scan: file, or folder of a DICOM series.
        output_dir: folder of the results; beside it `run.log` gets what is printed.
        options: what was chosen.
        keep_open: file descriptors that the process inherits, such as the lock of a folder that must outlive it.
    """

    def __init__(
        self, bundle: Bundle, scan: Path, output_dir: Path, options: Options, keep_open: Sequence[int] = ()
    ) -> None:
        self.scan, self.output_dir, self.stopped = scan, output_dir, False
        output_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.log = output_dir.parent / "run.log"
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("wb") as output:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, *command(bundle, scan, output_dir, options)],
                cwd=output_dir.parent,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=keep_open,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the server, which ends the run
            )

    def running(self) -> bool:
        """Whether it goes on."""
        return self.process.poll() is None

    def progress(self) -> Progress:
        """Where it is, by the bar that the inferer draws."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL, 0))
            return progress_in(file.read().decode(errors="replace"))
        return Progress(0, 0, "")

    def stop(self) -> None:
        """End it, if need be by force, with all processes that it started."""
        self.stopped = self.stopped or self.running()
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.running():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_GRACE)

    def row(self) -> dict[str, str]:
        """The scan's line of `summary.csv`, empty where there is none."""
        return next(iter(read_rows(self.output_dir / NAME)), {})

    def error(self) -> str:
        """After the end, why there is no result: the command's own line, without the scan's folder; empty where there is one."""
        row, code = self.row(), self.process.poll()
        if self.stopped:
            return "stopped"
        if row.get("status") == "ok" and code == 0:
            return ""
        if row.get("error"):
            return f"{self.scan.name}: {row['error']}".replace(f"{self.scan.parent}/", "")
        if code is not None and code < 0:
            return f"{self.scan.name}: expected a result, got signal {-code}: was there too little memory?"
        return last_error(self.log.read_text(encoding="utf-8", errors="replace")).replace(f"{self.scan.parent}/", "")
