from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from monai.metrics import PSNRMetric, RMSEMetric

from custom_components.handlers.scan_metric import ScanMetric


def _rmse(image: torch.Tensor, truth: torch.Tensor) -> float:
    return float((image.clamp(min=0) - truth).square().mean().sqrt())


def test_mean_and_values_per_scan_of_network_and_spline(make_item: Any, evaluate: Any) -> None:
    items = [make_item("a", 1), {"image": "b.nii.gz", "stem": "b", "error": "cut short"}, make_item("c", 2, 4)]
    good = [items[0], items[2]]
    engine = evaluate(
        items,
        key_val_metric={"psnr": ScanMetric(PSNRMetric(1.0))},
        additional_metrics={"rmse": ScanMetric(RMSEMetric()), "spline_rmse": ScanMetric(RMSEMetric(), "image")},
    )
    rmse = [_rmse(i["image"] / 2, i["target"]) for i in good]
    spline = [_rmse(i["image"], i["target"]) for i in good]
    psnr = [-20 * math.log10(v) for v in rmse]
    details = engine.state.metric_details
    assert details["rmse"].flatten().tolist() == pytest.approx(rmse, rel=1e-5)
    assert details["spline_rmse"].flatten().tolist() == pytest.approx(spline, rel=1e-5)
    assert engine.state.metrics["psnr"] == pytest.approx(sum(psnr) / 2, rel=1e-5)
    assert engine.state.best_metric == engine.state.metrics["psnr"]
    assert engine.state.output[0]["metrics"] == pytest.approx(
        {"psnr": psnr[1], "rmse": rmse[1], "spline_rmse": spline[1]}
    )


def test_minimum(make_item: Any, evaluate: Any) -> None:
    item = make_item("a")
    item["image"] = item["image"] - 0.5
    found = {}
    for minimum in (0.0, None):
        metric = ScanMetric(RMSEMetric(), "image", minimum=minimum)
        found[minimum] = evaluate([item], key_val_metric={"rmse": metric}).state.metrics["rmse"]
    assert found[0.0] == pytest.approx(_rmse(item["image"], item["target"]), rel=1e-5)
    assert found[None] == pytest.approx(float((item["image"] - item["target"]).square().mean().sqrt()), rel=1e-5)
    assert found[None] > found[0.0]


def test_all_failed_is_nan_and_a_second_run_starts_anew(make_item: Any, evaluate: Any) -> None:
    metric = ScanMetric(RMSEMetric())
    evaluate([make_item("a")], key_val_metric={"rmse": metric})
    engine = evaluate([{"stem": "b", "image": "b", "error": "gone"}], key_val_metric={"rmse": metric})
    assert math.isnan(engine.state.metrics["rmse"])
    assert len(engine.state.metric_details["rmse"]) == 0


def test_missing_truth_is_named(make_item: Any, evaluate: Any) -> None:
    item = make_item("a")
    del item["target"]
    with pytest.raises(ValueError, match=r"expected an image under 'label' to compare, got \['image', 'pred'\]"):
        evaluate([item], key_val_metric={"rmse": ScanMetric(RMSEMetric())})
