from __future__ import annotations

import contextlib
import logging
import re
import sys

import pytest
import torch
from ignite.engine import Engine, Events

from custom_components.handlers import Progress


def run(capsys, steps, epochs=1, output=None, **options):
    engine = Engine(lambda *_: output)
    bar = Progress(**options)
    bar.attach(engine)
    shown = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: shown.append(bar.pbar.n if bar.pbar else 0))
    engine.run(range(steps), max_epochs=epochs)
    return shown, capsys.readouterr().err


def test_updates_within_each_epoch_and_at_its_end(capsys):
    shown, err = run(capsys, 7, epochs=2, every=3)
    assert shown == [0, 0, 3, 3, 3, 6, 7] * 2
    assert "Epoch [1/2]: [7/7] 100%" in err and "Epoch [2/2]: [7/7] 100%" in err


def test_an_epoch_shorter_than_the_interval_has_a_bar_too(capsys):
    shown, err = run(capsys, 4, every=10)
    assert shown == [0, 0, 0, 4]
    assert "[4/4] 100%" in err


def test_the_loss_stands_beside_it_without_a_warning(capsys):
    loss = torch.tensor(0.25, requires_grad=True)  # a warning is an error in these tests
    assert re.search(r"Iteration: \[2/2\] 100%.*loss=0\.25", run(capsys, 2, output={"loss": loss})[1])
    assert "loss" not in run(capsys, 2, output=[{"pred": 1}])[1]


def test_description(capsys):
    assert "scans: [2/2] 100%" in run(capsys, 2, desc="scans")[1]


def test_bad_interval():
    with pytest.raises(ValueError, match="every must be >= 1, got 0"):
        Progress(0)


@pytest.mark.parametrize("fails", [False, True])
def test_log_lines_stand_above_the_bar(capsys, monkeypatch, fails):
    stream = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.root, "handlers", [stream])

    def step(engine, _):
        logging.getLogger("scans").warning("scan %d is odd", engine.state.iteration)
        if fails and engine.state.iteration == 2:
            raise RuntimeError("the end")
        return {}

    engine = Engine(step)
    monkeypatch.setattr(engine.logger, "propagate", False)  # Ignite's own notes are of no interest here
    Progress(desc="scans").attach(engine)
    with pytest.raises(RuntimeError, match="the end") if fails else contextlib.nullcontext():
        engine.run(range(3))
    shown = re.split(r"[\r\n]+", capsys.readouterr().err)
    assert "scan 2 is odd" in shown  # on a line of its own
    assert logging.root.handlers == [stream]
