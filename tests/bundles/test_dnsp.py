"""The DNSP bundle: the paper's training, its overlays in configs/dnsp/, and what its priors do."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events
from scipy.ndimage import gaussian_filter

from custom_components.acquisition import PROTOCOLS
from custom_components.inferers import AutocastInferer
from custom_components.losses import LearnableSharpness, SharpnessLoss, low_rank_loss, total_variation_loss
from custom_components.networks import DCSRN, EDSR, SRCNN

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_dnsp"
FOLDER = ROOT / "configs" / "dnsp"
SMOKE = ROOT / "configs" / "smoke.json"
BELOW = {"shipped_weights": [ROOT / "configs" / "short_training.json"]}


@pytest.fixture
def prepare(prepare_training):
    return lambda *overlays, **options: prepare_training(BUNDLE, *overlays, **options)


@pytest.fixture(scope="module")
def partners(training_scans, tmp_path_factory):
    """Each scan of the training again, blurred: another scanner's image of the same head."""
    folder = tmp_path_factory.mktemp("partners")
    for file in training_scans.glob("*.nii.gz"):
        image = nibabel.load(file)
        blurred = gaussian_filter(image.get_fdata(), 0.8).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(blurred, image.affine), folder / file.name)
    return folder


def transform_of(get, name):
    (found,) = [getattr(t, name) for t in get("train::preprocessing").transforms if hasattr(t, name)]
    return found


def test_without_overlay_it_is_the_papers_training(prepare):
    get = prepare().parser.get_parsed_content
    (group,) = get("optimizer").param_groups
    assert type(get("optimizer")) is torch.optim.Adam and group["lr"] == 1e-4
    assert get("train::dataloader").batch_size == 64 and get("max_epochs") == 50
    item = get("train::dataset")[0]
    assert item["image"].shape == item["target"].shape == (1, 40, 40)
    acquire = transform_of(get, "acquire")
    assert acquire.protocols == [PROTOCOLS["gaussian_spline"]] and acquire.scale_factors == [[2, 2, 1]]
    assert get("train::trainer").loss_function is get("loss")
    sharpness = get("loss").terms["sharpness"]
    assert any(sharpness.weight is p for p in group["params"])  # learnt with the network
    assert get("training_state").objects["loss"] is get("loss")
    assert get("loss").terms["filters"].sharp.shape[1:] == (1, 40, 40)


