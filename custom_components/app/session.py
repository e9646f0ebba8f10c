"""What the user of a page has given and got, in one folder."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from .runs import Run
from .views import Comparison


class Session:
    """What a page's user has given and got. All of it lies in `folder`.

    Attributes:
        folder: `input/` holds the scan, `run_<n>/` what came of it.
        scan: file or folder of a DICOM series, None before an upload.
        run: the newest run.
        comparison: of the newest result.
        cancelled: whether a run that waits for its turn is not to start.
        closed: whether the folder is gone.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.scan: Path | None = None
        self.run: Run | None = None
        self.comparison: Comparison | None = None
        self.cancelled = self.closed = False
        self.touched = time.monotonic()
        self._runs = 0

    def new_input(self) -> Path:
        """An empty folder for an upload; the one before is removed."""
        self.scan = None
        folder = self.folder / "input"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def new_run(self) -> Path:
        """An empty folder for a run; what came of the one before is removed."""
        self.comparison = None
        shutil.rmtree(self.folder / f"run_{self._runs}", ignore_errors=True)
        self._runs += 1  # another path, as browsers keep pictures by theirs
        folder = self.folder / f"run_{self._runs}"
        folder.mkdir(mode=0o700)
        return folder

    def busy(self) -> bool:
        """Whether a run goes on."""
        return self.run is not None and self.run.running()

    def cancel(self) -> None:
        """Stop the run, also one that has not begun."""
        self.cancelled = True
        if self.run is not None:
            self.run.stop()

    def close(self) -> None:
        """Stop the run and remove the folder."""
        self.closed = True
        self.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)
