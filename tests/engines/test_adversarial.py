"""The GAN trainer against steps written out by hand, against supervised training, resumed, and over two processes."""

from __future__ import annotations

import contextlib
import copy
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events as IgniteEvents
from monai.bundle import ConfigWorkflow
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.utils.enums import AdversarialIterationEvents as Events
from monai.utils.enums import AdversarialKeys
from torch import nn
from torch.nn.functional import softplus

from custom_components.engines import RelativisticGANTrainer, prepare_batch
from custom_components.handlers import (
    AdjustableGradientClipping,
    GradientNormClipping,
    LossCurve,
    LossTerms,
    Progress,
    TrainingState,
)
from custom_components.inferers import AutocastInferer
from custom_components.losses import CompositeLoss

ROOT = Path(__file__).parents[2]


def generator():
    """Doubles the size of 2D images."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.PixelShuffle(2))


def discriminator(dropout=0.0):
    torch.manual_seed(2)
    layers = [
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(0.2),
        nn.Dropout(dropout),
        nn.Conv2d(4, 2, 3),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))


def critic():
    """Without batch norm, which takes its statistics from one process."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.LeakyReLU(0.2), nn.Conv2d(4, 2, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1))


def pairs(count=4, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [
        {"image": torch.rand(1, 6, 5, generator=random), "target": torch.rand(1, 12, 10, generator=random)}
        for _ in range(count)
    ]


def content():
    return CompositeLoss({"l1": nn.L1Loss(), "l2": nn.MSELoss()}, {"l1": 0.5, "l2": 2})


def trainer(cls=RelativisticGANTrainer, epochs=1, count=4, **options):
    network = options.pop("network", None) or generator()
    given = {
        "device": "cpu",
        "max_epochs": epochs,
        "train_data_loader": DataLoader(pairs(count), batch_size=4),
        "network": network,
        "loss_function": content(),
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "prepare_batch": prepare_batch,
        "decollate": False,
    }
    if cls is RelativisticGANTrainer:
        d_network = options.pop("d_network", None) or discriminator()
        given |= {"d_network": d_network, "d_optimizer": torch.optim.SGD(d_network.parameters(), lr=0.1)}
    return cls(**(given | options))


def copies(network):
    return [p.detach().clone() for p in network.parameters()]


def gradients(network):
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# One iteration


@pytest.mark.parametrize("d_steps", [1, 3])
@pytest.mark.parametrize("batches", [1, 2])
def test_steps_are_those_written_out_by_hand(d_steps, batches):
    """Equations 5 to 7 with softplus, plain gradient descent, and `detach` where the trainer freezes."""
    run = trainer(d_steps=d_steps, adversarial_weight=0.3, count=4 * batches)
    run.run()
    network, critic = generator().train(), discriminator().train()
    for batch in DataLoader(pairs(4 * batches), batch_size=4):
        real, fake = batch["target"], network(batch["image"])
        r, f = critic(real).detach(), critic(fake)
        adversarial = softplus(-(f - r.mean())).mean() + softplus(r - f.mean()).mean()
        loss = 0.5 * (fake - real).abs().mean() + 2 * (fake - real).square().mean() + 0.3 * adversarial
        steps = torch.autograd.grad(loss, list(network.parameters()))
        for _ in range(d_steps):
            r, f = critic(real), critic(fake.detach())
            d_loss = softplus(-(r - f.mean())).mean() + softplus(f - r.mean()).mean()
            d_grads = torch.autograd.grad(d_loss, list(critic.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(critic.parameters(), d_grads, strict=True):
                    parameter -= 0.1 * gradient
        with torch.no_grad():
            for parameter, gradient in zip(network.parameters(), steps, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(copies(run.network), copies(network))
    torch.testing.assert_close(copies(run.d_network), copies(critic))
    output = run.state.output
    torch.testing.assert_close(output["loss"], loss)
    torch.testing.assert_close(output[AdversarialKeys.DISCRIMINATOR_LOSS], d_loss)
    torch.testing.assert_close(output[AdversarialKeys.REAL_LOGITS], r)
    torch.testing.assert_close(output[AdversarialKeys.FAKE_LOGITS], f)


def test_output_holds_each_term():
    run = trainer(adversarial_weight=0.3)
    run.run()
    output, batch = run.state.output, next(iter(DataLoader(pairs(), batch_size=4)))
    assert torch.equal(output["image"], batch["image"])
    for key in ("label", AdversarialKeys.REALS):
        assert torch.equal(output[key], batch["target"])
    assert output["pred"].shape == batch["target"].shape and output[AdversarialKeys.FAKES] is output["pred"]
    error = output["pred"].detach() - batch["target"]
    assert output["loss_l1"].item() == pytest.approx(error.abs().mean().item())
    assert output["loss_l2"].item() == pytest.approx(error.square().mean().item())
    reconstruction = 0.5 * output["loss_l1"] + 2 * output["loss_l2"]
    torch.testing.assert_close(output[AdversarialKeys.RECONSTRUCTION_LOSS].detach(), reconstruction)
    whole = reconstruction + 0.3 * output[AdversarialKeys.GENERATOR_LOSS].detach()
    torch.testing.assert_close(output["loss"].detach(), whole)
    values = run.loss_function.values
    assert list(values) == ["l1", "l2", "adversarial", "discriminator"]
    assert values["adversarial"].item() == output[AdversarialKeys.GENERATOR_LOSS].item()
    assert values["discriminator"].item() == output[AdversarialKeys.DISCRIMINATOR_LOSS].item()
    assert not any(value.requires_grad for value in values.values())


def test_a_loss_without_terms():
    run = trainer(loss_function=nn.L1Loss())
    run.run()
    whole = (
        run.state.output[AdversarialKeys.RECONSTRUCTION_LOSS] + 5e-3 * run.state.output[AdversarialKeys.GENERATOR_LOSS]
    )
    torch.testing.assert_close(run.state.output["loss"], whole)


def test_both_logits_go_to_both_losses():
    seen = []

    def spy(name):
        def loss(real, fake):
            seen.append((name, real.detach().clone(), fake.detach().clone()))
            return fake.mean() - real.mean()

        return loss

    run = trainer(g_loss_function=spy("g"), d_loss_function=spy("d"))
    before = copy.deepcopy(run.d_network).train()
    run.run()
    expected = [before(x).detach() for x in (run.state.output[AdversarialKeys.REALS], run.state.output["pred"])]
    assert [name for name, *_ in seen] == ["g", "d"]
    for _, real, fake in seen:  # the discriminator had made no step before either
        torch.testing.assert_close([real, fake], expected)


# Each step changes its own network


def test_an_optimiser_step_changes_only_its_own_network():
    run = trainer(d_steps=2, adversarial_weight=1.0)
    both = (run.network, run.d_network)
    before = [copies(network) for network in both]
    changed = []

    def look():
        now = [copies(network) for network in both]
        changed.append([not same(a, b) for a, b in zip(now, before, strict=True)])
        before[:] = now

    run.add_event_handler(Events.GENERATOR_MODEL_COMPLETED, look)
    run.add_event_handler(Events.DISCRIMINATOR_MODEL_COMPLETED, look)
    run.run()
    assert changed == [[True, False], [False, True], [False, True]]


def test_no_gradient_is_left_in_the_other_network():
    run = trainer(count=8, adversarial_weight=1.0)
    seen = {}

    def look(name):
        seen.setdefault(name, []).append([gradients(network) for network in (run.network, run.d_network)])

    run.add_event_handler(IterationEvents.FORWARD_COMPLETED, look, "start")
    run.add_event_handler(Events.GENERATOR_BACKWARD_COMPLETED, look, "generator")
    run.add_event_handler(Events.DISCRIMINATOR_BACKWARD_COMPLETED, look, "discriminator")
    run.run()
    assert all(g is None for g in seen["generator"][0][1])
    assert same(seen["generator"][1][1], seen["start"][1][1])
    for i in range(2):
        assert same(seen["discriminator"][i][0], seen["generator"][i][0])
        assert all(g.abs().sum() > 0 for g in seen["generator"][i][0])


def test_frozen_parameters_stay_frozen_and_others_are_set_free_again():
    network = discriminator()
    network[0].requires_grad_(False)
    run = trainer(d_network=network)
    before = copies(network)
    run.run()
    assert [p.requires_grad for p in network.parameters()] == [False] * 2 + [True] * 6
    assert same(before[:2], copies(network)[:2]) and not same(before[2:], copies(network)[2:])

    def broken(x, network):
        raise RuntimeError("in the discriminator")

    run = trainer(d_network=network, d_inferer=broken)
    with pytest.raises(RuntimeError, match="in the discriminator"):
        run.run()
    assert [p.requires_grad for p in network.parameters()] == [False] * 2 + [True] * 6


# The weight


def generator_gradient(cls=RelativisticGANTrainer, **options):
    run, found = trainer(cls, **options), []
    run.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda: found.extend(gradients(run.network)))
    run.run()
    return found, copies(run.network)


def test_weight_0_is_supervised_training():
    gradient, weights = generator_gradient(adversarial_weight=0)
    supervised, expected = generator_gradient(SupervisedTrainer)
    assert same(gradient, supervised) and same(weights, expected)


def test_at_weight_0_the_discriminator_learns_all_the_same():
    run = trainer(adversarial_weight=0)
    before = copies(run.d_network)
    run.run()
    assert not same(before, copies(run.d_network))
    assert AdversarialKeys.GENERATOR_LOSS not in run.state.output
    assert list(run.loss_function.values) == ["l1", "l2", "discriminator"]


def test_the_weight_multiplies_the_adversarial_gradient():
    """With a discriminator without batch norm, which would not see the generator's last bias."""
    options = [{"adversarial_weight": weight, "d_network": critic()} for weight in (0, 1.0, 3.0)]
    plain, one, three = (generator_gradient(**o)[0] for o in options)
    for a, b, c in zip(plain, one, three, strict=True):
        assert (b - a).abs().max() > 1e-5
        torch.testing.assert_close(c - a, 3 * (b - a), rtol=1e-3, atol=1e-6)


def test_the_weight_may_be_changed_while_training():
    run, losses = trainer(epochs=2), []
    run.add_event_handler(IgniteEvents.EPOCH_STARTED(once=2), lambda: setattr(run, "adversarial_weight", 0.0))
    run.add_event_handler(IgniteEvents.ITERATION_COMPLETED, lambda: losses.append(set(run.state.output)))
    run.run()
    assert [AdversarialKeys.GENERATOR_LOSS in keys for keys in losses] == [True, False]


# With the rest of MONAI


def test_bfloat16_in_both_networks():
    seen = []
    run = trainer(inferer=AutocastInferer(), adversarial_weight=1.0)
    for network in (run.network, run.d_network):
        for layer in network.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    found = []
    run.add_event_handler(IterationEvents.BACKWARD_COMPLETED, lambda: found.extend(gradients(run.network)))
    run.run()
    assert seen == [torch.bfloat16] * (2 + 4 * 3)
    output = run.state.output
    assert all(output[key].dtype == torch.float32 for key in ("pred", "loss", AdversarialKeys.REAL_LOGITS))
    exact, _ = generator_gradient(adversarial_weight=1.0)
    one, other = (torch.cat([g.flatten() for g in gradient]) for gradient in (found, exact))
    assert one.dtype == torch.float32
    assert nn.functional.cosine_similarity(one, other, dim=0) > 0.99


def test_decollated_output():
    run = trainer(decollate=True)
    run.run()
    assert isinstance(run.state.output, list) and len(run.state.output) == 4
    assert run.state.output[0]["pred"].shape == (1, 12, 10)
    assert run.state.output[0]["loss"] == run.state.output[3]["loss"] > 0


def test_further_arguments_of_the_network_go_to_the_generator_alone():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = generator()

        def forward(self, x, shift, scale):
            return scale * self.body(x) + shift

    def prepare(*args, **kwargs):
        return (*prepare_batch(*args, **kwargs), (1.0,), {"scale": 0.0})

    run = trainer(network=Scaled(), prepare_batch=prepare)
    run.run()
    assert (run.state.output["pred"] == 1).all()


def test_metatensors_as_the_loaders_give_them():
    data = [{key: MetaTensor(value) for key, value in pair.items()} for pair in pairs()]
    run, plain = trainer(train_data_loader=DataLoader(data, batch_size=4)), trainer()
    run.run()
    plain.run()
    torch.testing.assert_close(copies(run.network), copies(plain.network))


@pytest.mark.parametrize("clipped", [("network",), ("discriminator",), ("network", "discriminator")])
def test_each_network_is_clipped_in_its_own_phase(clipped):
    """With a norm of 1e-3 and a rate of 0.1 no step is longer than 1e-4; that of the other network is."""
    networks = {"network": generator(), "discriminator": discriminator()}
    optimizers = {name: torch.optim.SGD(network.parameters(), lr=0.1) for name, network in networks.items()}
    before = {name: copies(network) for name, network in networks.items()}
    handlers = [GradientNormClipping(optimizers[phase], 1e-3, phase=phase) for phase in clipped]
    trainer(
        network=networks["network"],
        d_network=networks["discriminator"],
        optimizer=optimizers["network"],
        d_optimizer=optimizers["discriminator"],
        train_handlers=handlers,
    ).run()
    for name, network in networks.items():
        step = torch.cat([(a - b).flatten() for a, b in zip(before[name], network.parameters(), strict=True)])
        assert (step.norm().item() == pytest.approx(1e-4, rel=1e-2)) == (name in clipped)
        assert step.norm() > 0.99e-4


def test_entries_of_the_discriminator_s_gradient_are_clipped():
    d_network = discriminator()
    d_optimizer = torch.optim.SGD(d_network.parameters(), lr=0.1)
    before = copies(d_network)
    clipping = AdjustableGradientClipping(d_optimizer, theta=1e-5, phase="discriminator")
    trainer(d_network=d_network, d_optimizer=d_optimizer, train_handlers=[clipping]).run()
    steps = [(a - b).abs().max() for a, b in zip(before, d_network.parameters(), strict=True)]
    assert max(steps).item() == pytest.approx(1e-5, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_weight": -1}, "adversarial_weight must be >= 0, got -1"),
        ({"adversarial_weight": float("nan")}, "adversarial_weight must be >= 0, got nan"),
        ({"d_steps": 0}, "d_steps must be >= 1, got 0"),
        ({"amp": True}, r"amp must be False in adversarial training \(give an AutocastInferer as inferer\), got True"),
        ({"compile": True}, "compile must be False in adversarial training, got True"),
        ({"accumulation_steps": 2}, "accumulation_steps must be 1 in adversarial training, got 2"),
        (
            {"loss_function": CompositeLoss({"adversarial": nn.L1Loss()})},
            r"with other names than .*, got \['adversarial'\]",
        ),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        trainer(**options)


def test_one_optimiser_for_both_is_refused():
    network = generator()
    with pytest.raises(ValueError, match="expected optimisers of different parameters, got 5 in both"):
        trainer(network=network, d_optimizer=torch.optim.Adam(network.parameters()))
    with pytest.raises(ValueError, match="expected a batch, got None"):
        trainer()._iteration(None, None)


# A whole run


class Run:
    """A training as `train.json` describes it: two networks, optimisers and schedulers, and all the handlers."""

    def __init__(self, folder, epochs=4, killed_after=None):
        network, d_network = generator(), discriminator(dropout=0.3)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        d_optimizer = torch.optim.Adam(d_network.parameters(), lr=1e-2)
        schedulers = [torch.optim.lr_scheduler.StepLR(o, step_size=1, gamma=0.8) for o in (optimizer, d_optimizer)]
        loss = content()
        evaluator = SupervisedEvaluator("cpu", DataLoader(pairs(2)), network, prepare_batch=prepare_batch)
        names = ("network", "optimizer", "lr_scheduler", "d_network", "d_optimizer", "d_lr_scheduler")
        objects = dict(
            zip(names, (network, optimizer, schedulers[0], d_network, d_optimizer, schedulers[1]), strict=True)
        )
        self.terms = []
        handlers = [
            ValidationHandler(1, evaluator),
            *(LrScheduleHandler(s, print_lr=False) for s in schedulers),
            LossCurve(folder, optimizer, evaluator, loss=loss),
            Progress(),
            TrainingState(folder / "last.pt", objects, folder / "model.pt", seed=5),
        ]
        evaluator.add_event_handler(
            IgniteEvents.COMPLETED, lambda: self.terms.append(LossTerms(loss)(self.trainer.state.output))
        )
        self.trainer = trainer(
            network=network,
            d_network=d_network,
            epochs=epochs,
            optimizer=optimizer,
            d_optimizer=d_optimizer,
            loss_function=loss,
            adversarial_weight=0.1,
            train_handlers=handlers,
            train_data_loader=DataLoader(pairs(8), batch_size=2, shuffle=True),
        )
        if killed_after:
            # within the epoch after it
            last = killed_after * 4 + 2
            self.trainer.add_event_handler(IgniteEvents.ITERATION_COMPLETED(once=last), self.trainer_killed)
        with contextlib.suppress(KeyboardInterrupt):
            self.trainer.run()

    def trainer_killed(self):
        raise KeyboardInterrupt


def state(path):
    return torch.load(path, weights_only=True)


def leaves(value, name=""):
    """All numbers and tensors of nested dictionaries and lists, by path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in leaves(part, f"{name}/{key}").items()}
    if isinstance(value, (list, tuple)):
        return {k: v for i, part in enumerate(value) for k, v in leaves(part, f"{name}/{i}").items()}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("runs")
    Run(tmp_path / "whole")
    Run(tmp_path / "killed", killed_after=2)
    assert state(tmp_path / "killed/last.pt")["epoch"] == 2
    assert leaves(state(tmp_path / "killed/last.pt")) != leaves(state(tmp_path / "whole/last.pt"))
    Run(tmp_path / "killed")
    return tmp_path / "whole", tmp_path / "killed"


def test_a_killed_run_ends_as_an_unbroken_one(runs):
    whole, resumed = (leaves(state(folder / "last.pt")) for folder in runs)
    assert whole == resumed
    for part in (
        "/network/0.weight",
        "/d_network/1.running_mean",
        "/optimizer/state/0/exp_avg",
        "/d_optimizer/state/0/step",
    ):
        assert part in whole
    assert whole["/d_lr_scheduler/last_epoch"] == 4
    assert whole["/optimizer/param_groups/0/lr"] == pytest.approx(1e-2 * 0.8**4)


def test_the_shipped_model_is_the_generator(runs):
    for folder in runs:
        model = state(folder / "model.pt")
        generator().load_state_dict(model)
        assert leaves(model) == leaves(state(folder / "last.pt")["network"])


def test_the_course_of_a_run_has_the_adversarial_terms(tmp_path):
    run = Run(tmp_path, epochs=2)
    with open(tmp_path / "losses.csv") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        whole = 0.5 * row["loss_l1"] + 2 * row["loss_l2"] + 0.1 * row["loss_adversarial"]
        assert row["loss"] == pytest.approx(whole, rel=1e-5)
        assert row["loss_discriminator"] > 0
    names = ["train_loss", *(f"train_loss_{name}" for name in ("l1", "l2", "adversarial", "discriminator"))]
    assert [list(terms) for terms in run.terms] == [names] * 2


# Several processes

PROCESS = """
import sys, torch
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[3]).parent))
import test_adversarial as t
from torch import nn
from torch.nn.parallel import DistributedDataParallel as Wrapped
from custom_components.processes import leave_process_group
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
found = {}
for name, broadcast in (("plain", True), ("norm", False)):
    d_network = t.critic() if name == "plain" else t.discriminator()
    d_network = Wrapped(d_network, broadcast_buffers=broadcast)
    mine = t.DataLoader(t.pairs(12)[rank::2], batch_size=2)
    options = {"adversarial_weight": 1.0, "d_steps": 2, "train_data_loader": mine}
    run = t.trainer(network=Wrapped(t.generator()), d_network=d_network, epochs=2, **options)
    run.run()
    values = [run.network.module.state_dict(), d_network.module.state_dict()]
    found[name] = (values, {k: v.item() for k, v in run.loss_function.values.items()})
try:
    t.trainer(d_network=Wrapped(t.discriminator()))
except ValueError as error:
    found["error"] = str(error)
torch.save(found, f"{folder}/rank{rank}.pt")
leave_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", PROCESS]
    processes = [
        subprocess.Popen([*command, str(rank), str(tmp_path), __file__], cwd=ROOT, env=environment) for rank in (0, 1)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name in ("plain", "norm"):
        (network, d_network), _ = ranks[0][name]
        other, d_other = ranks[1][name][0]
        assert same(network.values(), other.values())
        assert all(torch.equal(d_network[k], d_other[k]) for k in d_network if "running" not in k)
    whole = trainer(
        d_network=critic(),
        epochs=2,
        d_steps=2,
        adversarial_weight=1.0,
        train_data_loader=DataLoader(pairs(12), batch_size=4),
    )
    whole.run()
    torch.testing.assert_close(ranks[0]["plain"][0], [whole.network.state_dict(), whole.d_network.state_dict()])
    for name in ("adversarial", "discriminator"):
        expected = pytest.approx(whole.loss_function.values[name].item(), rel=1e-5)
        assert all(rank["plain"][1][name] == expected for rank in ranks)
    assert ranks[0]["error"].startswith("expected DistributedDataParallel with broadcast_buffers=False")


# On top of a bundle

OVERLAY = {
    "discriminator_def": (
        "$torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.AdaptiveAvgPool3d(1), torch.nn.Flatten(), torch.nn.Linear(2, 1))"
    ),
    "discriminator": "$@discriminator_def.to(@device)",
    "adversarial_weight": 0.005,
    "loss": {
        "_target_": "custom_components.losses.CompositeLoss",
        "terms": {"l1": {"_target_": "torch.nn.L1Loss"}},
        "weights": {"l1": 0.01},
    },
    "d_optimizer": {"_target_": "torch.optim.Adam", "params": "$@discriminator.parameters()", "lr": "@learning_rate"},
    "d_lr_scheduler": {"_target_": "torch.optim.lr_scheduler.ConstantLR", "optimizer": "@d_optimizer", "factor": 1.0},
    "d_lr_handler": {"_target_": "LrScheduleHandler", "lr_scheduler": "@d_lr_scheduler", "print_lr": False},
    "loss_curve::loss": "@loss",
    "training_state::evaluator": None,
    "training_state::objects::discriminator": "@discriminator",
    "training_state::objects::d_optimizer": "@d_optimizer",
    "training_state::objects::d_lr_scheduler": "@d_lr_scheduler",
    "train::handlers": [
        "%validation_handler",
        "%lr_handler",
        "%d_lr_handler",
        "%loss_curve",
        "%tensorboard",
        "%progress_bar",
        "%training_state",
    ],
    "train::trainer::_target_": "custom_components.engines.RelativisticGANTrainer",
    "train::trainer::d_network": "@discriminator",
    "train::trainer::d_optimizer": "@d_optimizer",
    "train::trainer::adversarial_weight": "@adversarial_weight",
}


@pytest.mark.slow
@pytest.mark.parametrize("amp", [False, True])
def test_a_bundle_is_trained_by_an_overlay(tmp_path, write_nifti, monkeypatch, amp):
    monkeypatch.setattr(sys, "path", sys.path[:])  # both are changed by a workflow
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    for i in range(3):
        voxels = np.random.default_rng(i).integers(0, 900, (20, 19, 18)).astype(np.int16)
        write_nifti(f"scans/s{i}.nii.gz", voxels, np.eye(4))
    sections = {"training": ["s0.nii.gz", "s1.nii.gz"], "validation": ["s2.nii.gz"]}
    (tmp_path / "scans/dataset.json").write_text(json.dumps(sections))
    (tmp_path / "train_gan.json").write_text(json.dumps(OVERLAY))
    bundle = ROOT / "bundles" / "brain_mri_sr_pnorm"
    files = [bundle / "configs/train.json", ROOT / "configs/smoke.json", tmp_path / "train_gan.json"]

    def workflow(**options):
        found = ConfigWorkflow(
            [str(file) for file in (*files, *([ROOT / "configs/amp.json"] if amp else []))],
            logging_file=False,
            workflow_type="train",
            bundle_root=str(bundle),
            dataset_dir=str(tmp_path / "scans"),
            output_dir=str(tmp_path / "out"),
            **{"network_def::num_filters": [4, 3], "device": "$torch.device('cpu')", "tensorboard::_disabled_": True},
            **options,
        )
        found.initialize()
        return found

    first = workflow(max_epochs=1)
    assert first.check_properties() in (None, [])
    assert isinstance(first.parser.get_parsed_content("train::trainer"), RelativisticGANTrainer)
    first.run()
    before = leaves(state(tmp_path / "out/last.pt"))
    second = workflow(max_epochs=2)
    second.run()
    after = leaves(state(tmp_path / "out/last.pt"))
    assert (before["/epoch"], after["/epoch"]) == (1, 2)
    assert {k for k in after if k.startswith("/discriminator/")} == {
        f"/discriminator/{k}" for k in ("0.weight", "0.bias", "3.weight", "3.bias")
    }
    changed = {name.split("/")[1] for name in after if name in before and after[name] != before[name]}
    assert {"network", "discriminator", "optimizer", "d_optimizer"} <= changed
    network = second.parser.get_parsed_content("network_def")
    network.load_state_dict(state(tmp_path / "out/model.pt"))
    with open(tmp_path / "out/losses.csv") as file:
        rows = list(csv.DictReader(file))
    assert {"loss_l1", "loss_adversarial", "loss_discriminator"} <= set(rows[0])