def test_the_loss_is_equation_10(prepare):
    """Of one image pair, written out."""
    get = prepare().parser.get_parsed_content
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand(1, 1, 40, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    loss, filters = get("loss"), get("sharpness").filters.double()

    def responses(images):
        return torch.nn.functional.conv2d(images.double(), filters[:, None])

    variance = responses(pred).flatten(2).var(-1).mean()
    patches = loss.terms["filters"]
    energy = [responses(x).square().sum() for x in (patches.smooth, patches.sharp)]
    expected = 0.5 * (pred - target).square().sum() + 1e-5 * low_rank_loss(pred) - 5e-3 * variance
    expected = expected + 1e-7 * (energy[0] - energy[1])
    assert loss(pred, target).item() == pytest.approx(expected.item(), rel=1e-5)


def weights(**expected):
    def check(get):
        loss = get("loss")
        used = {name for name, weight in loss.weights.items() if weight}
        assert used == {"squared_error", *expected} and loss.weights["squared_error"] == 0.5
        for name, (weight, kind) in expected.items():
            assert loss.weights[name] == weight
            assert kind is None or type(loss.terms[name]) is kind

    return check


def total_variation(get):
    weights(low_rank=(1e-5, None), total_variation=(get("total_variation_weight"), None))(get)
    x = torch.rand(2, 1, 8, 8)
    loss = get("loss")
    loss(x, x)
    assert loss.values["total_variation"] == pytest.approx(total_variation_loss(x).item())


def share(value):
    def check(get):
        patch = transform_of(get, "patch")
        scan = get("train::cached_scans")[0]["image"]
        seen = set()
        for _ in range(200):
            patch.randomize(scan)
            seen.add(patch.start[-1])
        total = max(scan.shape[1:]) if value == 1 else math.ceil(value * scan.shape[patch.order[-1] + 1])
        assert patch.share == value and len(seen) <= total

    return check


def scale(factor):
    def check(get):
        assert transform_of(get, "acquire").scale_factors == [[factor, factor, 1]]
        assert [item["scale_factor"] for item in get("validate::scans")] == [factor]

    return check


def network(kind, parameters=None):
    def check(get):
        assert type(get("network")) is kind
        assert get("network")(torch.rand(1, 1, 9, 8)).shape == (1, 1, 9, 8)
        if parameters:
            assert sum(p.numel() for p in get("network").parameters()) == parameters

    return check


def upsampling_inside(get):
    assert get("network")(torch.rand(1, 1, 9, 8)).shape == (1, 1, 18, 16)
    item = get("train::dataset")[0]
    assert (item["image"].shape, item["target"].shape) == ((1, 20, 20), (1, 40, 40))
    assert get("validate::evaluator").network_input == "lowres"


def shipped(get):
    assert isinstance(get("train::inferer"), AutocastInferer)
    assert get("lr_scheduler").total_steps == 25 * len(get("train::dataloader"))
    assert get("train::dataset")[0]["image"].shape == (1, 40, 40)


def low_field(get):
    """The input is the target with noise of the low field, at the same grid."""
    for _ in range(3):
        item = get("train::dataset")[0]
        assert item["image"].shape == item["target"].shape == (1, 40, 40)
        assert 0.003 < (item["image"] - item["target"]).std() < 0.1
    item = get("validate::dataset")[0]
    assert item["image"].shape == item["target"].shape == item["lowres"].shape


def pairs(get):
    item = get("train::dataset")[0]
    assert item["image"].shape == item["target"].shape == (1, 40, 40)
    correlation = torch.corrcoef(torch.stack([item["image"].flatten(), item["target"].flatten()]))[0, 1]
    assert 0.8 < correlation < 0.9999  # one place of two scans
    item = get("validate::dataset")[0]
    assert item["image"].shape == item["target"].shape and not torch.equal(item["image"], item["target"])


CHECKS = {
    "dcsrn": network(DCSRN),
    "fixed_sharpness": weights(sharpness=(5e-3, SharpnessLoss)),
    **{f"images_{percent}": share(percent / 100) for percent in (25, 50, 75, 100)},
    "learnable_sharpness": weights(sharpness=(5e-3, LearnableSharpness), filters=(1e-7, None)),
    "low_field": low_field,
    "low_rank": weights(low_rank=(1e-5, None)),
    "no_priors": weights(),
    "pairs": pairs,
    "paper_network": network(EDSR, 38360065),
    "scale_3": scale(3),
    "scale_4": scale(4),
    "shipped_weights": shipped,
    "srcnn": network(SRCNN),
    "total_variation": total_variation,
    "upsampling_inside": upsampling_inside,
}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_an_overlay_does_what_its_name_says(prepare, partners, file):
    options = {"target_dir": str(partners)} if file.stem == "pairs" else {}
    CHECKS[file.stem](prepare(*BELOW.get(file.stem, []), file, **options).parser.get_parsed_content)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low_field", "pairs"])
def test_training_without_a_change_of_the_grid(prepare, partners, name, tmp_path):
    options = {"target_dir": str(partners)} if name == "pairs" else {}
    prepare(SMOKE, FOLDER / f"{name}.json", **{**SMALL, "max_epochs": 2, "val_interval": 1}, **options, margin=0).run()
    rows = (tmp_path / "out" / "losses.csv").read_text().splitlines()
    last = dict(zip(rows[0].split(","), map(float, rows[-1].split(",")), strict=True))
    assert len(rows) == 3 and last["psnr"] > 15


def sharpness_of_training(workflow):
    """Sharpness of the results over that of the targets, batch by batch."""
    ratios = []
    trainer = workflow.parser.get_parsed_content("train::trainer")

    def record():
        batch, output = trainer.state.batch, trainer.state.output
        with torch.no_grad():
            values = [SharpnessLoss()(x).item() for x in (output["pred"], batch["target"])]
        ratios.append(values[0] / values[1])

    trainer.add_event_handler(Events.ITERATION_COMPLETED, record)
    workflow.run()
    return ratios


SMALL = {"patch_size": 16, "batch_size": 8, "patches_per_scan": 16, "val_interval": 100, "max_epochs": 6}
SMALL |= {"network_def::num_blocks": 1, "network_def::num_filters": 8, "learning_rate": 0.01}


@pytest.mark.slow
def test_the_sharpness_prior_is_stable_at_the_papers_weight_and_a_cap_holds_it_above(prepare):
    """V grows as the square of the image: beyond beta = (n - 1) / 128 the loss has no minimum, unless the prior is capped."""
    stable = sharpness_of_training(prepare(SMOKE, **SMALL, resume=False))
    assert all(map(math.isfinite, stable)) and max(stable[-8:]) < 3
    wild = sharpness_of_training(prepare(SMOKE, **SMALL, resume=False, beta=50.0))
    assert max(wild) > 20
    held = {"beta": 50.0, "sharpness::cap": 1.0, "loss::priors": ["low_rank"]}
    capped = sharpness_of_training(prepare(SMOKE, **SMALL, resume=False, **held))
    assert all(map(math.isfinite, capped)) and max(capped[-8:]) < 3


def test_terms_are_logged_one_by_one(prepare, tmp_path):
    prepare(SMOKE, **{**SMALL, "max_epochs": 1, "val_interval": 1}).run()
    header, *rows = (tmp_path / "out" / "losses.csv").read_text().splitlines()
    names = header.split(",")
    assert {"loss_squared_error", "loss_low_rank", "loss_sharpness", "loss_filters"} <= set(names)
    (values,) = [dict(zip(names, map(float, row.split(",")), strict=True)) for row in rows]
    total = 0.5 * values["loss_squared_error"] + 1e-5 * values["loss_low_rank"]
    total += 5e-3 * values["loss_sharpness"] + 1e-7 * values["loss_filters"]
    assert values["loss"] == pytest.approx(total, rel=1e-4)
