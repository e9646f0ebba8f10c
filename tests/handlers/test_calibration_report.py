from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from custom_components.handlers import CalibrationReport
from custom_components.transforms import RestoreIntensityd, RestoreUncertaintyd, SplitUncertaintyd

ROOT = Path(__file__).parents[2]
NUMBERS = ("predicted", "observed", "ratio", "calibration_error", "correlation")


def _read(folder: Path) -> list[dict[str, str]]:
    with (folder / "calibration.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _expected(data: dict[str, Any]) -> dict[str, Any]:
    """A map that is larger where the error is, as a network's would be, beside the result."""
    seed = torch.Generator().manual_seed(int(data["target"].sum()))
    error = (data["pred"] - data["target"]).abs().as_tensor()
    return {**data, "uncertainty": 0.05 + 0.5 * error + 0.2 * torch.rand(error.shape, generator=seed)}


def _numbers(item: dict[str, Any], foreground: float, bins: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The same by sorting, of the half of the image as in `evaluate`: bins of predicted and observed, and the numbers."""
    truth = item["target"].as_tensor()
    after = _expected({**item, "pred": MetaTensor(item["image"].as_tensor() / 2, meta=item["image"].meta)})
    std, error = (
        t[truth > foreground].double().numpy() for t in (after["uncertainty"], item["image"].as_tensor() / 2 - truth)
    )
    order = np.argsort(std)
    p, o = (np.sqrt([np.mean(v**2) for v in np.array_split(x[order], bins)]) for x in (std, error))
    predicted, observed = (np.sqrt(np.mean(x**2)) for x in (std, error))
    numbers = [predicted, observed, predicted / observed, np.mean(np.abs(p - o) / p)]
    return p, o, [*numbers, np.corrcoef(std, np.abs(error))[0, 1]]


def test_table_is_that_of_sorted_voxels(
    make_item: Any, evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [make_item("a", 1), {"image": "x.nii.gz", "stem": "x", "error": "cut short"}, make_item("b", 2)]
    items.append(make_item("b", 2, 4))
    report = CalibrationReport(tmp_path / "new", foreground=0.3, bins=4)
    evaluate(items, report, postprocessing=_expected)
    rows = _read(tmp_path / "new")
    names = [("a", "2x2x2"), ("b", "2x2x2"), ("b", "4x4x4"), ("mean of 2", "2x2x2"), ("mean of 1", "4x4x4")]
    assert [(r["scan"], r["scale_factor"]) for r in rows[::5]] == names
    assert [r["bin"] for r in rows] == ["1", "2", "3", "4", "all"] * 5
    wanted = [_numbers(items[i], 0.3, 4) for i in (0, 2, 3)]
    for k, (predicted, observed, numbers) in enumerate(wanted):
        bins, whole = rows[5 * k : 5 * k + 4], rows[5 * k + 4]
        # bins of 250 voxels: one that falls into another bin counts
        np.testing.assert_allclose([float(r["predicted"]) for r in bins], predicted, rtol=5e-3)
        np.testing.assert_allclose([float(r["observed"]) for r in bins], observed, rtol=2e-2)
        for name, number in zip(NUMBERS, numbers, strict=True):
            assert float(whole[name]) == pytest.approx(number, rel=3e-2 if name == "calibration_error" else 1e-5)
        assert {r[name] for r in bins for name in NUMBERS[2:]} == {""}
    for name in ("predicted", "observed"):
        both = [[float(r[name]) for r in rows[5 * k : 5 * k + 4]] for k in (0, 1)]
        mean = [float(r[name]) for r in rows[15:19]]
        np.testing.assert_allclose(mean, np.sqrt(np.mean(np.square(both), 0)), rtol=1e-4)
    for name in NUMBERS:
        assert float(rows[19][name]) == pytest.approx((float(rows[4][name]) + float(rows[9][name])) / 2, rel=1e-4)
    assert (tmp_path / "new" / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0] == ["scan", "factor", "predicted", "observed", "ratio", "calibration error", "correlation"]
    assert lines[2] == ["mean of 2", "2x2x2", *(f"{float(rows[19][name]):.4f}" for name in NUMBERS)]
    assert lines[3][:2] == ["mean of 1", "4x4x4"]


def test_lines_are_there_before_the_end(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    seen: list[int] = []

    class Look:
        def attach(self, engine: Any) -> None:
            from ignite.engine import Events

            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: seen.append(len(_read(tmp_path))))

    items = [make_item("a"), make_item("b")]
    evaluate(items, CalibrationReport(tmp_path, bins=3), Look(), postprocessing=_expected)
    assert seen == [8, 12]


def test_background_does_not_count(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    item = make_item("a")
    item["target"][:, :6] = 0.02

    def wrong_there(data: dict[str, Any]) -> dict[str, Any]:
        data = _expected(data)
        data["pred"][:, :6] = 1000
        return data

    evaluate([item], CalibrationReport(tmp_path), postprocessing=wrong_there)
    assert float(_read(tmp_path)[10]["observed"]) < 1


def test_scans_that_cannot_count(
    make_item: Any, evaluate: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = make_item("a")
    empty["target"][:] = 0
    with caplog.at_level(logging.WARNING):
        evaluate(
            [{"image": "x", "stem": "x", "error": "gone"}, empty],
            CalibrationReport(tmp_path / "out"),
            postprocessing=_expected,
        )
    assert "in/a.nii.gz: no calibration: no voxel of the truth is above 0.02" in caplog.messages
    assert not (tmp_path / "out").exists()


def test_bad_input(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        CalibrationReport(tmp_path, bins=0)
    with pytest.raises(ValueError, match=r"expected the images \['uncertainty'\] to compare, got"):
        evaluate([make_item("a")], CalibrationReport(tmp_path))


def test_the_overlay_turns_it_on_and_keeps_the_postprocessing() -> None:
    configs = ROOT / "bundles" / "brain_mri_sr_any" / "configs"
    files = [configs / "train.json", configs / "evaluate.json"]
    before, parser = ConfigParser(), ConfigParser()
    before.read_config([str(f) for f in files])
    parser.read_config([str(f) for f in (*files, ROOT / "configs" / "any" / "calibration.json")])
    assert parser["validate::inferer::uncertainty"] is True
    assert parser["validate::handlers"] == [*before["validate::handlers"], "%calibration_report"]
    for config in (before, parser):
        config["bundle_root"] = "."
    assert isinstance(parser.get_parsed_content("calibration_report"), CalibrationReport)
    chain = parser.get_parsed_content("validate::evaluator::postprocessing").flatten().transforms
    usual = before.get_parsed_content("validate::evaluator::postprocessing").transforms
    assert [type(t) for t in chain] == [SplitUncertaintyd, *map(type, usual), RestoreUncertaintyd]
    assert isinstance(usual[-1], RestoreIntensityd)
