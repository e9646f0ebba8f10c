"""The course of a training run: a table and a picture, epoch by epoch."""

from __future__ import annotations

import csv
import math
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..figures.style import look, new_figure, plain_axes, save
from ..files import atomic_write
from .loss_terms import loss_terms

TERM = "loss_"  # before the name of a term


class LossCurve:
    """Write `losses.csv` and `losses.png` after each epoch: training loss, validation metrics, learning rate, seconds.

    `data_share` is the part of the epoch in which the trainer waited for data: if pairs made on the fly are the bottleneck, it
    shows here.

    Of a loss with several terms the mean of each, before its weight, is written too, as `loss_<term>`; a term that was not computed
    in an epoch, as its weight was 0, has no value there.

    Args:
        output_dir: folder of the two files.
        optimizer: for the learning rate with which an epoch began (the largest of its parameter groups).
        evaluator: the validation engine, for its metrics.
        is_main: False in all but one process of a distributed run: nothing is written.
        loss: the trainer's loss; a `CompositeLoss`, which holds the `values` of its terms, has them written one by one.
    """

    def __init__(
        self,
        output_dir: str | Path,
        optimizer: Any = None,
        evaluator: Any = None,
        is_main: bool = True,
        loss: Any = None,
    ) -> None:
        self.output_dir, self.optimizer, self.evaluator, self.is_main = Path(output_dir), optimizer, evaluator, is_main
        self.loss = loss
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
        self._terms: dict[str, tuple[torch.Tensor | float, int]] = {}
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
        for name, value in loss_terms(self.loss).items():
            total, count = self._terms.get(name, (0.0, 0))
            self._terms[name] = total + value.float(), count + 1  # mixed precision: a sum in half would stand still
        self._last = time.perf_counter()

    def _end(self, engine: Engine) -> None:
        loss = float(self._loss) / max(self._steps, 1)
        seconds = time.perf_counter() - self._began
        row = {"epoch": engine.state.epoch, "iteration": engine.state.iteration, "loss": loss}
        row.update({TERM + name: float(total) / count for name, (total, count) in self._terms.items()})
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
        self._draw(names)

    def _draw(self, names: list[str]) -> None:
        """The training loss, the validation's decibels and, where there are some, the terms of the loss."""
        terms = [n for n in names if n.startswith(TERM)]
        figure = new_figure(15 if terms else 10, 4)
        left, right, *others = figure.subplots(1, 3 if terms else 2)
        left.plot(*self._points("loss"), color=look(0).colour)
        positive = all(r["loss"] > 0 for r in self.rows)  # a likelihood may fall below 0
        left.set(xlabel="epoch", ylabel="training loss", yscale="log" if positive else "linear")
        for i, name in enumerate(n for n in names if n.endswith("psnr") and n not in terms):
            right.plot(*self._points(name), label=name, **_line(i))
        right.set(xlabel="epoch", ylabel="dB", xlim=left.get_xlim())
        for axes in others:
            sizes = [abs(r[name]) for r in self.rows for name in terms if name in r]
            finite = [size for size in sizes if 0 < size < math.inf]
            for i, name in enumerate(terms):
                axes.plot(*self._points(name), label=name.removeprefix(TERM), linewidth=1, **_line(i))
            axes.set(xlabel="epoch", ylabel="terms before their weights")
            # linear below the smallest of them, but for no more than six decades
            axes.set_yscale("symlog", linthresh=max(min(finite), 1e-6 * max(finite)) if finite else 1)
        for axes in (left, right, *others):
            plain_axes(axes, "both")
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, fontsize=8)
        save(figure, self.output_dir / "losses.png")

    def _points(self, name: str) -> tuple[list[float], list[float]]:
        rows = [r for r in self.rows if name in r]
        return [r["epoch"] for r in rows], [r[name] for r in rows]


def _line(i: int) -> dict[str, Any]:
    """How the i-th line is drawn: with a mark at each epoch, as there may be one alone."""
    style = look(i)
    return {"color": style.colour, "linestyle": style.line, "marker": style.marker, "markersize": 3}
