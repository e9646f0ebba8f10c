from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from custom_components.acquisition import FieldChange, simulate_low_field
from custom_components.errors import ScanError
from custom_components.transforms import LowField, LowFieldd, RandHRPatchd, RandLowField, RandLowFieldd


@pytest.fixture
def scan(oblique):
    """A head in noisy air, noise of 0.02."""
    rng = np.random.default_rng(0)
    x = np.zeros((30, 28, 26))
    x[6:24, 6:22, 5:21] = rng.choice([0.3, 0.6, 1.0], size=(18, 16, 16))
    x = np.abs(x + 0.02 * (rng.normal(size=x.shape) + 1j * rng.normal(size=x.shape)))
    meta = {"affine": torch.from_numpy(oblique()), "filename_or_obj": "scan.nii", "intensity_upper": 9.0}
    return MetaTensor(torch.from_numpy(x[None].astype(np.float32)), meta=meta)


class TestLowField:
    @pytest.mark.parametrize("keep_scale", [True, False])
    def test_pair(self, scan, keep_scale):
        before = scan.clone()
        change = FieldChange(3, 1)
        low, high = LowField(change, 0.02, keep_scale, seed=4)(scan)
        expected = simulate_low_field(scan.as_tensor(), 0.02, change, keep_scale, torch.Generator().manual_seed(4))
        assert torch.equal(low.as_tensor(), expected)
        assert torch.equal(high, before)
        assert torch.equal(scan, before)
        assert low.dtype == torch.float32
        for image in (low, high):
            assert torch.equal(image.affine, scan.affine)
            assert image.meta["filename_or_obj"] == "scan.nii"
            assert image.meta["intensity_upper"] == 9

    def test_noise_is_measured_in_the_air(self, scan):
        low, high = LowField()(scan)
        air = (slice(None), slice(0, 5))
        ratio = low[air].square().mean() / high[air].square().mean()
        assert float(ratio) ** -0.5 == pytest.approx(FieldChange().snr_ratio, rel=0.05)

    def test_seed(self, scan):
        first, same, other = (LowField(seed=s)(scan)[0] for s in (1, 1, 2))
        assert torch.equal(first, same)
        assert not torch.equal(first, other)

    def test_equal_fields_give_a_copy(self, scan):
        low, high = LowField(FieldChange(3, 3))(scan)
        assert torch.equal(low, high)
        low.zero_()
        assert high.any()

    def test_a_scan_without_air(self, scan):
        with pytest.raises(
            ScanError, match=r"^scan.nii: expected noisy air around the head, got none .*; set noise_std$"
        ):
            LowField()(MetaTensor(scan.as_tensor()[:, 6:24, 6:22, 5:21], meta=dict(scan.meta)))

    def test_bad_noise(self):
        with pytest.raises(ValueError, match="noise_std must be >= 0 or None, got -1"):
            LowField(noise_std=-1)

    def test_dictionary_version(self, scan):
        low, high = LowField(FieldChange(3, 1), 0.03, False, 7)(scan)
        given = {"image": scan, "other": 1}
        item = LowFieldd("image", FieldChange(3, 1), 0.03, False, 7, target_key="truth")(given)
        assert torch.equal(item["image"], low)
        assert torch.equal(item["truth"], high)
        assert item["other"] == 1
        assert given["image"] is scan


