"""The course of a training run: a table and a picture, epoch by epoch."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..files import atomic_write


class LossCurve:
    """Write `losses.csv` and `losses.png` after each epoch: training loss, validation metrics, learning rate, seconds.

    `data_share` is the part of the epoch in which the trainer waited for data: if pairs made on the fly are the bottleneck, it
    shows here.

    Args:
        output_dir: folder of the two files.
        optimizer: for the learning rate with which an epoch began (the largest of its parameter groups).
        evaluator: the validation engine, for its metrics.
        is_main: False in all but one process of a distributed run: nothing is written.
    """

    def __init__(
        self, output_dir: str | Path, optimizer: Any = None, evaluator: Any = None, is_main: bool = True
    ) -> None:
        self.output_dir, self.optimizer, self.evaluator, self.is_main = Path(output_dir), optimizer, evaluator, is_main
        self.rows: list[dict[str, float]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation handler."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._wait)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._got)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)

    def _continue(self, epoch: int) -> None:
        """Take up the rows of a run that was killed."""
        path = self.output_dir / "losses.csv"
        if path.is_file():
            with open(path, newline="") as file:
                rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
            self.rows = [row for row in rows if row["epoch"] < epoch]

    def _start(self, engine: Engine) -> None:
        if not self.rows and engine.state.epoch > 1:
            self._continue(engine.state.epoch)
        self._began = self._asked = self._last = time.perf_counter()
        self._waited, self._steps = 0.0, 0
        self._loss: torch.Tensor | float = 0.0
        if self.optimizer is not None:  # now, as a scheduler may change it before this epoch is written
            self._rate = max(group["lr"] for group in self.optimizer.param_groups)

    def _wait(self, _: Engine) -> None:
        self._asked = time.perf_counter()

    def _got(self, _: Engine) -> None:
        self._waited += time.perf_counter() - self._asked

    def _step(self, engine: Engine) -> None:
        output: Any = engine.state.output
        output = output[0] if isinstance(output, list) else output
        self._loss = self._loss + output["loss"].detach()  # stays on the device: no wait for it in each step
        self._steps += 1
        self._last = time.perf_counter()

    def _end(self, engine: Engine) -> None:
        loss = float(self._loss) / max(self._steps, 1)
        seconds = time.perf_counter() - self._began
        row = {"epoch": engine.state.epoch, "iteration": engine.state.iteration, "loss": loss}
        if self.optimizer is not None:
            row["learning_rate"] = self._rate
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            row.update({name: float(value) for name, value in self.evaluator.state.metrics.items()})
        row["seconds"], row["data_share"] = seconds, self._waited / max(self._last - self._began, 1e-9)
        self.rows.append(row)
        if self.is_main:
            self._write()

    def _write(self) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_write(self.output_dir / "losses.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
        from matplotlib.figure import Figure

        metrics = [
            n for n in names if n not in ("epoch", "iteration", "loss", "learning_rate", "seconds", "data_share")
        ]
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([r["epoch"] for r in self.rows], [r["loss"] for r in self.rows])
        positive = all(r["loss"] > 0 for r in self.rows)  # a likelihood may fall below 0
        left.set(xlabel="epoch", ylabel="training loss", yscale="log" if positive else "linear")
        for name in (n for n in metrics if n.endswith("psnr")):
            points = [(r["epoch"], r[name]) for r in self.rows if name in r]
            right.plot(*zip(*points, strict=True), label=name)
        right.set(xlabel="epoch", ylabel="dB")
        if right.lines:
            right.legend()
        with atomic_write(self.output_dir / "losses.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)
