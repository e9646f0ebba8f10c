"""The RRLSRN bundle: the paper's training, its overlays in configs/rrlsrn/, and one bundle in 2D and in 3D."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from custom_components.acquisition import PROTOCOLS
from custom_components.inferers import AutocastInferer

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_rrlsrn"
FOLDER = ROOT / "configs" / "rrlsrn"
SHORT = ROOT / "configs" / "short_training.json"
BELOW = {
    "shipped_weights": [SHORT],
    "shipped_weights_3d": [SHORT, FOLDER / "shipped_weights.json", FOLDER / "three_dimensions.json"],
}


@pytest.fixture
def prepare(prepare_training):
    return lambda *overlays, **options: prepare_training(BUNDLE, *overlays, **options)


def acquire_of(get):
    (acquire,) = [t.acquire for t in get("train::preprocessing").transforms if hasattr(t, "acquire")]
    return acquire


def pair_of(get):
    item = get("train::dataset")[0]
    return tuple(item["image"].shape), tuple(item["target"].shape)


def test_without_overlay_it_is_the_papers_training_by_adam(prepare):
    get = prepare().parser.get_parsed_content
    assert type(get("optimizer")) is torch.optim.Adam and get("optimizer").param_groups[0]["lr"] == 5e-4
    assert get("lr_scheduler").step_size == 50 and get("lr_scheduler").gamma == 0.5
    loss = get("train::trainer").loss_function
    assert loss.weights == {"charbonnier": 1, "gradient_difference": 1} and loss.terms["charbonnier"].eps == 1e-3
    assert get("train::dataloader").batch_size == 64
    assert pair_of(get) == ((1, 64, 64), (1, 128, 128))
    acquire = acquire_of(get)
    assert acquire.protocols == [PROTOCOLS["bicubic"]] and acquire.scale_factors == [[2, 2, 1]]
    network = get("network")
    sizes = [tuple(m.weight.shape) for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sizes == [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 12]
    assert [m.kernel_size for m in network.modules() if isinstance(m, torch.nn.ConvTranspose2d)] == [(4, 4)] * 2
    assert {m.negative_slope for m in network.modules() if isinstance(m, torch.nn.LeakyReLU)} == {0.2}


def paper_training(get):
    (group,) = get("optimizer").param_groups
    assert type(get("optimizer")) is torch.optim.SGD
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (1e-5, 0.9, 1e-4)


def charbonnier(get):
    pred, target = torch.rand(2, 1, 5, 5), torch.rand(2, 1, 5, 5)
    expected = ((pred - target) ** 2 + 1e-6).sqrt().sum() / 2
    assert get("loss")(pred, target).item() == pytest.approx(expected.item(), rel=1e-5)


def scale(factor):
    def check(get):
        assert pair_of(get) == ((1, 128 // factor, 128 // factor), (1, 128, 128))
        assert get("network")(torch.rand(1, 1, 6, 5)).shape == (1, 1, 6 * factor, 5 * factor)
        assert [item["scale_factor"] for item in get("validate::scans")] == [factor]

    return check


def shipped(dims):
    def check(get):
        assert type(get("optimizer")) is torch.optim.Adam and isinstance(get("train::inferer"), AutocastInferer)
        assert get("loss").terms["charbonnier"].reduction == "mean"
        assert pair_of(get) == (((1, 32, 32), (1, 64, 64)) if dims == 2 else ((1, 16, 16, 16), (1, 32, 32, 32)))
        assert get("lr_scheduler").total_steps == 24 * len(get("train::dataloader"))

    return check


def three_dimensions(get):
    assert get("network")(torch.rand(1, 1, 4, 5, 3)).shape == (1, 1, 8, 10, 6)
    assert pair_of(get) == ((1, 16, 16, 16), (1, 32, 32, 32))


CHECKS = {
    "charbonnier": charbonnier,
    "paper_training": paper_training,
    "scale_4": scale(4),
    "scale_8": scale(8),
    "shipped_weights": shipped(2),
    "shipped_weights_3d": shipped(3),
    "three_dimensions": three_dimensions,
}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda file: file.stem)
def test_an_overlay_does_what_its_name_says(prepare, file):
    CHECKS[file.stem](prepare(*BELOW.get(file.stem, []), file).parser.get_parsed_content)


def test_two_and_three_dimensions_from_one_config(infer_with, write_nifti):
    """Each with its own weights; both double the resolution over the same field of view."""
    rng = np.random.default_rng(0)
    scan = write_nifti("scan.nii.gz", (1000 * rng.random((12, 14, 10))).astype(np.int16))
    results = []
    for options in ({}, {"spatial_dims": 3, "checkpoint": str(BUNDLE / "models" / "model_3d.pt")}):
        (line,), folder = infer_with(BUNDLE, scan, **options)
        assert (line["status"], line["shape_out"]) == ("ok", "24x28x20")
        results.append(nibabel.load(folder / "scan_sr.nii.gz"))
    np.testing.assert_allclose(results[0].affine, results[1].affine)
    assert not np.array_equal(*(np.asarray(r.dataobj) for r in results))


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"in_plane_only": True}, "24x28x10"),
        ({"in_plane_only": True, "slice_axis": 0}, "12x28x20"),
        ({"scale_factor": 1.5}, "18x21x15"),
        ({"scale_factor": [3, 3, 1]}, "36x42x10"),
        ({"network_def::scale_factor": 4, "scale_factor": 4}, "48x56x40"),
        (
            {"spatial_dims": 3, "checkpoint": str(BUNDLE / "models" / "model_3d.pt"), "scale_factor": [1, 2, 3]},
            "12x28x30",
        ),
    ],
    ids=str,
)
def test_any_grid_that_is_asked_for(infer_with, write_nifti, options, shape):
    """What the network's own factor does not give is interpolated, and a smooth scan stays what it was."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (12, 14, 10)), indexing="ij")
    scan = write_nifti("scan.nii.gz", (500 + 300 * np.exp(-(x**2 + y**2 + z**2))).astype(np.float32), np.eye(4))
    (line,), folder = infer_with(BUNDLE, scan, **options)
    assert (line["status"], line["shape_out"]) == ("ok", shape)
    result = nibabel.load(folder / "scan_sr.nii.gz")
    extent = [n * s for n, s in zip(result.shape, result.header.get_zooms(), strict=True)]
    np.testing.assert_allclose(extent, (12, 14, 10), rtol=1e-5)
    sizes = [n / m for n, m in zip((12, 14, 10), result.shape, strict=True)]
    grid = np.meshgrid(
        *((np.arange(m) + 0.5) * s - 0.5 for m, s in zip(result.shape, sizes, strict=True)), indexing="ij"
    )
    truth = 500 + 300 * np.exp(-sum((2 * g / (n - 1) - 1) ** 2 for g, n in zip(grid, (12, 14, 10), strict=True)))
    inside = tuple(slice(m // 6, -(m // 6)) for m in result.shape)
    assert np.abs(result.get_fdata() - truth)[inside].max() < 15
