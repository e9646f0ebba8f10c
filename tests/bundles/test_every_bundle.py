"""Each bundle from end to end on small scans: train, evaluate, infer."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path for path in (ROOT / "bundles").glob("*") if path.is_dir())
BASELINES = sorted((ROOT / "configs" / "baselines").glob("*.json"))
AFFINE = np.array([[0, -1.1, 0, 30], [0.9, 0, 0, -40], [0, 0, 1.2, 5], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two subjects to train on, one to validate on, one to sharpen."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate("abcd"):
        rng = np.random.default_rng(seed)
        volume = gaussian_filter(rng.random((20, 24, 18)), 2) + 0.15 * gaussian_filter(rng.random((20, 24, 18)), 0.7)
        volume = (1000 * (volume - volume.min()) / np.ptp(volume)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(volume, AFFINE), folder / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(
        json.dumps({"training": ["a.nii.gz", "b.nii.gz"], "validation": ["c.nii.gz"], "test": ["d.nii.gz"]})
    )
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run configs of a bundle in this process, the output in `tmp_path/<output>`."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what a workflow sets
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(ROOT)

    def run(bundle, names, dataset_dir, output, overlays=(), **options):
        files = [str(bundle / "configs" / f"{name}.json") for name in names] + [str(file) for file in overlays]
        given = {"bundle_root": str(bundle), "dataset_dir": str(dataset_dir), "output_dir": str(tmp_path / output)}
        given |= {"device": "$torch.device('cpu')", **options}
        kind = "inference" if "inference" in names else "train"
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type=kind, **given)
        workflow.initialize()
        workflow.run()
        return tmp_path / output

    return run


def rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.slow
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_train_evaluate_infer(bundle, run, scans):
    trained = run(bundle, ["train"], scans, "train", [ROOT / "configs" / "smoke.json"])
    course = rows(trained / "losses.csv")
    assert [row["epoch"] for row in course] == ["1", "2"]
    assert all(np.isfinite(float(row["loss"])) for row in course)
    state = torch.load(trained / "model.pt", weights_only=True)
    shipped = torch.load(bundle / "models" / "model.pt", weights_only=True)
    assert {name: value.shape for name, value in state.items()} == {n: v.shape for n, v in shipped.items()}

    evaluated = run(
        bundle, ["train", "evaluate"], scans, "evaluate", checkpoint=str(trained / "model.pt"), val_scale_factors=[2]
    )
    metrics = {row["method"]: row for row in rows(evaluated / "metrics.csv")}
    assert set(metrics) == {"model", "spline"}
    assert float(course[-1]["psnr"]) == pytest.approx(float(metrics["model"]["psnr"]), abs=1e-3)
    assert float(metrics["spline"]["psnr"]) > 20

    scan = scans / "d.nii.gz"
    inferred = run(bundle, ["inference"], scan, "infer", in_plane_only=False)
    (line,) = rows(inferred / "summary.csv")
    assert (line["status"], line["shape_out"]) == ("ok", "40x48x36")
    result = nibabel.load(inferred / "d_sr.nii.gz")
    expected = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    expected[:3, 3] = AFFINE[:3, 3] - AFFINE[:3, :3] @ np.full(3, 0.25)
    np.testing.assert_allclose(result.affine, expected, atol=1e-4)
    assert result.get_data_dtype() == np.int16
    before, after = (np.asarray(nibabel.load(file).dataobj, float) for file in (scan, inferred / "d_sr.nii.gz"))
    assert after.reshape(20, 2, 24, 2, 18, 2).mean((1, 3, 5)).ravel() == pytest.approx(before.ravel(), abs=150)


@pytest.mark.parametrize("file", BASELINES, ids=lambda file: file.stem)
@pytest.mark.parametrize("bundle", BUNDLES[:1], ids=lambda bundle: bundle.name)
def test_a_baseline_goes_the_way_of_a_bundle(bundle, file, run, scans):
    """Anisotropic, onto the grid asked for, near the spline that the bundle would start from."""
    options = {"scale_factor": [1, 2, 2.5], "output_dtype": "float32"}
    out = run(bundle, ["inference"], scans / "d.nii.gz", "out", [file], **options)
    (line,) = rows(out / "summary.csv")
    assert (line["status"], line["shape_out"], line["warnings"]) == ("ok", "20x48x45", "")
    spline = run(
        bundle, ["inference"], scans / "d.nii.gz", "spline", [BASELINES[0].with_name("bspline.json")], **options
    )
    result, smooth = (nibabel.load(folder / "d_sr.nii.gz").get_fdata() for folder in (out, spline))
    difference = np.abs(result - smooth).mean() / np.ptp(smooth)
    assert difference < 0.05
    assert (difference == 0) == (file.stem == "bspline")
