"""The p-norm bundle: what its overlays in configs/pnorm/ do, and what a p below 1.5 needs to converge."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Events

from custom_components.acquisition import PROTOCOLS
from custom_components.handlers import load_weights
from custom_components.inferers import AutocastInferer
from custom_components.networks import SRCNN

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_pnorm"
OVERLAYS = sorted((ROOT / "configs" / "pnorm").glob("*.json"))
SMOKE = ROOT / "configs" / "smoke.json"


@pytest.fixture(scope="module")
def training_scans(write_training_scans):
    return write_training_scans((16, 18, 14))


@pytest.fixture
def prepare(prepare_training):
    return partial(prepare_training, BUNDLE)


def overlay(name):
    return ROOT / "configs" / "pnorm" / f"{name}.json"


def test_without_overlay_it_is_the_papers_training(prepare):
    get = prepare().parser.get_parsed_content
    (group,) = get("optimizer").param_groups
    assert type(get("optimizer")) is torch.optim.SGD and (group["lr"], group["momentum"]) == (1e-4, 0.9)
    loss = get("train::trainer").loss_function
    assert (loss.p, loss.reduction, loss.matched_at) == (1.9, "batchmean", None)
    assert get("train::dataloader").batch_size == 256
    steps = len(get("train::dataloader"))
    assert 50000 <= get("max_epochs") * steps < 50000 + steps
    (acquire,) = [t.acquire for t in get("train::preprocessing").transforms if hasattr(t, "acquire")]
    assert acquire.protocols == [PROTOCOLS["gaussian_bicubic"]] and acquire.scale_factors == [2]
    sizes = [tuple(m.weight.shape) for m in get("network").modules() if isinstance(m, torch.nn.Conv3d)]
    assert sizes == [(64, 1, 9, 9, 9), (32, 64, 1, 1, 1), (1, 32, 5, 5, 5)]


def p_is(value):
    def check(get):
        assert get("loss").p == value

    return check


def scale_3(get):
    (acquire,) = [t.acquire for t in get("train::preprocessing").transforms if hasattr(t, "acquire")]
    assert acquire.scale_factors == [3]
    assert [item["scale_factor"] for item in get("validate::scans")] == [3]


def shipped(get):
    assert type(get("optimizer")) is torch.optim.Adam
    assert get("loss").reduction == "mean" and get("loss").p == 1.9
    assert isinstance(get("train::inferer"), AutocastInferer)
    assert get("train::dataset")[0]["image"].shape == (1, 40, 40, 40)
    assert get("lr_scheduler").total_steps == 24 * len(get("train::dataloader"))


def residual(get):
    network = get("network")
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    assert not network(torch.rand(1, 1, 5, 5, 5)).any()


def learnable(get):
    loss, optimizer = get("loss"), get("optimizer")
    assert any(loss.logit is p for group in optimizer.param_groups for p in group["params"])
    assert get("training_state").objects["loss"] is loss


def matched(get):
    assert get("loss").matched_at == 0.02


def annealed(get):
    assert get("loss").p == 2


CHECKS = {
    **{f"p_{p:g}": p_is(p) for p in (1, 1.25, 1.5, 1.6, 1.75, 1.9, 2)},
    "annealed_p": annealed,
    "learnable_p": learnable,
    "matched_gradient": matched,
    "non_residual": residual,
    "scale_3": scale_3,
    "shipped_weights": shipped,
}


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.stem)
def test_an_overlay_does_what_its_name_says(prepare, file):
    below = [ROOT / "configs" / "short_training.json"] if file.stem == "shipped_weights" else []
    CHECKS[file.stem](prepare(*below, file).parser.get_parsed_content)


SMALL = {
    "patch_size": 15,
    "batch_size": 2,
    "patches_per_scan": 4,
    "val_interval": 100,
    "network_def::num_filters": [8, 4],
}


def test_p_is_annealed_from_2_to_1(prepare):
    workflow = prepare(SMOKE, overlay("annealed_p"), **SMALL, max_epochs=4)
    seen = []
    trainer = workflow.parser.get_parsed_content("train::trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(workflow.parser.get_parsed_content("loss").p))
    workflow.run()
    assert seen == pytest.approx([1.75, 1.5, 1.25, 1.0])


def test_a_learnt_p_moves_and_is_in_the_checkpoint(prepare, tmp_path):
    workflow = prepare(SMOKE, overlay("learnable_p"), **SMALL, max_epochs=2)
    start = workflow.parser.get_parsed_content("loss").p
    workflow.run()
    learnt = workflow.parser.get_parsed_content("loss").p
    assert 1 < learnt < 2 and learnt != start
    state = torch.load(tmp_path / "out" / "last.pt", weights_only=True)["loss"]
    assert 1 + torch.sigmoid(state["logit"]).item() == pytest.approx(learnt)


def test_each_shipped_checkpoint_loads_and_is_another():
    files = sorted((BUNDLE / "models").rglob("*.pt"))
    assert {"model.pt", "model_p2_x2.pt", "model_p1.9_x3.pt", "model_p2_x3.pt"} <= {file.name for file in files}
    network = SRCNN(3, residual=True)
    seen = set()
    for file in files:
        load_weights(network, file)
        seen.add(network.body[0].weight.sum().item())
    assert len(seen) == len(files)


def final_error(workflow):
    """Mean absolute error of the last quarter of a training over that of the interpolated image."""
    errors = []
    trainer = workflow.parser.get_parsed_content("train::trainer")

    def record():
        state = trainer.state
        image, target = (state.batch[key] for key in ("image", "target"))
        errors.append([(x - target).abs().mean().item() for x in (state.output["pred"], image)])

    trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
    workflow.run()
    last = np.array(errors)[-len(errors) // 4 :]
    return last[:, 0].mean() / last[:, 1].mean()


@pytest.mark.slow
def test_a_low_p_diverges_by_the_gradients_scale_alone(prepare):
    """At the paper's settings the loss of p = 2 is stable and that of p = 1 is not; with matched gradients it is."""
    options = {"patch_size": 15, "batch_size": 4, "patches_per_scan": 16, "val_interval": 100, "max_epochs": 4}
    error = {
        name: final_error(prepare(SMOKE, *map(overlay, files), resume=False, **options))
        for name, files in {"p = 2": ["p_2"], "p = 1": ["p_1"], "matched": ["p_1", "matched_gradient"]}.items()
    }
    assert all(map(math.isfinite, error.values()))
    assert error["p = 2"] < 1.05 and error["matched"] < 1.05
    assert error["p = 1"] > 1.2
