from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from custom_components.metrics import Calibration, CalibrationCurve, mean_curve


def _made(count: int = 200_000, seed: int = 0, gain: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Deviations over more than a decade, and normal errors that have `gain` times them."""
    rng = np.random.default_rng(seed)
    std = np.exp(rng.normal(-4, 0.8, count)).astype(np.float32)
    return torch.from_numpy(std), torch.from_numpy((gain * std * rng.normal(size=count)).astype(np.float32))


def _gathered(std: torch.Tensor, error: torch.Tensor) -> Calibration:
    calibration = Calibration()
    calibration.update(std, error)
    return calibration


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_bins_are_those_of_sorted_voxels(bins: int) -> None:
    std, error = _made(210_000)
    curve = _gathered(std, error).curve(bins)
    order = np.argsort(std.numpy())
    for values, got, tolerance in ((std, curve.predicted, 1e-3), (error, curve.observed, 5e-3)):
        parts = np.split(values.double().numpy()[order], bins)
        np.testing.assert_allclose(got, [np.sqrt(np.mean(p**2)) for p in parts], rtol=tolerance)


def test_numbers_are_those_of_numpy() -> None:
    std, error = _made(50_000)
    calibration = _gathered(std, error)
    s, e = std.double().numpy(), error.double().numpy()
    assert calibration.count == 50_000
    assert calibration.predicted == pytest.approx(np.sqrt(np.mean(s**2)), rel=1e-9)
    assert calibration.observed == pytest.approx(np.sqrt(np.mean(e**2)), rel=1e-9)
    assert calibration.ratio == pytest.approx(np.sqrt(np.mean(s**2) / np.mean(e**2)), rel=1e-9)
    assert calibration.correlation == pytest.approx(np.corrcoef(s, np.abs(e))[0, 1], rel=1e-9)


@pytest.mark.parametrize(("gain", "expected"), [(1.0, 0.0), (2.0, 1.0), (0.5, 0.5)])
def test_calibration_error_of_made_data(gain: float, expected: float) -> None:
    curve = _gathered(*_made(gain=gain)).curve()
    assert curve.calibration_error == pytest.approx(expected, abs=0.015 * max(gain, 1))


def test_deviations_that_say_nothing_about_the_errors_are_seen() -> None:
    std, error = _made()
    calibration = _gathered(std, error[torch.randperm(len(error), generator=torch.Generator().manual_seed(0))])
    assert abs(calibration.correlation) < 0.01
    assert calibration.ratio == pytest.approx(1, abs=0.02)
    assert calibration.curve().calibration_error > 0.5


def test_parts_are_the_whole_and_the_unit_does_not_matter() -> None:
    std, error = _made(30_000)
    whole, parts, scaled = _gathered(std, error), Calibration(), _gathered(1024 * std, -1024 * error)
    for piece in (slice(0, 10_000), slice(10_000, 10_000), slice(10_000, None)):
        parts.update(std[piece], error[piece])
    for name in ("predicted", "observed", "ratio", "correlation"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-9)
    np.testing.assert_allclose(parts.curve(), whole.curve(), rtol=1e-9)
    np.testing.assert_allclose(scaled.curve(), 1024 * np.array(whole.curve()), rtol=1e-6)
    assert scaled.correlation == pytest.approx(whole.correlation, rel=1e-6)


def test_shape_of_the_voxels_does_not_matter_and_many_go_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    std, error = _made(24 * 25 * 26)
    whole = _gathered(std, error).curve()
    monkeypatch.setattr("custom_components.metrics.calibration._BLOCK", 1000)
    np.testing.assert_allclose(_gathered(std.view(1, 24, 25, 26), error.view(1, 24, 25, 26)).curve(), whole, rtol=1e-9)


def test_equal_deviations_make_equal_bins() -> None:
    calibration = _gathered(torch.full((5,), 0.3), torch.tensor([0.1, -0.2, 0.3, 0.4, -0.5]))
    curve = calibration.curve(10)
    np.testing.assert_allclose(curve.predicted, [0.3] * 10, rtol=1e-6)
    np.testing.assert_allclose(curve.observed, [math.sqrt(0.11)] * 10, rtol=1e-6)
    assert math.isnan(calibration.correlation)


def test_no_error_and_no_deviation() -> None:
    zero, one = torch.zeros(20), torch.ones(20)
    perfect = _gathered(zero, zero)
    assert perfect.curve().calibration_error == 0
    assert perfect.ratio == math.inf
    assert _gathered(zero, one).curve().calibration_error == math.inf
    assert _gathered(one, zero).curve().calibration_error == 1


def test_mean_curve_is_the_quadratic_mean() -> None:
    curves = [CalibrationCurve((1.0, 2.0), (3.0, 0.0)), CalibrationCurve((7.0, 2.0), (4.0, 1.0))]
    mean = mean_curve(curves)
    assert mean.predicted == pytest.approx((5, 2))
    assert mean.observed == pytest.approx((math.sqrt(12.5), math.sqrt(0.5)))
    assert mean_curve(curves[:1]) == curves[0]


def test_bad_input() -> None:
    calibration = Calibration()
    with pytest.raises(ValueError, match=r"as many errors as deviations, got \(3,\) and \(2,\)"):
        calibration.update(torch.ones(2), torch.ones(3))
    for std, error in ((-1.0, 1.0), (math.nan, 1.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="expected finite errors and deviations >= 0, got others"):
            calibration.update(torch.tensor([1.0, std]), torch.tensor([0.0, error]))
    for number in (calibration.curve, lambda: calibration.ratio, lambda: calibration.correlation):
        with pytest.raises(ValueError, match="expected voxels to compare, got none"):
            number()
    calibration.update(torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="bins must be >= 1, got 0"):
        calibration.curve(0)
    for curves in ([], [CalibrationCurve((1.0,), (1.0,)), CalibrationCurve((1.0, 2.0), (1.0, 2.0))]):
        with pytest.raises(ValueError, match=r"expected curves of one number of bins, got \["):
            mean_curve(curves)
