"""The bundle for any scan and spacing: its training step, any grid, what it is told of the acquisition, noise and uncertainty."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from custom_components.networks import AcquisitionEstimator
from custom_components.optimizers import Muon
from custom_components.pretrained import with_weights
from custom_components.transforms import (
    Acquire,
    LoadScan,
    RobustScale,
    SaveScan,
    ToTargetGrid,
    estimated_acquisition,
)

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_any"
FOLDER = ROOT / "configs" / "any"
FINE_TUNE = ROOT / "configs" / "fine_tune.json"
SCAN = ROOT / ".." / "shared" / "data" / "adult_t1" / "vxm-scan_T1w.nii.gz"
EXACT = {"amp_dtype": None, "output_dtype": "float32"}


@pytest.fixture
def infer(infer_with):
    """Line of the summary and folder of one scan; float32, without pictures."""

    def run(scan, **options):
        (line,), folder = infer_with(BUNDLE, scan, **{**EXACT, "preview::_disabled_": True, **options})
        assert (line["status"], line["error"]) == ("ok", "")
        return line, folder

    return run


@pytest.fixture
def voxels(infer):
    """Voxels of the result."""
    return lambda scan, **options: nibabel.load(infer(scan, **options)[0]["output"]).get_fdata()


@pytest.fixture
def thick(write_nifti):
    """A scan of thick slices with an edge in each direction, `(14, 12, 8)` of 1 x 1 x 3 mm."""
    rng = np.random.default_rng(0)
    image = 200 + 600 * (gaussian_filter(rng.random((14, 12, 8)), 1) > 0.5) + 20 * rng.random((14, 12, 8))
    return write_nifti("thick.nii.gz", image.astype(np.float32), np.diag([1, 1, 3, 1]))


def test_a_training_step_goes_from_patches_to_all_parts_of_the_loss(prepare_training):
    """The batch is acquired in the step: LR patches, truth and noise, and what the network is told."""
    options = {"batch_size": 2, "patch_size": 16, "margin": 6, "network_def::num_filters": 4, "seed": 1}
    get = prepare_training(BUNDLE, **options).parser.get_parsed_content
    batch = next(iter(get("train::dataloader")))
    assert batch["image"].shape == (2, 1, 28, 28, 28) and batch["spacing"].shape == (2, 3)
    lr, target, _, told = get("acquisition")(batch, "cpu")
    assert target.shape == (2, 2, *told["shape"]) and told["condition"].shape == (2, 14)
    assert all(n <= m <= 16 for n, m in zip(lr.shape[2:], told["shape"], strict=True))
    network, loss = get("network"), get("loss")
    value = loss(network(lr, **told), target)
    value.backward()
    assert torch.isfinite(value)
    heads = (network.detail, network.noise, network.error)
    assert all(head.bias.grad is not None and torch.isfinite(head.bias.grad).all() for head in heads)
    assert type(get("optimizer")) is Muon


def test_the_scans_of_the_shipped_weights(prepare_training):
    """Rare contrasts more often than T1w, adults more often than fetuses, which the first stage leaves out."""
    counts, factors = [], []
    for overlays in (["shipped_weights"], ["shipped_weights", "first_stage"]):
        get = prepare_training(BUNDLE, *(FOLDER / f"{name}.json" for name in overlays)).parser.get_parsed_content
        counts.append(Counter(scan["subject"] for scan in get("train::cached_scans").data))
        factors.append(get("acquisition").scale_factors)
    for count in counts:
        assert count["a0"] == count["a1"] > count["a3"] > count["sta-25"]
    assert counts[0]["sta-25"] > counts[1]["sta-25"] == 0
    assert factors[1] == [2] and len(factors[0]) > 1


def test_each_stage_of_the_shipped_weights_changes_its_own_part(prepare_training, tmp_path):
    """One kernel per layer, then the others and what mixes them, then the expected error; so the reference stays."""
    options = {"batch_size": 2, "patch_size": 16, "margin": 6, "network_def::num_filters": 4, "patches_per_scan": 1}
    stages = (
        ("first_stage", [], "(head|convolution|detail|noise).(weight|bias)|modulation.bias"),
        ("second_stage", [], "variants|shares|condition|modulation.weight|(noise|error).(weight|bias)"),
        ("error_stage", [FINE_TUNE], "error.(weight|bias)"),
    )
    kernels, weights = [], tmp_path / "stage.pt"
    for name, before, own in stages:
        start = {"start_from": str(weights)} if weights.exists() else {}
        overlays = [FOLDER / "shipped_weights.json", *before, FOLDER / f"{name}.json"]
        get = prepare_training(BUNDLE, *overlays, **options, **start).parser.get_parsed_content
        network = get("network_def")
        given = torch.load(weights) if start else {}
        assert all(torch.equal(network.state_dict()[key], value) for key, value in given.items())
        trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
        assert trained == {key for key, _ in network.named_parameters() if re.search(own, key)}, name
        kernels.append(len(network.detail.variants) + 1)
        torch.save(network.state_dict(), weights)
    assert kernels == [1, 3, 3]


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, "24x28x20"),
        ({"scale_factor": 1.3}, "16x18x13"),
        ({"scale_factor": [1, 1, 3.3]}, "12x14x33"),
        ({"scale_factor": [2, 1.5, 5]}, "24x21x50"),
        ({"target_spacing": 0.8}, "15x18x12"),
        ({"target_spacing": [0, 0.5, 0.8]}, "12x28x12"),
        ({"in_plane_only": True, "scale_factor": 2}, "24x28x10"),
    ],
    ids=str,
)
def test_any_grid_that_is_asked_for(infer, write_nifti, options, shape):
    """One set of weights for all; a smooth scan stays what it was, and where it was."""
    sizes = (12, 14, 10)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in sizes), indexing="ij")
    scan = write_nifti("scan.nii.gz", (500 + 300 * np.exp(-(x**2 + y**2 + z**2))).astype(np.float32), np.eye(4))
    line, folder = infer(scan, **options)
    assert line["shape_out"] == shape
    result = nibabel.load(folder / "scan_sr.nii.gz")
    extent = [n * s for n, s in zip(result.shape, result.header.get_zooms(), strict=True)]
    np.testing.assert_allclose(extent, sizes, rtol=1e-5)
    grid = np.meshgrid(
        *((np.arange(m) + 0.5) * n / m - 0.5 for n, m in zip(sizes, result.shape, strict=True)), indexing="ij"
    )
    truth = 500 + 300 * np.exp(-sum((2 * g / (n - 1) - 1) ** 2 for g, n in zip(grid, sizes, strict=True)))
    inside = tuple(slice(m // 6, -(m // 6)) for m in result.shape)
    assert np.abs(result.get_fdata() - truth)[inside].max() < 20


def test_the_uncertainty_lies_beside_the_result(infer, thick):
    """On the same grid, in the scan's units; the result is the same with and without."""
    (plain, folder), (line, other) = (
        infer(thick, scale_factor=[1, 1, 2]),
        infer(thick, scale_factor=[1, 1, 2], uncertainty=True),
    )
    assert not (folder / "thick_sr_uncertainty.nii.gz").exists()
    result, spread = (nibabel.load(other / f"thick_{name}.nii.gz") for name in ("sr", "sr_uncertainty"))
    np.testing.assert_array_equal(spread.affine, result.affine)
    assert (spread.shape, spread.get_data_dtype()) == ((14, 12, 16), np.float32)
    assert spread.get_fdata().min() > 0 and 1 < spread.get_fdata().max() < 800
    np.testing.assert_allclose(result.get_fdata(), nibabel.load(plain["output"]).get_fdata(), atol=0.1)
    assert line["fingerprint"] != plain["fingerprint"]


