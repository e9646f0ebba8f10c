from __future__ import annotations

import contextlib
import csv
import logging
import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.transforms import Compose, RandGaussianNoise
from torch import nn

from custom_components.errors import ScanError
from custom_components.handlers import LossCurve, TrainingState
from custom_components.handlers.training_state import save_atomically

METRICS = (1.0, 3.0, 2.0, 3.0, 4.0)


class Run:
    """Three epochs of a training that draws from every source of random numbers that a real one has."""

    def __init__(self, folder, validate=True, optimizer="SGD", inputs=2, rank=0, **options):
        torch.manual_seed(7)
        self.network = nn.Linear(inputs, 1)
        momentum = {"momentum": 0.9} if optimizer == "SGD" else {}
        self.optimizer = getattr(torch.optim, optimizer)(self.network.parameters(), lr=0.1, **momentum)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=2)
        self.dataset = Dataset([torch.zeros(2)] * 3, Compose([RandGaussianNoise(prob=1.0)]))
        self.trainer = Engine(self.step)
        self.trainer.state.rank = rank
        self.evaluator = Engine(lambda *_: None) if validate else None
        if validate:
            self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = -1, -1
            self.trainer.add_event_handler(Events.EPOCH_COMPLETED, self.validate)
        self.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda _: self.scheduler.step())
        objects = {"network": self.network, "optimizer": self.optimizer, "lr_scheduler": self.scheduler}
        self.curve = LossCurve(folder, self.optimizer, is_main=options.get("is_main", True))
        self.curve.attach(self.trainer)
        self.state = TrainingState(
            folder / "last.pt", objects, folder / "model.pt", self.evaluator, self.dataset, **options
        )
        self.state.attach(self.trainer)
        self.seen = []

    def step(self, _, index):
        legacy = np.random.random()  # noqa: NPY002  what transforms of others may use
        x = self.dataset[index] + random.random() + legacy + torch.rand(2)
        self.seen.append(x)
        self.optimizer.zero_grad()
        loss = (self.network(x) - 1).square().mean()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss}

    def validate(self, engine):
        state, value = self.evaluator.state, METRICS[engine.state.epoch - 1]
        if state.best_metric_epoch == -1 or value > state.best_metric:
            state.best_metric, state.best_metric_epoch = value, engine.state.epoch

    def __call__(self, epochs=3, killed_at=None):
        class Killed(Exception):
            pass

        def kill(engine):
            raise Killed

        if killed_at:
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=killed_at), kill)
        with contextlib.suppress(Killed):
            self.trainer.run(range(3), max_epochs=epochs)
        return self


def weights(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("iteration", [4, 5, 6])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, iteration):
    whole = Run(tmp_path / "whole", seed=3)()
    Run(tmp_path / "killed", seed=3)(killed_at=iteration)
    assert weights(tmp_path / "killed/last.pt")["epoch"] == 1
    rest = Run(tmp_path / "killed", seed=3)()
    assert len(rest.seen) == 6
    assert same(rest.network.state_dict(), whole.network.state_dict())
    assert rest.optimizer.param_groups[0]["lr"] == pytest.approx(0.01)
    momenta = (next(iter(run.optimizer.state.values()))["momentum_buffer"] for run in (rest, whole))
    assert torch.equal(*momenta)
    for name in ("last.pt", "model.pt"):
        with open(tmp_path / "whole" / name, "rb") as one, open(tmp_path / "killed" / name, "rb") as other:
            assert str(torch.load(one)) == str(torch.load(other))
    with open(tmp_path / "killed/losses.csv") as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3]


def test_randomness_is_that_of_seed_epoch_and_rank(tmp_path):
    seen = {
        name: torch.stack(Run(tmp_path / name, **options)().seen)
        for name, options in {"a": {}, "again": {}, "seed": {"seed": 1}, "rank": {"rank": 1}}.items()
    }
    assert torch.equal(seen["a"], seen["again"])
    assert not (seen["a"] == seen["seed"]).any()
    assert not (seen["a"] == seen["rank"]).any()
    assert len(seen["a"].unique()) == 18  # no epoch and no sample repeats another


def test_best_weights_are_kept_and_remembered_after_a_resume(tmp_path):
    run = Run(tmp_path)
    by_epoch = {}
    run.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda e: by_epoch.update({e.state.epoch: save_copy(run.network)})
    )
    run(epochs=2)
    assert same(weights(tmp_path / "model.pt"), by_epoch[2])
    rest = Run(tmp_path)
    kept = weights(tmp_path / "model.pt")
    rest(epochs=4)  # metrics 2 and 3 do not beat the 3 of before
    assert same(weights(tmp_path / "model.pt"), kept)
    assert weights(tmp_path / "last.pt")["best_metric"] == 3
    assert weights(tmp_path / "last.pt")["best_metric_epoch"] == 2
    last = Run(tmp_path)(epochs=5)
    assert same(weights(tmp_path / "model.pt"), last.network.state_dict())


