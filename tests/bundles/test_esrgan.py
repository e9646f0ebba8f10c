"""The ESRGAN bundle: its two stages, the overlays in configs/esrgan/, and the weights by stage and factor."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from custom_components.acquisition import PROTOCOLS
from custom_components.inferers import AutocastInferer
from custom_components.networks import EDSR

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "fetal_mri_sr_esrgan"
FOLDER = ROOT / "configs" / "esrgan"
GAN = BUNDLE / "configs" / "train_gan.json"
SMOKE = ROOT / "configs" / "smoke.json"
BELOW = {"shipped_weights": [ROOT / "configs" / "short_training.json"]}
TINY = {"network_def::num_blocks": 1, "network_def::num_filters": 8, "network_def::growth": 4}
TINY_GAN = {
    **{f"feature_network::{name}": value for name, value in {"num_blocks": 1, "num_filters": 4}.items()},
    "perceptual_def::layer": "body.0.body.0",
    "discriminator_def::num_filters": 4,
    "discriminator_def::dense_features": 8,
    "patch_size": 32,
    "margin": 6,
}


@pytest.fixture
def prepare(prepare_training):
    return lambda *overlays, **options: prepare_training(BUNDLE, *overlays, **options)


@pytest.fixture
def features(tmp_path):
    """Weights for a tiny feature network."""
    torch.save(EDSR(2, num_blocks=1, num_filters=4, residual=True).state_dict(), tmp_path / "features.pt")
    return {"feature_weights": str(tmp_path / "features.pt"), **TINY_GAN}


def pair_of(get):
    item = get("train::dataset")[0]
    return tuple(item["image"].shape), tuple(item["target"].shape)


def test_the_first_stage_is_the_papers(prepare):
    get = prepare().parser.get_parsed_content
    (group,) = get("optimizer").param_groups
    assert type(get("optimizer")) is torch.optim.Adam and (group["lr"], group["betas"]) == (2e-4, (0.9, 0.999))
    assert type(get("train::trainer").loss_function) is torch.nn.L1Loss
    assert get("train::dataloader").batch_size == 16
    assert pair_of(get) == ((1, 64, 64), (1, 128, 128))
    (acquire,) = [t.acquire for t in get("train::preprocessing").transforms if hasattr(t, "acquire")]
    assert acquire.protocols == [PROTOCOLS["bicubic"]]


def test_the_second_stage_is_the_papers(prepare, features):
    get = prepare(GAN, **features).parser.get_parsed_content
    trainer = get("gan::trainer")
    assert trainer.network is get("train::trainer").network and trainer.adversarial_weight == 5e-3
    assert trainer.loss_function.weights == {"perceptual": 1, "content": 1e-2}
    assert trainer.g_loss_function.kind == trainer.d_loss_function.kind == "relativistic_average"
    for optimizer in (trainer.optimizer, trainer.d_optimizer):
        assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["betas"] == (0.9, 0.999)


@pytest.mark.slow
def test_one_command_runs_both_stages_and_goes_on_after_a_kill(prepare, features, tmp_path):
    options = {**TINY, **features, "max_epochs": 1, "val_interval": 1, "patches_per_scan": 2}
    workflow = prepare(SMOKE, GAN, **options)
    workflow.run()
    out = tmp_path / "out"
    psnr, gan = (torch.load(folder / "model.pt", weights_only=True) for folder in (out, out / "gan"))
    assert psnr.keys() == gan.keys() and any(not torch.equal(psnr[k], gan[k]) for k in psnr)
    header = (out / "gan" / "losses.csv").read_text().splitlines()[0].split(",")
    assert {"loss_perceptual", "loss_content", "loss_adversarial", "loss_discriminator"} <= set(header)
    before = torch.load(out / "gan" / "last.pt", weights_only=True)
    assert {"discriminator", "discriminator_optimizer"} <= before.keys()
    again = prepare(
        SMOKE, GAN, **options, gan_epochs=2
    )  # as a killed run: the first stage is there, the second goes on
    again.run()
    after = torch.load(out / "gan" / "last.pt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (1, 2)
    assert again.parser.get_parsed_content("train::trainer").state.epoch == 1


def scale(factor):
    def check(get):
        assert pair_of(get) == ((1, 128 // factor, 128 // factor), (1, 128, 128))
        assert get("network").scale_factor == factor
        assert [item["scale_factor"] for item in get("validate::scans")] == [factor]

    return check


def paper_network(get):
    assert sum("body" in name and name.endswith("weight") for name, _ in get("network").named_parameters()) >= 23 * 15
    assert get("network_def").residual is False


def shipped(get):
    assert isinstance(get("train::inferer"), AutocastInferer)
    assert pair_of(get) == ((1, 32, 32), (1, 64, 64))


CHECKS = {
    "paper_network": paper_network,
    "scale_4": scale(4),
    "scale_8": scale(8),
    "shipped_weights": shipped,
}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_an_overlay_does_what_its_name_says(prepare, file):
    CHECKS[file.stem](prepare(*BELOW.get(file.stem, []), file).parser.get_parsed_content)


def test_stage_and_factor_choose_the_weights(infer_with, write_nifti):
    """Four files, four results, each on the grid of its factor within the slices."""
    rng = np.random.default_rng(0)
    scan = write_nifti("scan.nii.gz", (1000 * rng.random((14, 12, 3))).astype(np.int16), np.eye(4))
    sums = set()
    for factor, shape in ((2, "28x24x3"), (4, "56x48x3")):
        for stage in ("psnr", "gan"):
            (line,), folder = infer_with(BUNDLE, scan, stage=stage, network_factor=factor)
            assert (line["status"], line["shape_out"]) == ("ok", shape)
            sums.add(float(nibabel.load(folder / "scan_sr.nii.gz").get_fdata().sum()))
    assert len(sums) == 4