def test_noise_is_taken_away_in_proportion(voxels, write_nifti):
    """The result is linear in the strength; in a flat region full strength leaves less noise."""
    rng = np.random.default_rng(0)
    ball = sum(
        ((np.arange(n) - (n - 1) / 2) ** 2).reshape([-1 if i == a else 1 for i in range(3)])
        for a, n in enumerate([20] * 3)
    )
    clean = np.where(ball < 49, 1000.0, 300)
    scan = write_nifti("noisy.nii.gz", (clean + 30 * rng.standard_normal(clean.shape)).astype(np.float32), np.eye(4))
    known = {"known_noise_std": 0.03, "scale_factor": 1.5}
    none, half, full = (voxels(scan, denoising_strength=s, **known) for s in (0.0, 0.5, 1.0))
    kept = np.minimum(none, full) > 0  # what is below the scan's range was clipped
    np.testing.assert_allclose(half[kept], ((none + full) / 2)[kept], atol=0.2)
    inside = (slice(12, 18),) * 3
    assert full[inside].std() < none[inside].std()


def test_what_is_known_is_told(voxels, infer, thick):
    """A slice thickness, from the file beside the scan or by the option, noise and protocol change the result."""
    options = {"scale_factor": [1, 1, 3], "estimate_acquisition": False}
    unknown = voxels(thick, **options)
    told = [voxels(thick, **options, **given) for given in (
        {"slice_thickness": 2.4}, {"known_noise_std": 0.0}, {"known_noise_std": 0.03}
    )]  # fmt: skip
    for i, result in enumerate(told):
        assert all(np.abs(result - other).max() > 1e-3 for other in [unknown, *told[:i]])
    thick.with_name("thick.json").write_text(json.dumps({"SliceThickness": 2.4}))
    np.testing.assert_array_equal(voxels(thick, **options), told[0])
    line, _ = infer(thick, scale_factor=[1, 1, 3], known_acquisition="box")
    assert float(line["consistency_error"]) > 0


