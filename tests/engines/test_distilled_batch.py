"""The teacher's result takes the place of the truth, and what stands beside it keeps its meaning."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter
from torch import nn

from custom_components.engines import DistilledBatch, RandAcquireBatch
from custom_components.losses import DetailLoss
from custom_components.networks import AnyScaleSR

ROOT = Path(__file__).parents[2]
NOISE = {"noise_std": (0.02, 0.02), "noise_prob": 1.0}


class Stub(nn.Module):
    """Gives three constant channels on the wished grid, and remembers what it was asked."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.7))
        self.asked = []

    def forward(self, x, shape, condition):
        self.asked.append((x, shape, condition, self.training, torch.is_grad_enabled()))
        return torch.stack([self.level * c for c in (1, 10, 100)])[None, :, None, None, None].expand(len(x), 3, *shape)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.rand(2, 1, 20, 20, 20, generator=generator), "spacing": torch.ones(2, 3)}


def acquire(seed=3, **options):
    made = RandAcquireBatch(**{"scale_factors": (2.0, 1.5), "margin": 4, **NOISE, **options})
    return made.set_random_state(seed)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_targets_against_numpy(batch, share):
    lr, target, args, kwargs = acquire()(batch, "cpu")
    got = DistilledBatch(acquire(), Stub(), share)(batch, "cpu")
    assert torch.equal(got[0], lr)
    assert got[2] == args == ()
    assert got[3]["shape"] == kwargs["shape"] and torch.equal(got[3]["condition"], kwargs["condition"])
    truth, noise = target.numpy()[:, 0].astype(float), target.numpy()[:, 1].astype(float)
    assert np.abs(noise).max() > 0.01
    np.testing.assert_allclose(got[1][:, 0], share * (0.7 - noise) + (1 - share) * truth, atol=1e-6)
    np.testing.assert_array_equal(got[1][:, 1], target[:, 1])


def test_the_teacher_is_asked_as_the_student_and_learns_nothing(batch):
    teacher = Stub().train()
    lr, target, _, kwargs = DistilledBatch(acquire(), teacher)(batch, "cpu")
    ((x, shape, condition, training, gradients),) = teacher.asked
    assert x is lr and shape == kwargs["shape"] and condition is kwargs["condition"]
    assert (training, gradients, teacher.level.requires_grad, target.requires_grad) == (False, False, False, False)


def test_a_teacher_without_a_share_is_not_computed(batch):
    teacher = Stub()
    DistilledBatch(acquire(), teacher, 0.0)(batch, "cpu")
    assert teacher.asked == []


def test_loss_of_a_teacher_by_itself_is_zero(batch):
    """In float32 to rounding, in bfloat16 to its precision, and not by the truth."""
    torch.manual_seed(0)
    teacher = AnyScaleSR(4, 1)
    nn.init.normal_(teacher.detail.weight, std=0.02)
    losses = {}
    for name, options in {"float32": {}, "bfloat16": {"amp_dtype": "bfloat16"}, "truth": {"share": 0.0}}.items():
        lr, target, _, kwargs = DistilledBatch(acquire(), teacher, **options)(batch, "cpu")
        assert target.dtype == torch.float32
        losses[name] = DetailLoss()(teacher(lr, **kwargs), target).item()
    assert losses["float32"] < 1e-12
    assert 1e-12 < losses["bfloat16"] < 1e-3 * losses["truth"]


def test_a_student_comes_near_its_teacher(batch):
    torch.manual_seed(0)
    teacher, student = AnyScaleSR(4, 1), AnyScaleSR(4, 1)
    nn.init.normal_(teacher.detail.weight, std=0.05)
    prepare = DistilledBatch(acquire(scale_factors=(2.0,), noise_prob=0.0, noise_std=(0.0, 0.0)), teacher)
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    course = []
    for _ in range(60):
        lr, target, _, kwargs = prepare(batch, "cpu")
        loss = DetailLoss()(student(lr, **kwargs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.append(loss.item())
    assert np.mean(course[-5:]) < 0.2 * course[0]


def test_a_seed_is_that_of_the_acquisition(batch):
    first, again, other = (
        DistilledBatch(acquire(0), Stub()).set_random_state(seed)(batch, "cpu")[0] for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"share": 1.1}, r"share must be in \[0, 1\], got 1.1"),
        ({"share": -0.1}, "share must be in"),
        ({"amp_dtype": "float64"}, 'amp_dtype must be "bfloat16", "float16" or None, got \'float64\''),
    ],
)
def test_bad_arguments(options, match):
    with pytest.raises(ValueError, match=match):
        DistilledBatch(acquire(), Stub(), **options)


@pytest.mark.slow
def test_the_overlay_trains_a_small_network_by_a_large_one(write_nifti, tmp_path, monkeypatch):
    """`configs/any/tiny.json`: the weights of a file are the teacher's, they stay, and those of the student change."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what a workflow sets
    monkeypatch.setattr(sys, "path", sys.path[:])
    rng = np.random.default_rng(0)
    entries = []
    for name, population in (("a", "adult"), ("b", "fetal"), ("c", "adult")):
        smooth = gaussian_filter(rng.random((26, 28, 25)), 1.5)
        write_nifti(f"hr/{name}.nii.gz", (1000 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.int16))
        entries.append({"image": f"{name}.nii.gz", "subject": name, "population": population, "modality": "T2w"})
    index = {"training": entries[:2], "validation": entries[2:]}
    (tmp_path / "hr" / "dataset.json").write_text(json.dumps(index))
    weights = AnyScaleSR(4, 1, num_kernels=3)
    nn.init.normal_(weights.detail.weight, std=0.02)
    torch.save(weights.state_dict(), tmp_path / "teacher.pt")
    bundle = ROOT / "bundles" / "brain_mri_sr_any"
    files = [bundle / "configs" / "train.json", *(ROOT / "configs" / name for name in ("any/tiny.json", "smoke.json"))]
    given = {
        "bundle_root": str(bundle),
        "dataset_dir": str(tmp_path / "hr"),
        "output_dir": str(tmp_path / "out"),
        "device": "$torch.device('cpu')",
        "teacher_weights": str(tmp_path / "teacher.pt"),
        "teacher_def::num_filters": 4,
        "teacher_def::num_layers": 1,
        "scale_factors": [2],
        "scale_weights": None,
        "max_epochs": 1,
        "val_interval": 1,
    }
    workflow = ConfigWorkflow([str(file) for file in files], logging_file=False, workflow_type="train", **given)
    workflow.initialize()
    workflow.run()
    get = workflow.parser.get_parsed_content
    prepare, student = get("distillation"), get("network")
    assert get("train::trainer").prepare_batch is prepare
    assert sum(value.numel() for value in student.parameters()) == 160_802
    for name, value in prepare.teacher.state_dict().items():
        assert torch.equal(value, weights.state_dict()[name])
    assert student.detail.weight.abs().max() > 0
    assert (tmp_path / "out" / "model.pt").stat().st_size < 1e6
