from __future__ import annotations

import csv
import time

import pytest
import torch
from ignite.engine import Engine, Events

from custom_components.handlers import LossCurve


def read(folder):
    with open(folder / "losses.csv", newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def trainer(*handlers, wrap=lambda output: output):
    engine = Engine(lambda engine, x: wrap({"loss": torch.tensor(float(x * engine.state.epoch))}))
    for handler in handlers:
        handler.attach(engine)
    return engine


def test_a_row_per_epoch_with_mean_loss_and_the_rate_it_had(tmp_path):
    groups = [{"params": [torch.zeros(1)], "lr": 0.1}, {"params": [torch.zeros(1)], "lr": 0.01}]
    optimizer = torch.optim.SGD(groups)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    curve = LossCurve(tmp_path / "new", optimizer)
    engine = Engine(lambda engine, x: {"loss": torch.tensor(float(x * engine.state.epoch))})

    @engine.on(Events.EPOCH_COMPLETED)
    def step():
        optimizer.step()
        scheduler.step()

    curve.attach(engine)
    engine.run([1, 2, 6], max_epochs=2)
    rows = read(tmp_path / "new")
    assert [(r["epoch"], r["iteration"], r["loss"], r["learning_rate"]) for r in rows] == [
        (1, 3, 3, 0.1),
        (2, 6, 6, 0.05),
    ]
    assert (tmp_path / "new/losses.png").read_bytes()[:4] == b"\x89PNG"


def test_a_trainer_that_decollates(tmp_path):
    trainer(LossCurve(tmp_path), wrap=lambda output: [output]).run([4.0])
    assert read(tmp_path)[0]["loss"] == 4


def test_metrics_stand_in_the_epochs_that_were_validated(tmp_path):
    evaluator = Engine(lambda *_: None)
    engine = Engine(lambda *_: {"loss": torch.tensor(1.0)})

    @engine.on(Events.EPOCH_COMPLETED(every=2))
    def validate():
        evaluator.state.epoch = engine.state.epoch
        evaluator.state.metrics = {"psnr": 30.0 + engine.state.epoch, "ssim": 0.9}

    LossCurve(tmp_path, evaluator=evaluator).attach(engine)
    engine.run([0], max_epochs=4)
    assert [(r.get("psnr"), r.get("ssim")) for r in read(tmp_path)] == [
        (None, None),
        (32, 0.9),
        (None, None),
        (34, 0.9),
    ]


def test_share_of_time_that_is_spent_on_data(tmp_path):
    def slow():
        for x in (1, 2, 3):
            time.sleep(0.03)
            yield x

    engine = Engine(lambda *_: time.sleep(0.01) or {"loss": torch.tensor(1.0)})
    LossCurve(tmp_path / "slow").attach(engine)
    engine.run(slow(), epoch_length=3)
    engine = Engine(lambda *_: time.sleep(0.03) or {"loss": torch.tensor(1.0)})
    LossCurve(tmp_path / "fast").attach(engine)
    engine.run([1, 2, 3])
    slow_row, fast_row = read(tmp_path / "slow")[0], read(tmp_path / "fast")[0]
    assert 0.5 < slow_row["data_share"] < 1
    assert fast_row["data_share"] < 0.25
    assert slow_row["seconds"] > 0.12


def test_a_resumed_run_keeps_the_rows_before_it_and_none_twice(tmp_path):
    trainer(LossCurve(tmp_path)).run([1], max_epochs=3)
    first = read(tmp_path)
    engine = trainer(LossCurve(tmp_path))

    @engine.on(Events.STARTED)
    def resume():  # the checkpoint is of epoch 1: the process was killed before that of epoch 2 was whole
        engine.state.epoch, engine.state.iteration = 1, 1

    engine.run([10], max_epochs=4)
    rows = read(tmp_path)
    assert [(r["epoch"], r["loss"]) for r in rows] == [(1, 1), (2, 20), (3, 30), (4, 40)]
    assert rows[0] == first[0]


def test_a_new_run_in_the_same_folder_starts_anew(tmp_path):
    trainer(LossCurve(tmp_path)).run([1], max_epochs=3)
    trainer(LossCurve(tmp_path)).run([5], max_epochs=1)
    assert [(r["epoch"], r["loss"]) for r in read(tmp_path)] == [(1, 5)]


@pytest.mark.parametrize("is_main", [True, False])
def test_only_the_main_process_writes(tmp_path, is_main):
    trainer(LossCurve(tmp_path, is_main=is_main)).run([1])
    assert {p.name for p in tmp_path.iterdir()} == ({"losses.csv", "losses.png"} if is_main else set())
