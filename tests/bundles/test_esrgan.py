"""The ESRGAN bundle: its two stages, the overlays in configs/esrgan/, and the weights by stage and factor."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from custom_components.acquisition import PROTOCOLS
from custom_components.errors import reason
from custom_components.handlers import GradientNormClipping, PhaseBalance
from custom_components.inferers import AutocastInferer
from custom_components.losses import TripletLoss, VGGPerceptualLoss
from custom_components.networks import EDSR, VGG19, ProgressiveRRDBNet, RRDBNet

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "fetal_mri_sr_esrgan"
FOLDER = ROOT / "configs" / "esrgan"
GAN = BUNDLE / "configs" / "train_gan.json"
SMOKE = ROOT / "configs" / "smoke.json"
MULTI_GPU = ROOT / "configs" / "multi_gpu.json"
SHORT = ROOT / "configs" / "short_training.json"
BELOW = {
    "shipped_weights": [SHORT],
    "shipped_weights_gan": [SHORT, FOLDER / "shipped_weights.json", GAN],
    "start_steps": [FOLDER / "progressive_8.json"],
    **{name: [GAN] for name in ("triplet", "gradient_clipping", "phase_balance", "vgg_perceptual")},
}
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


@pytest.fixture
def evaluate(prepare, tmp_path):
    """Evaluate the shipped weights on the validation scan; gives the lines of metrics.csv."""

    def run(*configs):
        out = tmp_path / "evaluation"
        prepare(BUNDLE / "configs" / "evaluate.json", *configs, output_dir=str(out)).run()
        with (out / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    return run


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


def test_the_default_features_are_those_of_the_network_that_dnsp_ships(prepare):
    """Network, options and weights, read from the other bundle and not from this one's config."""
    dnsp = ROOT / "bundles" / "brain_mri_sr_dnsp"
    train = json.loads((dnsp / "configs" / "train.json").read_text())
    workflow = prepare(GAN)
    assert workflow.parser["feature_network"] == train["network_def"] | {"spatial_dims": train["spatial_dims"]}
    loss = workflow.parser.get_parsed_content("gan_loss").terms["perceptual"]
    shipped = torch.load(dnsp / "models" / "model_np.pt", weights_only=True)
    found = loss.network.state_dict()
    assert found.keys() == shipped.keys() and all(torch.equal(found[name], shipped[name]) for name in shipped)
    assert (type(loss.network), loss.layer, loss.distance) == (EDSR, "body.4.body.0", "l1")
    assert isinstance(loss.network.get_submodule(loss.layer), torch.nn.Conv2d)


def test_features_of_another_network_are_refused(prepare, tmp_path):
    torch.save(EDSR(2, num_blocks=1, num_filters=4).state_dict(), tmp_path / "other.pt")
    for name, text in (("other.pt", "expected the weights of EDSR, got tensors"), ("none.pt", "got no such file")):
        with pytest.raises(RuntimeError) as info:
            prepare(GAN, feature_weights=str(tmp_path / name)).parser.get_parsed_content("perceptual_def")
        assert reason(info.value).startswith(f"{tmp_path / name}: ") and text in reason(info.value)


