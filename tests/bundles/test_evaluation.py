"""Evaluation by `train.json` + `evaluate.json`, against a computation by scipy and scikit-image."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter, zoom
from skimage.metrics import structural_similarity

from custom_components.networks import ReCNN

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_recnn"
FILES = [str(BUNDLE / "configs" / f"{name}.json") for name in ("train", "evaluate")]
TINY = {"num_layers": 2, "num_filters": 2}
FACTORS = [2, [2, 2, 3], [1, 1, 2]]
NAMES = ["2x2x2", "2x2x3", "1x1x2"]


def head(seed):
    """A smooth volume with detail in it and no empty background, of odd sizes."""
    rng = np.random.default_rng(seed)
    shape = (25, 22, 20)
    volume = gaussian_filter(rng.random(shape), 2) + 0.15 * gaussian_filter(rng.random(shape), 0.7)
    return (900 * (volume - volume.min()) / np.ptp(volume) + 100).astype(np.float32)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three good scans; a damaged one stands in the middle."""
    folder = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate("acd"):
        nibabel.save(nibabel.Nifti1Image(head(seed), np.diag([0.8, 1, 1.2, 1])), folder / f"{name}.nii.gz")
    (folder / "b.nii.gz").write_bytes((folder / "a.nii.gz").read_bytes()[:3000])
    validation = [f"{name}.nii.gz" for name in "abc"]
    (folder / "dataset.json").write_text(json.dumps({"training": ["d.nii.gz"], "validation": validation}))
    return folder


def weights(path, zero):
    torch.manual_seed(0)
    network = ReCNN(3, **TINY)
    for parameter in network.parameters():
        if zero:
            torch.nn.init.zeros_(parameter)
    torch.save(network.state_dict(), path)