class TestRandLowField:
    @pytest.mark.parametrize("margin", [0, 3, (1, 2, 3)])
    def test_truth_is_the_centre_of_the_patch(self, margin):
        m = (margin,) * 3 if isinstance(margin, int) else margin
        patch = torch.rand(1, *(7 + 2 * v for v in m))
        image, target = RandLowField((0.1, 0.1), 7, margin)(patch)
        assert torch.equal(target, patch[:, m[0] : m[0] + 7, m[1] : m[1] + 7, m[2] : m[2] + 7])
        assert image.shape == (1, 7, 7, 7)
        assert image.dtype == torch.float32
        assert type(image) is type(target) is torch.Tensor
        assert not torch.equal(image, target)
        target.zero_()
        assert patch.any()

    def test_without_noise_the_pair_is_equal_but_not_one(self):
        image, target = RandLowField((0.0, 0.0), 5, 0)(torch.rand(1, 5, 5, 5))
        assert torch.equal(image, target)
        assert image.data_ptr() != target.data_ptr()

    @pytest.mark.parametrize(("patch", "margin"), [((40, 40, 1), 0), ((46, 46, 7), 3), ((46, 44, 1), (3, 2, 0))])
    def test_slices(self, patch, margin):
        image, target = RandLowField((0.1, 0.1), (40, 40), margin, spatial_dims=2)(torch.rand(1, *patch))
        assert image.shape == target.shape == (1, 40, 40)

    def test_field_and_noise_are_drawn_from_their_ranges(self):
        transform = RandLowField((0.01, 0.03), 30, 0, b_low=(1.0, 2.0)).set_random_state(0)
        patch = torch.full((1, 30, 30, 30), 50.0)
        fields, stds = [], []
        for _ in range(60):
            image, _ = transform(patch)
            change = FieldChange(3, transform.drawn.b_low)
            missing = (1 / change.snr_ratio**2 - 1) ** 0.5  # of the noise, with the scale kept
            assert float(image.std()) == pytest.approx(transform.std * missing, rel=0.03)
            fields.append(transform.drawn.b_low)
            stds.append(transform.std)
        assert 1 <= min(fields) < 1.1 and 1.9 < max(fields) <= 2
        assert 0.01 <= min(stds) < 0.012 and 0.028 < max(stds) <= 0.03

    def test_scale_and_other_change(self):
        change = FieldChange(7, 3, "spin_echo", 7.0, 0.07, 90)
        image, target = RandLowField((0.0, 0.0), 5, 0, change=change, keep_scale=False)(torch.rand(1, 5, 5, 5))
        torch.testing.assert_close(image, target * change.signal_scale)

    @pytest.mark.parametrize("shape", [(1, 12, 11, 11), (1, 5, 5, 5)])
    def test_a_patch_of_another_size(self, shape):
        with pytest.raises(
            ValueError, match=rf"expected a patch of \[5, 5, 5\] voxels and a margin of 3, got \[{shape[1]}|twice"
        ):
            RandLowField((0, 0.1), 5, 3)(torch.rand(shape))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"noise_std": (0.2, 0.1)}, "noise_std must be a range .*, got 0.2 and 0.1"),
            ({"noise_std": (-0.1, 0.1)}, "noise_std must be a range .*, got -0.1 and 0.1"),
            ({"b_low": (2, 1)}, "b_low must be a range .*, got 2 and 1"),
            ({"b_low": (1, 4)}, "expected fields 0 < b_low <= b_high in T, got 4 and 3.0"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            RandLowField(**{"noise_std": (0, 0.1), **kwargs})


ARGUMENTS = {"noise_std": (0.01, 0.1), "patch_size": 5, "margin": 1, "b_low": (0.5, 1.5), "keep_scale": False}


class TestRandLowFieldd:
    def test_is_the_array_version(self):
        patch = torch.rand(1, 7, 7, 7)
        image, target = RandLowField(**ARGUMENTS).set_random_state(5)(patch)
        item = RandLowFieldd("image", **ARGUMENTS, target_key="truth").set_random_state(5)({"image": patch, "a": 1})
        assert torch.equal(item["image"], image)
        assert torch.equal(item["truth"], target)
        assert item["a"] == 1

    @pytest.mark.parametrize(("dims", "size"), [(3, (6, 6, 6)), (2, (6, 6))])
    def test_in_a_pipeline_the_seed_decides(self, scan, dims, size):
        runs = []
        for seed in (3, 3, 4):
            pipeline = Compose(
                [
                    RandHRPatchd("image", 6, margin=2, spatial_dims=dims),
                    RandLowFieldd("image", (0.01, 0.02), 6, 2, spatial_dims=dims),
                ]
            ).set_random_state(seed)
            runs.append([pipeline({"image": scan}) for _ in range(3)])
        assert runs[0][0]["image"].shape == runs[0][0]["target"].shape == (1, *size)
        for key in ("image", "target"):
            assert all(torch.equal(a[key], b[key]) for a, b in zip(runs[0], runs[1], strict=True))
        assert not any(torch.equal(a["image"], b["image"]) for a, b in zip(runs[0], runs[2], strict=True))
