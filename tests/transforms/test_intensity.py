import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.errors import ScanError
from custom_components.transforms import intensity
from custom_components.transforms.intensity import (
    RestoreIntensity,
    RestoreIntensityd,
    RobustScale,
    RobustScaled,
    percentile,
)


def head(low=0.0, high=800.0, shape=(24, 22, 20), seed=0):
    """Half background of the lowest value, half tissue up to the highest."""
    x = np.random.default_rng(seed).uniform(0, 1, shape)
    x[: shape[0] // 2] = 0
    return MetaTensor(
        torch.from_numpy(low + (high - low) * x)[None].float(), affine=torch.diag(torch.tensor([2.0, 2, 3, 1]))
    )


class TestPercentile:
    @pytest.mark.parametrize("q", [0, 0.1, 12.5, 50, 99.9, 100])
    @pytest.mark.parametrize("shape", [(1,), (5,), (7, 9, 11)])
    def test_is_numpys(self, shape, q):
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        assert percentile(torch.from_numpy(x), q) == pytest.approx(float(np.percentile(x, q)), rel=1e-5, abs=1e-6)

    def test_large_scans_are_read_with_a_stride(self, monkeypatch):
        monkeypatch.setattr(intensity, "MAX_SAMPLES", 100)
        x = np.random.default_rng(0).normal(size=(10, 10, 4)).astype(np.float32)
        assert percentile(torch.from_numpy(x), 30) == pytest.approx(float(np.percentile(x.ravel()[::4], 30)), rel=1e-5)
        assert percentile(torch.from_numpy(x[:, :, :1].copy()), 30) == pytest.approx(
            float(np.percentile(x[:, :, 0], 30)), rel=1e-5
        )

    def test_the_limit_is_what_torch_takes(self):
        """One voxel above the limit goes with a stride; torch.quantile alone would raise."""
        x = torch.zeros(1, dtype=torch.float32).expand(intensity.MAX_SAMPLES + 2)
        with pytest.raises(RuntimeError, match="too large"):
            torch.quantile(x, 0.5)
        assert percentile(x, 50) == 0


class TestRobustScale:
    @pytest.mark.parametrize(("lower", "upper"), [(0.1, 99.9), (1, 99), (0, 100), (55, 80)])
    @pytest.mark.parametrize("offset", [0, -300, 5000])
    def test_the_percentiles_become_0_and_1(self, lower, upper, offset):
        x = head() + offset
        y = RobustScale(lower, upper)(x)
        low, high = np.percentile(x.numpy(), [lower, upper])
        np.testing.assert_allclose(y.numpy(), (x.numpy() - low) / (high - low), rtol=0, atol=1e-5)
        assert y.meta["intensity_lower"] == pytest.approx(low, rel=1e-5, abs=1e-4)
        assert y.meta["intensity_upper"] == pytest.approx(high, rel=1e-5)
        assert y.meta["intensity_min"] == pytest.approx(float(x.min()))

    def test_a_bright_vessel_does_not_set_the_scale_and_is_kept(self):
        x = head()
        with_vessel = x.clone()
        with_vessel[0, -1, 3, 3:5] = 50_000
        plain, scaled = RobustScale()(x), RobustScale()(with_vessel)
        assert scaled[0, -1, 3, 3] > 50
        changed = (scaled - plain).abs()
        changed[0, -1, 3, 3:5] = 0
        assert changed.max() < 0.005

    def test_background_is_0(self):
        assert not RobustScale()(head())[0, :12].any()

    def test_lower_none_is_the_value_0(self):
        x = head(100, 900)
        y = RobustScale(lower=None)(x)
        assert y.meta["intensity_lower"] == 0
        torch.testing.assert_close(y.as_tensor(), x.as_tensor() / y.meta["intensity_upper"])

    def test_clip(self):
        y, free = RobustScale(20, 80, clip=True)(head(-200, 800)), RobustScale(20, 80)(head(-200, 800))
        assert free.max() > 1.01
        assert torch.equal(y.as_tensor(), free.as_tensor().clamp(0, 1))

    @pytest.mark.parametrize("value", [0.0, 7.0, -3.5])
    def test_a_constant_scan(self, value):
        with pytest.raises(ScanError, match=f"expected an image with contrast, got the constant {value:g}$"):
            RobustScale()(torch.full((1, 5, 6, 7), value))

    def test_a_few_bright_voxels_alone(self):
        """Both percentiles are 0: the extremes take their place."""
        x = torch.zeros(1, 20, 20, 20)
        x[0, 4, 4, 4] = 50
        y = RobustScale(upper=99)(x)
        assert (y.min(), y.max(), y[0, 4, 4, 4]) == (0, 1, 1)

    @pytest.mark.parametrize("clip", [False, True])
    def test_input_stays(self, clip):
        x = head(-10, 20)
        before, meta = x.clone(), set(x.meta)
        RobustScale(clip=clip)(x)
        assert torch.equal(x, before)
        assert set(x.meta) == meta

    def test_affine_and_meta_are_kept(self):
        x = head()
        x.meta["filename_or_obj"] = "a.nii"
        y = RobustScale()(x)
        assert isinstance(y, MetaTensor)
        assert torch.equal(y.affine, x.affine)
        assert y.meta["filename_or_obj"] == "a.nii"
        assert y.dtype == torch.float32

    def test_plain_and_integer_tensors(self):
        x = head().as_tensor().to(torch.int16)
        np.testing.assert_allclose(RobustScale()(x), RobustScale()(x.float()), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(("lower", "upper"), [(50, 50), (60, 40), (-1, 99), (0, 101), (math.nan, 99), (None, 0)])
    def test_errors(self, lower, upper):
        with pytest.raises(ValueError, match=f"0 <= lower < upper <= 100, got {lower} and {upper}"):
            RobustScale(lower, upper)


class TestRestoreIntensity:
    def test_a_result_of_another_size_in_the_same_place(self):
        scaled = RobustScale()(head())
        pred = MetaTensor(torch.rand(1, 48, 44, 40), affine=scaled.affine)
        with pytest.raises(ScanError, match=r"a result of shape \(24, 22, 20\), got \(48, 44, 40\)"):
            RestoreIntensity()(pred, scaled)

    @pytest.mark.parametrize(
        ("low", "high"), [(0, 800), (0, 1e-3), (-1024, 3071), (-5, -1), (10_000, 10_100), (-1e-4, 1e-4)]
    )
    @pytest.mark.parametrize("lower", [0.1, None, 10])
    def test_undoes_the_scaling(self, low, high, lower):
        x = head(low, high)
        scaled = RobustScale(lower, 99)(x) if lower is not None or high > 0 else RobustScale(0.1, 99)(x)
        back = RestoreIntensity()(scaled, scaled)
        size = max(abs(low), abs(high))
        torch.testing.assert_close(back.as_tensor(), x.as_tensor(), rtol=0, atol=1e-6 * size)

    def test_background_of_0_comes_back_as_0(self):
        scaled = RobustScale()(head())
        assert not RestoreIntensity()(scaled, scaled)[0, :12].any()

    def test_overshoot_below_0_only_where_the_scan_had_it(self):
        for low, expected in ((0.0, 0.0), (-100.0, -200.0)):
            scaled = RobustScale(0, 100)(head(low, 900 + low))
            overshoot = torch.full((1, 2, 2, 2), (-200 - low) / 900)
            assert float(RestoreIntensity()(overshoot, scaled).min()) == pytest.approx(expected, abs=1e-3)

    def test_works_in_place(self):
        """A result of 512^3 voxels is not copied."""
        scaled = RobustScale()(head())
        pred = torch.rand(1, 24, 22, 20)
        restored = RestoreIntensity()(pred, scaled)
        assert restored.data_ptr() == pred.data_ptr()

    def test_a_plain_tensor_takes_the_meta_data_of_the_reference(self):
        scaled = RobustScale()(head())
        scaled.meta["descrip"] = "T1"
        restored = RestoreIntensity()(torch.rand(1, 24, 22, 20), scaled)
        assert restored.meta["descrip"] == "T1"
        assert torch.equal(restored.affine, scaled.affine)

    def test_a_metatensor_keeps_its_own(self):
        pred = MetaTensor(torch.rand(1, 4, 4, 4), affine=torch.eye(4) * 0.5)
        restored = RestoreIntensity()(pred, RobustScale()(head()))
        assert torch.equal(restored.affine, pred.affine)


def test_dictionary_versions():
    x = head(-50, 400)
    item = RobustScaled("image")({"image": x, "other": 1})
    torch.testing.assert_close(item["image"].as_tensor(), RobustScale()(x).as_tensor())
    assert item["other"] == 1
    item["pred"] = item["image"].as_tensor() * 2
    expected = 2 * (x - item["image"].meta["intensity_lower"]) + item["image"].meta["intensity_lower"]
    restored = RestoreIntensityd(["pred", "image"])(item)
    torch.testing.assert_close(restored["pred"].as_tensor(), expected.as_tensor(), rtol=0, atol=1e-3)
    torch.testing.assert_close(restored["image"].as_tensor(), x.as_tensor(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("transform", [RobustScaled, RestoreIntensityd])
def test_missing_keys(transform):
    x = RobustScale()(head())
    assert "pred" not in transform("pred", allow_missing_keys=True)({"image": x})
    with pytest.raises(KeyError, match="pred"):
        transform("pred")({"image": x})