def save_copy(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_without_a_validation_the_latest_weights_are_written(tmp_path):
    run = Run(tmp_path, validate=False)()
    assert same(weights(tmp_path / "model.pt"), run.network.state_dict())
    run = Run(tmp_path / "later")
    run.validate = None
    run.trainer.remove_event_handler(Run.validate.__get__(run), Events.EPOCH_COMPLETED)
    run(epochs=2)
    assert same(weights(tmp_path / "later/model.pt"), run.network.state_dict())


def test_model_is_a_flat_state_dict_without_the_wrapper_of_several_gpus(tmp_path):
    network = nn.DataParallel(nn.Linear(2, 1))
    state = TrainingState(tmp_path / "last.pt", {"network": network}, tmp_path / "model.pt")
    state.save(Engine(lambda *_: None))
    nn.Linear(2, 1).load_state_dict(weights(tmp_path / "model.pt"))


def test_only_the_main_process_writes_and_all_load(tmp_path):
    Run(tmp_path / "other", is_main=False)()
    assert not (tmp_path / "other").exists()
    Run(tmp_path)(epochs=2)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    run = Run(tmp_path, is_main=False)()
    assert len(run.seen) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_resume_false_starts_anew(tmp_path):
    Run(tmp_path)(epochs=2)
    assert len(Run(tmp_path, resume=False)().seen) == 9


def test_a_finished_run_says_so(tmp_path, caplog):
    Run(tmp_path)()
    with caplog.at_level(logging.WARNING, "custom_components"):
        run = Run(tmp_path)()
    assert run.seen == []
    assert "last.pt is a finished run of 3 epochs" in caplog.text


def break_off(path):
    path.write_bytes(path.read_bytes()[:300])


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        (None, {"inputs": 3}, r"last\.pt: expected the weights of Linear, got tensors 1 of another shape .*output_dir"),
        (None, {"optimizer": "Adam"}, r"expected the state of Adam as optimizer, got that of SGD; .*--resume False"),
        (break_off, {}, r"last\.pt: expected a checkpoint of tensors, got a file that torch\.load refuses"),
        (lambda p: p.write_bytes((p.parent / "model.pt").read_bytes()), {}, "expected the state of a run, got weight"),
    ],
)
def test_the_state_of_another_run_is_refused(tmp_path, damage, options, message):
    Run(tmp_path)(epochs=1)
    if damage:
        damage(tmp_path / "last.pt")
    with pytest.raises(ScanError, match=message) as info:
        Run(tmp_path, **options)()
    assert "\n" not in str(info.value)


def adversarial(folder, d_network, d_optimizer=None, seed=0):
    torch.manual_seed(seed)
    network, d_network = nn.Linear(2, 1), d_network()
    inner = getattr(d_network, "module", d_network)
    optimizers = torch.optim.Adam(network.parameters()), (d_optimizer or torch.optim.Adam)(inner.parameters())
    for net, optimizer in zip((network, inner), optimizers, strict=True):
        net(torch.rand(4, 2)).sum().backward()
        optimizer.step()
    names = ("network", "discriminator", "optimizer", "d_optimizer")
    objects = dict(zip(names, (network, d_network, *optimizers), strict=True))
    return objects, TrainingState(folder / "last.pt", objects, folder / "model.pt")


def critic():
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("wrapped", [(True, False), (False, True), (False, False)])
def test_two_networks_and_two_optimisers(tmp_path, wrapped):
    """Also from one GPU to several and back."""
    wrappers = [(lambda: nn.DataParallel(critic())) if wrap else critic for wrap in wrapped]
    engine = Engine(lambda *_: None)
    objects, state = adversarial(tmp_path, wrappers[0])
    state.save(engine)
    nn.Linear(2, 1).load_state_dict(weights(tmp_path / "model.pt"))
    others, state = adversarial(tmp_path, wrappers[1], seed=1)
    assert not same(others["network"].state_dict(), objects["network"].state_dict())
    state.load(engine)
    for name, obj in objects.items():
        values, restored = (getattr(o, "module", o).state_dict() for o in (obj, others[name]))
        assert str(restored) == str(values)
    assert same(restored["state"][3], values["state"][3]) and len(values["state"]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"d_network": lambda: nn.Linear(2, 1)},
            "expected the state of Linear as discriminator, got that of Sequential",
        ),
        ({"d_network": lambda: nn.Sequential(nn.Linear(2, 3))}, "expected the state of this discriminator, got Error"),
        (
            {"d_optimizer": lambda p: torch.optim.Adam([{"params": [q]} for q in p])},
            "expected the state of this d_optimizer, got loaded state dict has a different number of parameter groups",
        ),
    ],
)
def test_the_state_of_another_discriminator_is_refused(tmp_path, options, message):
    engine = Engine(lambda *_: None)
    adversarial(tmp_path, critic)[1].save(engine)
    with pytest.raises(ScanError, match=rf"last\.pt: {message}.*output_dir") as info:
        adversarial(tmp_path, **{"d_network": critic, **options})[1].load(engine)
    assert "\n" not in str(info.value)


def test_a_write_that_breaks_off_leaves_the_file_of_before(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_atomically({"epoch": 1}, path)

    def full(state, file):
        with open(file, "wb") as opened:
            opened.write(b"PK half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ScanError, match=r"last\.pt: expected to write the file, got: No space left on device"):
        save_atomically({"epoch": 2}, path)
    assert weights(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_network_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"expected an object named network, got \['optimizer'\]"):
        TrainingState(tmp_path / "last.pt", {"optimizer": None}, tmp_path / "model.pt")