@pytest.fixture
def evaluate(scans, tmp_path, monkeypatch):
    """Run the evaluation in this process and give the lines of its three files."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what a workflow sets
    monkeypatch.setattr(sys, "path", sys.path[:])

    def run(zero=False, **options):
        weights(tmp_path / "model.pt", zero)
        given = {
            "bundle_root": str(BUNDLE),
            "dataset_dir": str(scans),
            "output_dir": str(tmp_path / "out"),
            "checkpoint": str(tmp_path / "model.pt"),
            "device": "$torch.device('cpu')",
            "val_scale_factors": FACTORS,
            **{f"network_def::{name}": value for name, value in TINY.items()},
            **options,
        }
        workflow = ConfigWorkflow(FILES, logging_file=False, workflow_type="train", **given)
        workflow.initialize()
        with pytest.raises(SystemExit, match="1"):  # the damaged scan
            workflow.run()
        return [read(tmp_path / "out" / name) for name in ("metrics.csv", "metrics_by_factor.csv")]

    return run


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def spline_by_scipy(hr, factor):
    """PSNR, SSIM and RMSE by the protocol of the reference weights' evaluation (Pham 2019 on the voxel-centred grid).

    HR to [0, 1] by its 99.9th percentile, Gaussian of sigma 1, cubic spline to the LR grid and back. Axes without a
    factor are neither blurred nor sampled.
    """
    factor = np.broadcast_to(factor, 3)
    hr = np.clip(hr / np.percentile(hr, 99.9), 0, 1)
    hr = hr[tuple(slice(0, n - n % f) for n, f in zip(hr.shape, factor, strict=True))]
    options = {"order": 3, "grid_mode": True, "mode": "nearest"}
    lr = zoom(gaussian_filter(hr, [float(f > 1) for f in factor]), 1 / factor, **options)
    image = np.clip(zoom(lr, factor, **options), 0, None)
    assert image.shape == hr.shape
    error = np.mean((image - hr) ** 2)
    return {
        "psnr": -10 * np.log10(error),
        "ssim": structural_similarity(hr, image, data_range=1.0),
        "rmse": np.sqrt(error),
    }


def test_the_spline_rows_are_those_of_scipy(evaluate):
    lines, by_factor = evaluate()
    spline = {(r["scan"], r["scale_factor"]): r for r in lines if r["method"] == "spline"}
    assert set(spline) == {(scan, name) for scan in "ac" for name in NAMES}
    for factor, name in zip(FACTORS, NAMES, strict=True):
        expected = [spline_by_scipy(head(seed), factor) for seed in (0, 1)]
        for scan, values in zip("ac", expected, strict=True):
            row = spline[scan, name]
            assert float(row["psnr"]) == pytest.approx(values["psnr"], abs=0.01)
            assert float(row["ssim"]) == pytest.approx(values["ssim"], abs=1e-3)
            assert float(row["rmse"]) == pytest.approx(values["rmse"], rel=2e-3)
        (total,) = [r for r in by_factor if r["scale_factor"] == name and r["method"] == "spline"]
        psnr = [values["psnr"] for values in expected]
        assert float(total["psnr_mean"]) == pytest.approx(np.mean(psnr), abs=0.01)
        assert float(total["psnr_std"]) == pytest.approx(np.std(psnr, ddof=1), abs=0.01)
        assert (total["scans"], float(total["psnr_gain"])) == ("2", 0)


def test_a_network_that_adds_nothing_gains_nothing(evaluate):
    lines, by_factor = evaluate(zero=True)
    values = {(r["scan"], r["scale_factor"], r["method"]): float(r["psnr"]) for r in lines if r["method"]}
    assert len(values) == 12
    for (scan, factor, method), value in values.items():
        assert method == "spline" or value == pytest.approx(values[scan, factor, "spline"], abs=1e-3)
    assert all(abs(float(row["psnr_gain"])) < 1e-3 for row in by_factor)


def test_the_gain_is_that_of_the_given_weights(evaluate):
    lines, by_factor = evaluate()
    for name in NAMES:
        model, spline = (
            [float(r["psnr"]) for r in lines if r["scale_factor"] == name and r["method"] == method]
            for method in ("model", "spline")
        )
        gain = np.subtract(model, spline)
        assert abs(gain).min() > 0.1
        (row,) = [r for r in by_factor if r["scale_factor"] == name and r["method"] == "model"]
        assert float(row["psnr_gain"]) == pytest.approx(gain.mean(), abs=1e-4)
        assert float(row["psnr_mean"]) == pytest.approx(np.mean(model), abs=1e-4)


def test_table_and_a_bad_scan_in_the_middle(evaluate, tmp_path, capsys):
    lines, _ = evaluate(val_scale_factors=[2])
    assert [(r["scan"], r["method"]) for r in lines] == [
        ("a", "model"),
        ("a", "spline"),
        ("b", ""),
        ("c", "model"),
        ("c", "spline"),
    ]
    assert lines[2]["error"].startswith("expected ")
    printed, table = capsys.readouterr().out, (tmp_path / "out/metrics.md").read_text()
    assert table in printed
    head_row, _, *body = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line
    ]
    assert head_row == [
        *("scan", "factor", "psnr spline", "psnr model", "psnr gain", "ssim spline", "ssim model", "ssim gain"),
        *("rmse spline", "rmse model", "rmse gain", "seconds"),
    ]
    assert [row[0] for row in body] == ["a", "c", "mean of 2", "standard deviation", "worst"]
    assert [row[2] for row in body[:2]] == [f"{float(lines[i]['psnr']):.2f}" for i in (1, 4)]
    assert re.search(r"^failed: b 2x2x2: expected ", table, re.MULTILINE)


# The command line


def command_line(start, scans, tmp_path, **options):
    command = start(scans, tmp_path / "out", config_file=FILES, **options)
    return command.wait(), command


def test_the_command_prints_the_table(start, scans, tmp_path):
    weights(tmp_path / "model.pt", zero=False)
    code, command = command_line(
        start, scans, tmp_path, checkpoint=tmp_path / "model.pt", val_scale_factors="[2]", device="$torch.device('cpu')"
    )
    assert code == 1  # of the damaged scan
    assert (tmp_path / "out/metrics.md").read_text() in command.stdout
    assert "Traceback" not in command.stdout + command.stderr
    assert re.search(r"ERROR.*b\.nii\.gz: expected", command.stdout)


@pytest.mark.parametrize(
    ("checkpoint", "line"),
    [
        ("none.pt", r"none\.pt: expected the weights of the network, got no such file \(train first, or give"),
        ("foreign.pt", r"foreign\.pt: expected the weights of ReCNN, got tensors 4 missing"),
    ],
)
def test_wrong_weights_are_one_line_and_exit_code_1(start, scans, tmp_path, checkpoint, line):
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "foreign.pt")
    code, command = command_line(start, scans, tmp_path, checkpoint=tmp_path / checkpoint)
    assert code == 1
    assert re.search(rf"\Aerror: .*{line}", command.errors[-1])
    assert "Traceback" not in command.stdout + command.stderr
    assert not (tmp_path / "out").exists()
