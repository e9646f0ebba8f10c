"""One line per scan: what was done, how long it took, what was odd, what failed."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor

from ..batches import result_fingerprint
from ..batches.summary_file import NAME, merge_rows
from ..engines.scan_evaluator import scan_file
from ..errors import ScanError
from ..files import PathLike
from ..memory import GIB, peak_memory, reset_peak_memory

logger = logging.getLogger(__name__)


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
    """Keep `summary.csv`, the record of a folder of results: a line for each scan, as soon as it is done or has failed.

    The file is replaced as a whole each time, so that a killed run leaves whole lines of all scans before. A line stands when all
    handlers are through with its scan, and takes the place of the scan's line of a run before; lines of other scans stay, those
    of runs that go on at the same time too. Columns: `file, status` (ok or failed), `output, uncertainty` (the map beside it, if
    any), `shape_in, shape_out, spacing_in, spacing_out` (mm), `seconds` and `peak_memory_gib` (resident memory of the process)
    from loading to saving, `peak_gpu_memory_gib` (CUDA only), `consistency_error, warnings, error, fingerprint` (see
    `unfinished_scans`). The warnings of a scan go to the log too. With a loader that has workers, `seconds` are those of loading
    in the worker and of the rest here, and the memory is that of the process that took more. What other handlers take counts only
    if they are attached before this one.

    A summary that cannot be written gives one line in the log and stands in the engine's `failed`; at the start of a
    run it ends it, as no result could be written either, later the scans go on.

    Args:
        output_dir: folder of the file; it is made where it is missing.
        name: of the file.
    """

    def __init__(self, output_dir: PathLike, name: str = NAME) -> None:
        self.path = Path(output_dir).expanduser() / name
        self.rows: list[dict[str, Any]] = []
        self._unwritten: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a `ScanEvaluator`."""
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_scan)
        engine.add_event_handler(Events.ITERATION_STARTED, self._loaded)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_scan)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._try_to_write)
        engine.add_event_handler(Events.COMPLETED, self._end)

    def _write(self) -> None:
        merge_rows(self.path, self._unwritten)
        self._unwritten = []

    def _begin(self, engine: Engine) -> None:
        self.rows, self._unwritten, self._broken = [], [], False
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

    def _start_scan(self, engine: Engine) -> None:
        if self._unwritten:
            self._try_to_write(engine)
        reset_peak_memory()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._started = time.perf_counter()

    def _loaded(self, _: Engine) -> None:
        self._got = time.perf_counter()

    def _end_scan(self, engine: Engine) -> None:
        self.rows.append(self._row(item_of(engine)))
        self._unwritten.append(self.rows[-1])

    def _row(self, item: dict[str, Any]) -> dict[str, Any]:
        file, failed = scan_file(item), "error" in item
        warnings = [" ".join(str(w).split()) for w in item.get("warnings", [])]
        for warning in warnings:
            logger.warning("%s: %s", file, warning)
        image, result = item.get("image"), item.get("pred")
        seconds, peak = time.perf_counter() - self._started, peak_memory()
        if "loading" in item:  # by a worker: here we only waited for the rest of it
            seconds += item["loading"]["seconds"] - (self._got - self._started)
            peak = max(peak, item["loading"]["peak_memory"])
        row = {
            "file": file,
            "status": "failed" if failed else "ok",
            "seconds": f"{seconds:.2f}",
            "peak_memory_gib": f"{peak / GIB:.3f}",
            "warnings": "; ".join(warnings),
            "error": item.get("error", ""),
        }
        if torch.cuda.is_available():
            row["peak_gpu_memory_gib"] = f"{torch.cuda.max_memory_allocated() / GIB:.3f}"
        row["shape_in"], row["spacing_in"] = _grid(item.get("lowres", image))
        if not failed:
            row["shape_out"], row["spacing_out"] = _grid(result if isinstance(result, MetaTensor) else image)
            if isinstance(result, MetaTensor):
                row["output"] = result.meta.get("saved_to", "")
                states = [result.meta.get("saved_state")]
                spread = item.get("uncertainty")
                if isinstance(spread, MetaTensor) and "saved_to" in spread.meta:
                    row["uncertainty"] = spread.meta["saved_to"]
                    states.append(spread.meta.get("saved_state"))
                row["fingerprint"] = result_fingerprint(item, *states)
            if "consistency_error" in item:
                row["consistency_error"] = f"{item['consistency_error']:.6f}"
        return row

    def _end(self, _: Engine) -> None:
        if self._broken and not self.rows:
            return
        failed = sum(row["status"] == "failed" for row in self.rows)
        message = f"{len(self.rows) - failed} of {len(self.rows)} scans done, {failed} failed: see {self.path}"
        logger.log(logging.WARNING if failed else logging.INFO, message)
