"""One line per scan: what was done, how long it took, what was odd, what failed."""

from __future__ import annotations

import contextlib
import csv
import logging
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..engines.scan_evaluator import scan_file
from ..errors import ScanError
from ..files import PathLike, atomic_write

logger = logging.getLogger(__name__)

COLUMNS = (
    *("file", "status", "output", "shape_in", "shape_out", "spacing_in", "spacing_out", "seconds"),
    *("peak_memory_gib", "peak_gpu_memory_gib", "consistency_error", "warnings", "error"),
)
GIB = 2**30


def reset_peak_memory() -> None:
    """Start to measure anew, where the system lets us (Linux; CUDA)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Largest resident memory of this process in bytes: since the reset on Linux, else since its start."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def item_of(engine: Engine) -> dict[str, Any]:
    """The scan of the current iteration of a `ScanEvaluator`: what was loaded, and over it what came out."""
    state: Any = engine.state
    return {**state.batch[0], **state.output[0]}


def _grid(img: Any) -> tuple[str, str]:
    """Shape and spacing in mm of an image, `64x64x30` and `1x1x2.5`."""
    if not isinstance(img, MetaTensor):
        return "", ""
    return "x".join(map(str, img.shape[1:])), "x".join(f"{float(v):.4g}" for v in img.pixdim)


class SummaryReport:
    """Write `summary.csv` of an inference run, with a line for a scan as soon as it is done or has failed.

    The file is replaced as a whole each time, so that a killed run leaves whole lines of all scans before. It tells of
    this run only. Columns: `file, status` (ok or failed), `output, shape_in, shape_out, spacing_in, spacing_out` (mm),
    `seconds` and `peak_memory_gib` (resident memory of the process) from loading to saving, `peak_gpu_memory_gib` (CUDA
    only), `consistency_error, warnings, error`. The warnings of a scan go to the log too. Time and memory hold for a
    loader without workers; what other handlers take counts only if they are attached before this one.

    A summary that cannot be written gives one line in the log and stands in the engine's `failed`; at the start of a
    run it ends it, as no result could be written either, later the scans go on.

    Args:
        output_dir: folder of the file; it is made where it is missing.
        name: of the file.
    """

    def __init__(self, output_dir: PathLike, name: str = "summary.csv") -> None:
        self.path = Path(output_dir).expanduser() / name
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a `ScanEvaluator`."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_scan)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_scan)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _write(self) -> None:
        with atomic_write(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def _begin(self, engine: Engine) -> None:
        self.rows, self._broken = [], False
        self._try_to_write(engine)
        if self._broken:
            engine.terminate()

    def _try_to_write(self, engine: Engine) -> None:
        try:
            self._write()
        except ScanError as error:
            if not self._broken:  # once: each further scan would say the same
                logger.error("%s", error)
                getattr(engine, "failed", []).append((str(self.path), str(error)))
            self._broken = True

    def _start_scan(self, _: Engine) -> None:
        reset_peak_memory()
        self._started = time.perf_counter()

    def _end_scan(self, engine: Engine) -> None:
        self.rows.append(self._row(item_of(engine)))
        self._try_to_write(engine)

    def _row(self, item: dict[str, Any]) -> dict[str, Any]:
        file, failed = scan_file(item), "error" in item
        warnings = [" ".join(str(w).split()) for w in item.get("warnings", [])]
        for warning in warnings:
            logger.warning("%s: %s", file, warning)
        image, result = item.get("image"), item.get("pred")
        row = {
            "file": file,
            "status": "failed" if failed else "ok",
            "seconds": f"{time.perf_counter() - self._started:.2f}",
            "peak_memory_gib": f"{peak_memory() / GIB:.3f}",
            "warnings": "; ".join(warnings),
            "error": item.get("error", ""),
        }
        if torch.cuda.is_available():
            row["peak_gpu_memory_gib"] = f"{torch.cuda.max_memory_allocated() / GIB:.3f}"
        row["shape_in"], row["spacing_in"] = _grid(item.get("lowres", image))
        if not failed:
            row["shape_out"], row["spacing_out"] = _grid(result if isinstance(result, MetaTensor) else image)
            row["output"] = result.meta.get("saved_to", "") if isinstance(result, MetaTensor) else ""
            if "consistency_error" in item:
                row["consistency_error"] = f"{item['consistency_error']:.6f}"
        return row

    def _end(self, _: Engine) -> None:
        if self._broken and not self.rows:
            return
        failed = sum(row["status"] == "failed" for row in self.rows)
        message = f"{len(self.rows) - failed} of {len(self.rows)} scans done, {failed} failed: see {self.path}"
        logger.log(logging.WARNING if failed else logging.INFO, message)
