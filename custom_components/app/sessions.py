"""Private folders of the page's sessions: made for one, removed with it, and never left behind for long."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import ScanError, one_line
from ..files import PathLike
from .session import Session

PREFIX = "mri-super-resolution-"
LOCK = ".lock"
IDLE = 6 * 3600.0  # seconds after which a session that does nothing ends; its page may be gone without a word
STRAY = 900.0  # seconds after which an upload that no session took is removed
SWEEP = 60.0  # seconds between two looks


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder, None when another process has it."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def remove_abandoned(temp_dir: Path) -> list[Path]:
    """Remove the folders of servers of this user that were killed, unless one of their runs still goes on; those removed."""
    removed = []
    for folder in temp_dir.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            ours = not folder.is_symlink() and folder.is_dir() and folder.stat().st_uid == os.getuid()
            if ours and (lock := _locked(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)
                removed.append(folder)
    return removed


class Sessions:
    """The sessions of a server, in a folder of mode 0700 that goes with it.

    Args:
        temp_dir: where the folder is made; None: where the system keeps temporary files.
        idle: seconds after which a session that does nothing ends.

    Raises:
        ScanError: when no folder can be made there.
    """

    def __init__(self, temp_dir: PathLike | None = None, idle: float = IDLE) -> None:
        self.temp_dir, self.idle = Path(temp_dir or tempfile.gettempdir()).expanduser().resolve(), idle
        remove_abandoned(self.temp_dir)
        try:
            # made aside, so that it has its lock when others can see it
            with tempfile.TemporaryDirectory(prefix=f".{PREFIX}", dir=self.temp_dir) as new:
                self.lock = _locked(Path(new))
                self.root = self.temp_dir / Path(new).name[1:]
                os.rename(new, self.root)
                Path(new).mkdir(mode=0o700)  # for TemporaryDirectory to remove
        except OSError as error:
            raise ScanError(f"{self.temp_dir}: expected a folder to write to, got: {one_line(error)}") from error
        self._sessions: dict[str, Session] = {}
        self._guard = threading.Lock()
        self._end = threading.Event()
        threading.Thread(target=self._janitor, daemon=True).start()

    def get(self, key: str) -> Session:
        """The session of a page, a new one where there is none."""
        with self._guard:
            if key not in self._sessions or self._sessions[key].closed:
                self._sessions[key] = Session(self.root / secrets.token_hex(16))
            self._sessions[key].touched = time.monotonic()
            return self._sessions[key]

    def close(self, key: str) -> None:
        """End the session of a page."""
        with self._guard:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.close()

    def sweep(self) -> None:
        """End sessions that do nothing, remove uploads that no session took and folders of servers that were killed."""
        now = time.monotonic()
        with self._guard:
            idle = [k for k, s in self._sessions.items() if now - s.touched > self.idle and not s.busy()]
        for key in idle:
            self.close(key)
        with self._guard:
            known = {s.folder.name for s in self._sessions.values()}
        for path in self.root.iterdir():
            with contextlib.suppress(OSError):
                if path.name not in (known | {LOCK}) and time.time() - path.stat().st_mtime > STRAY:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        remove_abandoned(self.temp_dir)

    def _janitor(self) -> None:
        while not self._end.wait(SWEEP):
            with contextlib.suppress(OSError):
                self.sweep()

    def close_all(self) -> None:
        """End all sessions and remove the folder."""
        self._end.set()
        for key in list(self._sessions):
            self.close(key)
        shutil.rmtree(self.root, ignore_errors=True)
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close_all()
