"""The table of an evaluation: each method on each scan and scale factor, mean, standard deviation and gain."""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from ..files import PathLike, atomic_write
from ..markdown import markdown_table
from .summary import item_of

DIGITS = {"psnr": 2, "ssim": 4, "rmse": 4}
LOWER_IS_BETTER = ("rmse",)


def factor_name(item: Mapping[str, Any]) -> str:
    """Scale factor of an item per axis, `2x2x2.5`: its `scale_factor`, else by the shapes of `image` and `lowres`."""
    factor, image, lowres = (item.get(key) for key in ("scale_factor", "image", "lowres"))
    dims = image.ndim - 1 if isinstance(image, torch.Tensor) else 3
    if factor is None and isinstance(image, torch.Tensor) and isinstance(lowres, torch.Tensor):
        factor = [n / m for n, m in zip(image.shape[1:], lowres.shape[1:], strict=True)]
    if factor is None:
        return ""
    return "x".join(f"{float(f):.3g}" for f in ([factor] * dims if isinstance(factor, (int, float)) else factor))


def worst(metric: str, values: Sequence[float]) -> float:
    """The worst of the values of a metric, or of its gains."""
    return max(values) if metric in LOWER_IS_BETTER else min(values)


class EvaluationReport:
    """Write the metrics of an evaluation, and print them as one table at its end.

    - `metrics.csv`: a line per scan, scale factor and method, whole after each scan: `scan, scale_factor, method`, the
      metrics, `seconds` of the network (first method only), `error` (the reason of a failed scan).
    - `metrics_by_factor.csv`: per scale factor and method the number of scans and of each metric mean, standard
      deviation (of the sample), gain, the mean difference from the reference method on the same scans, and worst gain, that of
      the scan which gains least.
    - `metrics.md`: the printed table.

    It is attached to a `ScanEvaluator` whose metrics are `ScanMetric`, named prefix + metric.

    Args:
        output_dir: folder of the files; it is made where it is missing.
        methods: name of each method -> prefix of its metrics; the network's first.
        reference: the method that gains are over.
        metrics: names of the metrics.

    Raises:
        ValueError: when the reference is not among the methods; on a scan that lacks a metric.
    """

    def __init__(
        self,
        output_dir: PathLike,
        methods: Mapping[str, str] | None = None,
        reference: str = "spline",
        metrics: Sequence[str] = ("psnr", "ssim", "rmse"),
    ) -> None:
        self.output_dir = Path(output_dir).expanduser()
        self.methods = dict(methods or {"model": "", "spline": "spline_"})
        self.reference, self.metrics = reference, tuple(metrics)
        if reference not in self.methods:
            raise ValueError(f"reference must be one of {tuple(self.methods)}, got {reference!r}")
        self.scans: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a `ScanEvaluator`, after its metrics."""
        engine.add_event_handler(Events.EPOCH_STARTED, lambda _: self.scans.clear())
        engine.add_event_handler(Events.ITERATION_STARTED, self._start_network)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._end_network)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._scan)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _start_network(self, _: Engine) -> None:
        self._started = time.perf_counter()

    def _end_network(self, engine: Engine) -> None:
        pred = item_of(engine).get("pred")
        if isinstance(pred, torch.Tensor) and pred.is_cuda:
            torch.cuda.synchronize(pred.device)
        self._seconds = time.perf_counter() - self._started

    def _scan(self, engine: Engine) -> None:
        item = item_of(engine)
        scan: dict[str, Any] = {"scan": str(item.get("stem", "")), "factor": factor_name(item)}
        if "error" in item:
            scan["error"] = item["error"]
        else:
            found = item.get("metrics", {})
            missing = [p + m for p in self.methods.values() for m in self.metrics if p + m not in found]
            if missing:
                raise ValueError(f"expected the metrics {missing} of ScanMetric, got {sorted(found)}")
            scan["seconds"] = self._seconds
            scan["values"] = {n: {m: found[p + m] for m in self.metrics} for n, p in self.methods.items()}
        self.scans.append(scan)
        columns = ("scan", "scale_factor", "method", *self.metrics, "seconds", "error")
        self._write_csv("metrics.csv", columns, self._lines())

    def _write_csv(self, name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
        with atomic_write(self.output_dir / name) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _lines(self) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for scan in self.scans:
            start = {"scan": scan["scan"], "scale_factor": scan["factor"]}
            if "error" in scan:
                lines.append({**start, "error": scan["error"]})
                continue
            for i, (method, values) in enumerate(scan["values"].items()):
                seconds = {} if i else {"seconds": round(scan["seconds"], 3)}
                lines.append({**start, "method": method, **{m: round(v, 6) for m, v in values.items()}, **seconds})
        return lines

    def _groups(self) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for scan in self.scans:
            if "error" not in scan:
                groups.setdefault(scan["factor"], []).append(scan)
        return groups

    def _summary(self) -> list[dict[str, Any]]:
        rows = []
        for factor, scans in self._groups().items():
            for method in self.methods:
                row: dict[str, Any] = {"scale_factor": factor, "method": method, "scans": len(scans)}
                for m in self.metrics:
                    values = [s["values"][method][m] for s in scans]
                    gains = [s["values"][method][m] - s["values"][self.reference][m] for s in scans]
                    row[f"{m}_mean"], row[f"{m}_gain"] = round(fmean(values), 6), round(fmean(gains), 6)
                    row[f"{m}_std"] = round(stdev(values), 6) if len(values) > 1 else ""
                    row[f"{m}_worst_gain"] = round(worst(m, gains), 6)
                rows.append(row)
        return rows

    def table(self) -> str:
        """The scans so far as a Markdown table, by scale factor, with mean, standard deviation and worst; failures below."""
        others = [n for n in self.methods if n != self.reference]
        columns = [(m, n, False) for m in self.metrics for n in (self.reference, *others)]
        for m in reversed(self.metrics):
            at = max(i for i, c in enumerate(columns) if c[0] == m) + 1
            columns[at:at] = [(m, n, True) for n in others]
        names = [f"{m} gain{f' {n}' if len(others) > 1 else ''}" if gain else f"{m} {n}" for m, n, gain in columns]
        rows = [["scan", "factor", *names, "seconds"]]
        for factor, scans in self._groups().items():
            numbers = []
            for scan in scans:
                values = scan["values"]
                line = [values[n][m] - (values[self.reference][m] if gain else 0) for m, n, gain in columns]
                numbers.append([*line, scan["seconds"]])
                rows.append([scan["scan"], factor, *self._cells(columns, numbers[-1])])
            by_column = list(zip(*numbers, strict=True))
            rows.append([f"mean of {len(scans)}", factor, *self._cells(columns, [fmean(c) for c in by_column])])
            if len(scans) > 1:
                rows.append(["standard deviation", factor, *self._cells(columns, [stdev(c) for c in by_column], True)])
                bad = [worst(c[0], v) for c, v in zip(columns, by_column, strict=False)]
                rows.append(["worst", factor, *self._cells(columns, [*bad, max(by_column[-1])])])
        text = markdown_table(rows) if len(rows) > 1 else ""
        failed = [scan for scan in self.scans if "error" in scan]
        text += "\n" if failed else ""
        for scan in failed:
            text += " ".join(["failed:", scan["scan"], scan["factor"]]).rstrip() + f": {scan['error']}\n"
        return text

    @staticmethod
    def _cells(columns: Sequence[tuple[str, str, bool]], values: Sequence[float], spread: bool = False) -> list[str]:
        signs = ["+" if gain and not spread else "" for _, _, gain in columns]
        cells = [f"{v:{sign}.{DIGITS.get(c[0], 4)}f}" for c, v, sign in zip(columns, values[:-1], signs, strict=True)]
        return [*cells, f"{values[-1]:.1f}"]

    def _end(self, _: Engine) -> None:
        columns = [f"{m}_{what}" for m in self.metrics for what in ("mean", "std", "gain", "worst_gain")]
        self._write_csv("metrics_by_factor.csv", ("scale_factor", "method", "scans", *columns), self._summary())
        text = self.table()
        with atomic_write(self.output_dir / "metrics.md") as partial:
            partial.write_text(text, encoding="utf-8")
        print(text)