def rows(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


ONE_EPOCH = {"max_epochs": 1, "val_interval": 1, "patches_per_scan": 1}  # five scans: three steps


@pytest.mark.slow
def test_progressive_x8_trains_in_both_stages_from_an_x2_network(prepare, features, tmp_path):
    small = {"num_blocks": 1, "num_filters": 8, "growth": 4, "first_kernel_size": 9, "residual": True}
    torch.save(RRDBNet(2, scale_factor=2, **small).state_dict(), tmp_path / "x2.pt")
    overlays = [FOLDER / "progressive_8.json", SMOKE, GAN, FOLDER / "start_steps.json"]
    options = {**TINY, **features, **ONE_EPOCH, "start_from": str(tmp_path / "x2.pt")}
    workflow = prepare(*overlays, **options)
    start = torch.load(tmp_path / "x2.pt", weights_only=True)
    network = workflow.parser.get_parsed_content("network_def")
    for step in network.steps:
        found = step.state_dict()
        assert found.keys() == start.keys() and all(torch.equal(found[name], start[name]) for name in start)
    workflow.run()
    for folder, names in ((tmp_path / "out", {"loss"}), (tmp_path / "out" / "gan", {"loss", "loss_adversarial"})):
        (row,) = rows(folder)
        assert names <= row.keys() and np.isfinite([row[name] for name in names]).all() and row["iteration"] == 3
        state = torch.load(folder / "model.pt", weights_only=True)
        assert {name.split(".")[1] for name in state} == {"0", "1", "2"}
        assert all(not torch.equal(state[f"steps.{k}.tail.2.weight"], start["tail.2.weight"]) for k in range(3))
    ProgressiveRRDBNet(2, 8, **small).load_state_dict(state)


@pytest.mark.slow
def test_the_triplet_term_is_trained_on_and_written(prepare, features, tmp_path):
    options = {**TINY, **features, **ONE_EPOCH}
    sums = {}
    for weight in (0.0, 10.0):
        out = tmp_path / str(weight)
        workflow = prepare(SMOKE, GAN, FOLDER / "triplet.json", triplet_weight=weight, output_dir=str(out), **options)
        workflow.run()
        (row,) = rows(out / "gan")
        assert row["iteration"] == 3
        assert ("loss_triplet" in row) == (weight > 0)  # a term of weight 0 is not computed
        weights = {"perceptual": 1.0, "content": 0.01, "adversarial": 0.005, "triplet": weight}
        terms = sum(factor * row.get(f"loss_{name}", 0) for name, factor in weights.items())
        assert row["loss"] == pytest.approx(terms, rel=1e-4)
        state = torch.load(out / "gan" / "model.pt", weights_only=True)
        sums[weight] = sum(float(value.abs().sum()) for value in state.values())
    assert sums[0.0] != sums[10.0]


@pytest.mark.slow
def test_niqe_is_a_column_of_an_evaluation(evaluate, tmp_path):
    """The values are those of the metric itself on the files' voxels; the spline has its own."""
    metrics = evaluate(BUNDLE / "configs" / "evaluate_niqe.json")
    assert {line["method"] for line in metrics} == {"model", "spline"}
    for line in metrics:
        assert np.isfinite(float(line["niqe"])) and float(line["niqe"]) > 0
    assert len({line["niqe"] for line in metrics}) == 2
    table = (tmp_path / "evaluation" / "metrics.md").read_text()
    assert "niqe" in table.splitlines()[0] or "niqe" in table


@pytest.mark.slow
def test_the_perceptual_index_is_a_column_where_its_library_is_there(evaluate, monkeypatch):
    """`pyiqa` is stood in for: PI = (10 - Ma + NIQE) / 2 with a Ma of 4 for any slice; without it one line says what is missing."""
    configs = [BUNDLE / "configs" / name for name in ("evaluate_niqe.json", "evaluate_perceptual_index.json")]
    stand_in = type("Library", (), {"create_metric": staticmethod(lambda *_, **__: lambda image: torch.tensor(4.0))})
    monkeypatch.setitem(sys.modules, "pyiqa", stand_in)
    for line in evaluate(*configs):
        assert float(line["perceptual_index"]) == pytest.approx((10 - 4 + float(line["niqe"])) / 2, rel=1e-5)
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(RuntimeError) as info:
        evaluate(*configs)
    assert "expected the library pyiqa" in reason(info.value)


@pytest.mark.slow
def test_two_processes_train_both_networks(features, training_scans, tmp_path):
    """torchrun with gloo: both stages run, both ranks end with the same weights, and the main one alone writes."""
    out = tmp_path / "out"
    save = (
        "$torch.save({'network': @network_def.state_dict(), 'discriminator': @discriminator_def.state_dict(), "
        "'wrapped': [type(n).__name__ for n in (@network, @discriminator)], 'broadcast': @discriminator.broadcast_buffers}, "
        "@output_dir + f'/rank{torch.distributed.get_rank()}.pt')"
    )
    extra = tmp_path / "dump.json"
    extra.write_text(json.dumps({"run": ["$@train::trainer.run()", "$@gan::trainer.run()", save]}))
    files = [BUNDLE / "configs" / "train.json", MULTI_GPU, GAN, FOLDER / "multi_gpu_gan.json", SMOKE, extra]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str([str(file) for file in files])]
    given = {"bundle_root": BUNDLE, "dataset_dir": training_scans, "output_dir": out, **TINY, **features}
    given |= {"max_epochs": 1, "val_interval": 1, "patches_per_scan": 2}
    given["val_scale_factors"] = [2, 2]  # a scan of validation for each process
    command += [text for key, value in given.items() for text in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    for found in (first, second):
        assert found["wrapped"] == ["DistributedDataParallel"] * 2 and found["broadcast"] is False
    for part in ("network", "discriminator"):
        parameters = [name for name in first[part] if "running_" not in name]  # batch norm's are of each process
        assert parameters and all(torch.equal(first[part][name], second[part][name]) for name in parameters)
    psnr, gan = (torch.load(folder / "last.pt", weights_only=True) for folder in (out, out / "gan"))
    assert all(torch.equal(gan["network"][name], first["network"][name]) for name in first["network"])
    assert any(not torch.equal(gan["network"][name], psnr["network"][name]) for name in first["network"])
    assert all(torch.equal(gan["discriminator"][name], first["discriminator"][name]) for name in first["discriminator"])
    (row,) = rows(out / "gan")
    assert (
        row["iteration"] == 3 and {"loss_adversarial", "loss_discriminator"} <= row.keys()
    )  # 10 patches: 3 batches of 2 a rank
    assert len([*(out / "gan").glob("events*")]) == 1


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


def shipped_gan(get):
    trainer = get("gan::trainer")
    assert trainer.adversarial_weight == 0.002 and trainer.loss_function.weights == {"perceptual": 0.1, "content": 1}
    assert trainer.state.max_epochs == 3
    assert {o.param_groups[0]["lr"] for o in (trainer.optimizer, trainer.d_optimizer)} == {5e-5}


def progressive(get):
    scale(8)(get)
    network = get("network")
    assert type(network) is ProgressiveRRDBNet and [step.scale_factor for step in network.steps] == [2, 2, 2]
    one = RRDBNet(2, num_blocks=2, scale_factor=2).state_dict()
    assert {name: value.shape for name, value in network.steps[2].state_dict().items()} == {
        name: value.shape for name, value in one.items()
    }


def start_steps(get):
    """Three times the shipped x2 weights."""
    shipped = torch.load(BUNDLE / "models" / "model.pt", weights_only=True)
    for step in get("network").steps:
        found = step.state_dict()
        assert found.keys() == shipped.keys() and all(torch.equal(found[name], shipped[name]) for name in shipped)


def triplet(get):
    loss = get("gan::trainer").loss_function
    term = loss.terms["triplet"]
    assert isinstance(term, TripletLoss) and (term.scale_factor, term.margin) == (2, None)
    assert term.perceptual is loss.terms["perceptual"]
    assert loss.weights == {"perceptual": 1, "content": 1e-2, "triplet": 0.1}


def clipping(get):
    optimizers = {}
    for event in (Events.STARTED, *get("gan::trainer")._event_handlers):
        for handler, *_ in get("gan::trainer")._event_handlers[event]:
            if isinstance(handler, GradientNormClipping):
                optimizers[str(event.value)] = handler.optimizer
    assert optimizers == {
        "backward_completed": get("gan_optimizer"),
        "discriminator_backward_completed": get("discriminator_optimizer"),
    }


def phase_balance(get):
    """In both stages, before the state is written at the end of an epoch."""
    for stage in ("train", "gan"):
        balance = [handler for handler in get(f"{stage}::handlers") if isinstance(handler, PhaseBalance)]
        assert [handler.network for handler in balance] == [get("network")]


def vgg_perceptual(get):
    loss = get("perceptual_def")
    assert type(loss) is VGGPerceptualLoss and len(loss.network) == 35
    assert get("gan::trainer").loss_function.terms["perceptual"] is loss


CHECKS = {
    "paper_network": paper_network,
    "scale_4": scale(4),
    "scale_8": scale(8),
    "shipped_weights": shipped,
    "shipped_weights_gan": shipped_gan,
    "progressive_8": progressive,
    "start_steps": start_steps,
    "triplet": triplet,
    "gradient_clipping": clipping,
    "phase_balance": phase_balance,
    "vgg_perceptual": vgg_perceptual,
}
# what needs a process group is run by itself
OVERLAYS = [file for file in sorted(FOLDER.glob("*.json")) if file.stem != "multi_gpu_gan"]


@pytest.fixture
def vgg_weights(tmp_path):
    """A VGG19 of one filter a layer, under torchvision's names."""
    torch.save(VGG19(widths=[1] * 16).state_dict(), tmp_path / "vgg.pth")
    return str(tmp_path / "vgg.pth")


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.stem)
def test_an_overlay_does_what_its_name_says(prepare, vgg_weights, file):
    options = {"vgg_weights": vgg_weights} if file.stem == "vgg_perceptual" else {}
    CHECKS[file.stem](prepare(*BELOW.get(file.stem, []), file, **options).parser.get_parsed_content)


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


@pytest.mark.parametrize("stage", ["psnr", "gan"])
def test_the_log_says_that_a_gan_invents(stage):
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.json")
    parser["stage"] = stage
    text = parser.get_parsed_content("notice").text
    assert (text or "").startswith("a GAN invents texture") == (stage == "gan")
