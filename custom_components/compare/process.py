"""The process of a method, and the lock of a study's folder that it inherits."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..errors import ScanError, one_line
from .study import ROOT

POLL = 0.5  # seconds between two looks at a running process


def start(arguments: Sequence[str], log: Path, keep_open: int, wait: Callable[[], None]) -> int:
    """Run `python -m monai.bundle` with its output at the end of `log`; its exit code, below 0 after a signal.

    Args:
        arguments: of the program.
        log: file.
        keep_open: file descriptor that the process inherits: the lock of the study, which so outlives this process if that is
            killed before the other.
        wait: called again and again meanwhile.
    """
    command = [sys.executable, "-m", "monai.bundle", *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("a", encoding="utf-8") as output:
        print("$", *command, file=output, flush=True)
        process: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[keep_open],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL)
                wait()
        finally:
            if process.poll() is None:  # we are being stopped
                process.terminate()
                process.wait()


def last_error(log: str) -> str:
    """The line that says why a process ended, in what it printed: an error by the log or by `one_line_errors`, else the last."""
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ") or " - ERROR - " in line]
    return " ".join((errors or lines or ["no output"])[-1].split(" - ERROR - ")[-1].removeprefix("error: ").split())


@contextlib.contextmanager
def only_one(output_dir: Path) -> Iterator[int]:
    """Hold the lock of a study's folder; its file descriptor.

    Raises:
        ScanError: when another comparison, or a process that it left behind, works there.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        file = (output_dir / ".lock").open("w")
    except OSError as error:
        raise ScanError(f"{output_dir}: expected a folder to write to, got: {one_line(error)}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ScanError(f"{output_dir}: expected one comparison at a time, got another that is at work") from error
        yield file.fileno()