def test_what_is_not_known_is_estimated(voxels, thick, caplog):
    """And said in the log; trusted less than what is told; off on request, and then without the estimator's weights."""
    options = {"scale_factor": [1, 1, 3]}
    lowres = RobustScale()(LoadScan()(thick))
    estimator = with_weights(AcquisitionEstimator(), BUNDLE / "models" / "estimator.pt")
    (_, _, width), noise = estimated_acquisition(lowres, (14, 12, 24), estimator)
    assert 0.25 < width < 2.5 and 0 <= noise <= 0.04
    off = {"estimate_acquisition": False, "estimator::path": "none.pt", **options}
    with caplog.at_level(logging.INFO, "custom_components"):
        estimated = voxels(thick, **options)
    said = f"estimated from the scan: slice profile of {width:.2f} voxels on axis 2, noise of {100 * noise:.1f} % of its range"
    assert said in caplog.text
    unknown, told = voxels(thick, **off), voxels(thick, slice_thickness=3 * width, known_noise_std=noise, **off)
    assert np.abs(estimated - unknown).max() > 1 and np.abs(estimated - told).max() > 1e-2


def test_the_estimator_is_trained_by_the_same_config(prepare_training):
    """The batch asks how it was acquired; each part of the estimator learns; nothing is validated."""
    options = {"batch_size": 2, "patch_size": 24, "margin": 6, "seed": 1}
    get = prepare_training(BUNDLE, FOLDER / "estimator.json", **options).parser.get_parsed_content
    batch = next(iter(get("train::dataloader")))
    lr, target, args, told = get("acquisition_batch")(batch, "cpu")
    assert target.shape == (2, 4) and not target[:, 3].isnan().any() and args == ()
    network = get("network")
    assert type(network) is AcquisitionEstimator
    get("loss")(network(lr, **told), target).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())
    assert get("train::trainer").prepare_batch is get("acquisition_batch")
    assert get("training_state").evaluator is None and get("validation_handler") is None


@pytest.mark.parametrize("option", [{"denoising_strength": 1.5}, {"slice_thickness": -1}], ids=str)
def test_what_cannot_be_is_refused(infer_with, thick, option):
    with pytest.raises(Exception, match=r"instantiate|evaluate") as caught:
        infer_with(BUNDLE, thick, **option)
    cause = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert f"{next(iter(option))} must be" in str(cause)


@pytest.mark.real_data
@pytest.mark.parametrize("factor", [1.5, 2, [1, 1, 3.3]], ids=str)
def test_it_is_better_than_the_spline(voxels, tmp_path, factor):
    """On the middle of a scan that it was not trained on."""
    if not SCAN.is_file():
        pytest.skip(f"needs {SCAN.name}, which is not part of the repository")
    hr = RobustScale(lower=None, clip=True)(LoadScan()(SCAN))
    middle = tuple(slice(n // 2 - 33, n // 2 + 33) for n in hr.shape[1:])
    lr, hr = Acquire(factor)(hr[(slice(None), *middle)])
    SaveScan(tmp_path, postfix="", dtype="float32")(lr, stem="lr")
    exact = [n / m for n, m in zip(hr.shape[1:], lr.shape[1:], strict=True)]
    result = voxels(tmp_path / "lr.nii.gz", scale_factor=exact)
    spline = ToTargetGrid(scale_factor=exact)(lr)[0].numpy()
    truth = hr[0].numpy()
    assert result.shape == spline.shape == truth.shape
    assert np.square(result - truth).mean() < np.square(spline - truth).mean()
