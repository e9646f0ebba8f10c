"""The command that fits NIQE's model, on files that nibabel wrote."""

from __future__ import annotations

import argparse
import inspect
import logging
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch

from custom_components.errors import ScanError
from custom_components.fit_niqe import main, scan_slices
from custom_components.metrics import Blocks, NaturalModel
from custom_components.splits import training_scans
from custom_components.training_images import add_split_options, training_images


@pytest.fixture
def folder(write_nifti):
    """Three heads with thick slices along the second axis; the first by the seed is kept for validation."""
    rng = np.random.default_rng(0)
    for name in "abc":
        voxels = 300 + 100 * ndi.gaussian_filter(rng.standard_normal((64, 10, 64)), (1, 0, 1), mode="wrap")
        path = write_nifti(f"scans/{name}.nii.gz", voxels.clip(0).astype(np.int16), np.diag([1.0, 4, 1, 1]))
    return path.parent


def test_model_of_the_training_split(folder, tmp_path, capsys):
    import nibabel as nib

    main(["--dataset_dir", str(folder), "--output", str(tmp_path / "out" / "niqe.pt"), "--every", "2"])
    found = NaturalModel.from_state_dict(torch.load(tmp_path / "out" / "niqe.pt", weights_only=True))
    stacks = []
    for scan in training_scans(folder, "training"):
        voxels = nib.load(scan["image"]).get_fdata()
        stacks.append(torch.from_numpy((voxels / np.percentile(voxels, 99.9)).clip(0, 1)[:, ::2]).movedim(1, 0))
    assert len(stacks) == 2
    expected = NaturalModel.fit(stacks)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-3, atol=1e-4)
    assert (found.count, found.blocks) == (expected.count, Blocks(foreground=0.1))
    assert f"model of {found.count} blocks of 2 scans" in capsys.readouterr().out


def test_training_images_as_nibabel_and_numpy_read_them(folder):
    """Of subjects b and c, by the seed; the bright voxels are clipped, the 0 of the scan stays 0."""
    import nibabel as nib

    images = training_images(folder)
    assert [Path(images[n]["image"].meta["filename_or_obj"]).name for n in range(len(images))] == [
        "b.nii.gz",
        "c.nii.gz",
    ]
    voxels = nib.load(folder / "b.nii.gz").get_fdata()
    expected = (voxels / np.percentile(voxels, 99.9)).clip(0, 1)
    np.testing.assert_allclose(images[0]["image"][0].numpy(), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(images[0]["image"].affine, np.diag([1.0, 4, 1, 1]))
    assert images[0]["image"].shape == (1, 64, 10, 64)


def test_the_options_are_the_arguments_of_training_images(folder):
    parser = argparse.ArgumentParser()
    add_split_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([])
    defaults = vars(parser.parse_args(["--dataset_dir", str(folder)]))
    parameters = inspect.signature(training_images).parameters
    assert defaults == {
        "dataset_dir": str(folder),
        **{k: p.default for k, p in parameters.items() if k != "dataset_dir"},
    }
    given = ["--dataset_dir", str(folder), "--where", "{'population': ['adult']}", "--max_subjects", "1"]
    for seed in range(4):
        chosen = vars(parser.parse_args([*given, "--seed", str(seed)]))
        wanted = training_scans(folder, "training", seed, where={"population": ["adult"]}, max_subjects=1)
        assert [item["stem"] for item in training_images(**chosen).data] == [scan["stem"] for scan in wanted]
    with pytest.raises(ScanError, match="expected scans in split 'training' where"):
        training_images(**vars(parser.parse_args([*given[:2], "--where", "{'population': 'fetal'}"])))


def test_orientations(caplog):
    scan = {"image": torch.rand(1, 40, 48, 30)}
    assert [tuple(s.shape) for s in scan_slices([scan], 32)] == [(30, 40, 48)]
    assert [tuple(s.shape) for s in scan_slices([scan], 28, all_axes=True, every=10)] == [
        (4, 48, 30),
        (5, 40, 30),
        (3, 40, 48),
    ]
    with caplog.at_level(logging.WARNING):
        assert [tuple(s.shape) for s in scan_slices([scan], 32, all_axes=True)] == [(30, 40, 48)]
    assert "expected slices of at least 32 x 32 voxels, got (48, 30)" in caplog.text


def test_too_few_blocks(folder, tmp_path):
    with pytest.raises(ValueError, match="expected at least 72 sharp foreground blocks to fit to, got"):
        main(["--dataset_dir", str(folder), "--output", str(tmp_path / "niqe.pt"), "--every", "10"])
    assert not (tmp_path / "niqe.pt").exists()
    with pytest.raises(ScanError, match="no such folder"):
        main(["--dataset_dir", str(tmp_path / "none"), "--output", str(tmp_path / "niqe.pt")])
