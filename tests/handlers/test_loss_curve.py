from __future__ import annotations

import csv
import time

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from custom_components.handlers import LossCurve
from custom_components.losses import CompositeLoss


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


def test_one_validation_alone_is_seen(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("custom_components.handlers.loss_curve.save", lambda figure, _: figures.append(figure))
    evaluator = Engine(lambda *_: None)
    engine = Engine(lambda *_: {"loss": torch.tensor(1.0)})

    @engine.on(Events.EPOCH_COMPLETED(once=4))
    def validate():
        evaluator.state.epoch, evaluator.state.metrics = 4, {"psnr": 30.0}

    LossCurve(tmp_path, evaluator=evaluator).attach(engine)
    engine.run([0], max_epochs=4)
    loss, decibels = figures[-1].axes
    (line,) = decibels.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([4], [30])
    assert line.get_marker() not in ("", "None", None)
    assert decibels.get_xlim() == loss.get_xlim()


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


class TestTerms:
    @staticmethod
    def run(folder, loss, batches, max_epochs=1, first=0, **options):
        """A trainer whose output is the loss; the batches are predictions, the target is 0."""

        def step(_, x):
            return {"loss": loss(torch.full((1, 1, 2), float(x)), torch.zeros(1, 1, 2))}

        engine = Engine(step)

        @engine.on(Events.STARTED)
        def resume():
            engine.state.epoch, engine.state.iteration = first, first * len(batches)

        LossCurve(folder, loss=loss, **options).attach(engine)
        engine.run(batches, max_epochs=max_epochs)

    @staticmethod
    def loss(**weights):
        terms = {"l1": nn.L1Loss(), "l2": nn.MSELoss(), "gain": MinusMean()}
        return CompositeLoss(terms, {"l1": 0.5, "l2": 2, "gain": 0, **weights}, priors=["gain"])

    def test_mean_of_each_before_its_weight(self, tmp_path):
        self.run(tmp_path, self.loss(gain=1), [1, 2, 6])
        (row,) = read(tmp_path)
        assert (row["loss_l1"], row["loss_gain"]) == (3, -3)
        assert row["loss_l2"] == pytest.approx(41 / 3)
        assert row["loss"] == pytest.approx(0.5 * 3 + 2 * 41 / 3 - 3)

    def test_a_term_counts_in_the_steps_in_which_it_was_computed(self, tmp_path):
        loss = self.loss()
        pairs = iter([0, 1, 1, 0, 0, 0])

        def switch(module, _):
            module.weights["gain"] = next(pairs)

        loss.register_forward_pre_hook(switch)
        self.run(tmp_path, loss, [1, 2, 6], max_epochs=2)
        assert [row.get("loss_gain") for row in read(tmp_path)] == [-4, None]

    def test_other_losses_have_none(self, tmp_path):
        for loss in (nn.L1Loss(), nn.ModuleDict()):  # the values of the last are a method
            engine = Engine(lambda *_: {"loss": torch.tensor(1.0)})
            LossCurve(tmp_path, loss=loss).attach(engine)
            engine.run([0])
            assert set(read(tmp_path)[0]) == {"epoch", "iteration", "loss", "seconds", "data_share"}

    def test_a_table_without_terms_goes_on(self, tmp_path):
        trainer(LossCurve(tmp_path)).run([1], max_epochs=2)
        before = read(tmp_path)
        self.run(tmp_path, self.loss(), [4], max_epochs=3, first=2)
        rows = read(tmp_path)
        assert rows[:2] == before
        assert (rows[2]["epoch"], rows[2]["loss_l1"], rows[2]["loss_l2"]) == (3, 4, 16)
        trainer(LossCurve(tmp_path)).run([1], max_epochs=1)  # and anew without them
        assert "loss_l1" not in read(tmp_path)[0]

    def test_sums_of_half_precision_do_not_stand_still(self, tmp_path):
        loss = self.loss()
        engine = Engine(lambda *_: {"loss": torch.tensor(1.0)})
        loss.values = {"l1": torch.tensor(1.0, dtype=torch.bfloat16)}
        LossCurve(tmp_path, loss=loss).attach(engine)
        engine.run(range(400))
        assert read(tmp_path)[0]["loss_l1"] == 1

    def test_drawn_in_a_panel_of_their_own(self, tmp_path, monkeypatch):
        figures = []
        monkeypatch.setattr("custom_components.handlers.loss_curve.save", lambda figure, _: figures.append(figure))
        self.run(tmp_path, self.loss(gain=1), [1, 2, 6], max_epochs=2)
        self.run(tmp_path, nn.L1Loss(), [1, 2, 6])
        axes = figures[1].axes[2]
        assert len(figures[1].axes) == 3 and len(figures[2].axes) == 2
        assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
            "l1": [3, 3],
            "l2": pytest.approx([41 / 3] * 2),
            "gain": [-3, -3],
        }
        assert axes.get_yscale() == "symlog"
        assert not any(line.get_label() == "psnr" for line in figures[1].axes[1].lines)

    def test_values_that_cannot_be_drawn(self, tmp_path):
        self.run(tmp_path, self.loss(), [float("nan"), 0], max_epochs=2)
        self.run(tmp_path, self.loss(), [0], max_epochs=2)
        assert (tmp_path / "losses.png").read_bytes()[:4] == b"\x89PNG"


class MinusMean(nn.Module):
    def forward(self, x):
        return -x.mean()
