from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from monai.metrics import PSNRMetric, RMSEMetric

from custom_components.handlers.evaluation_report import EvaluationReport, factor_name
from custom_components.handlers.scan_metric import ScanMetric


def _metrics() -> dict[str, Any]:
    return {
        "key_val_metric": {"psnr": ScanMetric(PSNRMetric(1.0))},
        "additional_metrics": {
            "rmse": ScanMetric(RMSEMetric()),
            "spline_psnr": ScanMetric(PSNRMetric(1.0), "image"),
            "spline_rmse": ScanMetric(RMSEMetric(), "image"),
        },
    }


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_table(make_item: Any, evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = [
        make_item("a", 1, scale_factor=2),
        make_item("a", 1, 4, scale_factor=[4, 4, 4]),
        {"image": "x.nii.gz", "stem": "x", "scale_factor": 2, "error": "cut short | damaged"},
        make_item("b", 2),
    ]
    engine = evaluate(items, EvaluationReport(tmp_path / "out", metrics=("psnr", "rmse")), **_metrics())
    details = {k: v.flatten().tolist() for k, v in engine.state.metric_details.items()}

    rows = _read(tmp_path / "out" / "metrics.csv")
    assert [(r["scan"], r["scale_factor"], r["method"]) for r in rows] == [
        ("a", "2x2x2", "model"),
        ("a", "2x2x2", "spline"),
        ("a", "4x4x4", "model"),
        ("a", "4x4x4", "spline"),
        ("x", "2x2x2", ""),
        ("b", "2x2x2", "model"),
        ("b", "2x2x2", "spline"),
    ]
    assert rows[4]["error"] == "cut short | damaged"
    assert [float(r["rmse"]) for r in rows if r["method"] == "model"] == pytest.approx(details["rmse"], abs=1e-6)
    assert [float(r["psnr"]) for r in rows if r["method"] == "spline"] == pytest.approx(
        details["spline_psnr"], abs=1e-5
    )
    assert [bool(r["seconds"]) for r in rows] == [True, False, True, False, False, True, False]
    assert all(0 <= float(r["seconds"]) < 5 for r in rows if r["seconds"])

    model, spline = ([details[n][i] for i in (0, 2)] for n in ("psnr", "spline_psnr"))
    gains = [m - s for m, s in zip(model, spline, strict=True)]
    groups = _read(tmp_path / "out" / "metrics_by_factor.csv")
    assert [(r["scale_factor"], r["method"], r["scans"]) for r in groups] == [
        ("2x2x2", "model", "2"),
        ("2x2x2", "spline", "2"),
        ("4x4x4", "model", "1"),
        ("4x4x4", "spline", "1"),
    ]
    assert float(groups[0]["psnr_mean"]) == pytest.approx(fmean(model), abs=1e-5)
    assert float(groups[0]["psnr_std"]) == pytest.approx(stdev(model), abs=1e-5)
    assert float(groups[0]["psnr_gain"]) == pytest.approx(fmean(gains), abs=1e-5)
    assert float(groups[0]["psnr_worst_gain"]) == pytest.approx(min(gains), abs=1e-5)
    errors = [details["rmse"][i] - details["spline_rmse"][i] for i in (0, 2)]
    assert errors[0] != pytest.approx(errors[1], abs=1e-4)
    assert float(groups[0]["rmse_worst_gain"]) == pytest.approx(max(errors), abs=1e-5)
    assert float(groups[1]["psnr_gain"]) == float(groups[1]["psnr_worst_gain"]) == 0
    assert groups[2]["psnr_std"] == ""

    printed = capsys.readouterr().out
    assert printed.strip() == (tmp_path / "out" / "metrics.md").read_text().strip()
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")]
    assert len({len(line) for line in printed.splitlines() if line.startswith("|")}) == 1
    assert lines[0] == [
        "scan",
        "factor",
        "psnr spline",
        "psnr model",
        "psnr gain",
        "rmse spline",
        "rmse model",
        "rmse gain",
        "seconds",
    ]
    assert [line[:2] for line in lines[2:]] == [
        ["a", "2x2x2"],
        ["b", "2x2x2"],
        ["mean of 2", "2x2x2"],
        ["standard deviation", "2x2x2"],
        ["worst", "2x2x2"],
        ["a", "4x4x4"],
        ["mean of 1", "4x4x4"],
    ]
    assert lines[4][2:5] == [f"{fmean(spline):.2f}", f"{fmean(model):.2f}", f"{fmean(gains):+.2f}"]
    assert lines[5][4] == f"{stdev(gains):.2f}"
    assert lines[6][2:5] == [f"{min(spline):.2f}", f"{min(model):.2f}", f"{min(gains):+.2f}"]
    assert lines[6][7] == f"{max(errors):+.4f}"
    assert "failed: x 2x2x2: cut short | damaged" in printed


def test_lines_are_there_before_the_end(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    report = EvaluationReport(tmp_path, metrics=("psnr", "rmse"))
    seen = []

    class Look:
        def attach(self, engine: Any) -> None:
            from ignite.engine import Events

            engine.add_event_handler(
                Events.ITERATION_COMPLETED, lambda _: seen.append(len(_read(tmp_path / "metrics.csv")))
            )

    evaluate([make_item("a"), make_item("b")], report, Look(), **_metrics())
    assert seen == [2, 4]


def test_all_failed(evaluate: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(
        [{"image": "x", "stem": "x", "error": "gone"}],
        EvaluationReport(tmp_path, metrics=("psnr", "rmse")),
        **_metrics(),
    )
    assert capsys.readouterr().out.strip() == "failed: x: gone"
    assert _read(tmp_path / "metrics_by_factor.csv") == []


def test_factor_name(make_item: Any) -> None:
    assert factor_name(make_item("a", factor=4)) == "4x4x4"
    assert factor_name({"scale_factor": [1, 2.5, 3]}) == "1x2.5x3"
    assert factor_name({}) == ""


def test_bad_input(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reference must be one of"):
        EvaluationReport(tmp_path, {"model": ""})
    with pytest.raises(ValueError, match=r"expected the metrics \['ssim', 'spline_ssim'\] of ScanMetric"):
        evaluate([make_item("a")], EvaluationReport(tmp_path), **_metrics())
