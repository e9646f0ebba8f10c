"""Files that are written whole or not at all, and by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import ScanError, one_line

PathLike = str | os.PathLike[str]

_HOST = socket.gethostname() or "localhost"  # in the name, as a process id means nothing on another machine
_serial = itertools.count()


def sidecar(path: Path) -> Path | None:
    """The BIDS file `<stem>.json` beside a NIfTI scan `<stem>.nii[.gz]`, which tells facts of it; None where there is none."""
    stem = re.sub(r"\.nii(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    beside = path.with_name(f"{stem}.json") if stem else path
    return beside if stem != path.name and beside.is_file() else None


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs as another user
        return True
    return True


def _remove_stale(folder: Path) -> None:
    """Remove what a killed process of this machine left half-written."""
    pattern = re.compile(rf"\.partial-{re.escape(_HOST)}-(\d+)-\d+(\..*)?")
    for left in folder.glob(".partial-*"):
        match = pattern.fullmatch(left.name)
        if match and not _is_running(int(match[1])):
            left.unlink(missing_ok=True)


def read_json(path: PathLike, expected: str = "a config in JSON") -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ScanError: when there is no such file, or it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScanError(f"{path}: expected {expected}, got: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ScanError(f"{path}: expected {expected}, got a {type(content).__name__}")
    return content


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a hidden temporary path beside `path`, with its suffix, that becomes `path` when the block ends well.

    The file is flushed to the disk before it takes its name; after any error it is removed, and what stood under `path`
    stays as it was. Leftovers of dead processes in the folder are removed. The folder is made where it is missing.

    Raises:
        ScanError: when the file system refuses (full, not writable): one line with the file and the reason.
    """
    final = Path(path)
    suffix = ".nii.gz" if final.name.lower().endswith(".nii.gz") else final.suffix
    partial = final.with_name(f".partial-{_HOST}-{os.getpid()}-{next(_serial)}{suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final.parent)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, final)
    except OSError as error:
        raise ScanError(f"{final}: expected to write the file, got: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _wait_for_lock(path: Path) -> int:
    """Descriptor of a lock file that this process alone holds, and that still has its name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:  # who held it before has removed it: make a new one
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: PathLike) -> Iterator[None]:
    """Let one process at a time read a file, change it and write it anew; others that ask wait.

    The lock is a hidden file beside it, `.lock-<name>`, that is removed at the end. It is the kernel's, so that a process which is
    killed holds nothing. Where the file system has no locks, or the folder cannot be written, the block runs without.

    Example:
        >>> with locked("table.csv"), atomic_write("table.csv") as partial:
        ...     partial.write_text("a,b")
    """
    final = Path(path)
    lock, descriptor = final.with_name(f".lock-{final.name}"), None
    with contextlib.suppress(OSError):
        final.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _wait_for_lock(lock)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                lock.unlink()
            os.close(descriptor)
