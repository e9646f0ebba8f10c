"""The terms of a loss as curves that TensorBoard reads."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.handlers import TensorBoardStatsHandler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from custom_components.handlers import LossTerms
from custom_components.losses import CompositeLoss


def make_loss(**weights):
    return CompositeLoss({"l1": nn.L1Loss(), "l2": nn.MSELoss()}, {"l1": 0.5, "l2": 2, **weights})


def call(loss, x):
    return {"loss": loss(torch.full((1, 1, 2), float(x), requires_grad=True), torch.zeros(1, 1, 2))}


@pytest.mark.parametrize("wrap", [lambda output: output, lambda output: [output, output]])
def test_the_whole_and_each_term_before_its_weight(wrap):
    loss = make_loss()
    output = wrap(call(loss, 3))
    assert LossTerms(loss)(output) == {"train_loss": 19.5, "train_loss_l1": 3, "train_loss_l2": 9}
    assert set(LossTerms(loss, tag="e")(output)) == {"e", "e_l1", "e_l2"}


def test_a_term_that_was_not_computed_and_a_loss_without_terms():
    loss = make_loss(l2=0)
    assert LossTerms(loss)(call(loss, 3)) == {"train_loss": 1.5, "train_loss_l1": 3}
    for other in (nn.L1Loss(), nn.ModuleDict()):
        assert LossTerms(other)({"loss": torch.tensor(2.0)}) == {"train_loss": 2}


def test_curves_in_the_file_of_a_run(tmp_path):
    loss = make_loss()
    block = {
        "_target_": "TensorBoardStatsHandler",
        "log_dir": str(tmp_path),
        "output_transform": {"_target_": "custom_components.handlers.LossTerms", "loss": "@loss"},
    }
    parser = ConfigParser({"loss": loss, "tensorboard": block})
    handler = parser.get_parsed_content("tensorboard")
    assert isinstance(handler, TensorBoardStatsHandler)
    engine = Engine(lambda _, x: call(loss, x))
    handler.attach(engine)
    engine.run([1, 2, 3])
    handler.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    curves = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert curves == {
        "train_loss": [(1, 2.5), (2, 9), (3, 19.5)],
        "train_loss_l1": [(1, 1), (2, 2), (3, 3)],
        "train_loss_l2": [(1, 1), (2, 4), (3, 9)],
    }
