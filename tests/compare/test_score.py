"""The truth, the LR scan, the head mask and the scores, against scipy, scikit-image and plain numpy."""

from __future__ import annotations

from math import inf, isnan

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from custom_components.acquisition.grid import target_shape
from custom_components.compare.score import head_mask, prepare_scan, round_trip_size, score_file, scores
from custom_components.compare.study import Method, Study
from custom_components.errors import ScanError
from custom_components.metrics import VolumeSSIM
from custom_components.transforms import Acquire, LoadScan, RobustScale


def smooth(shape=(16, 15, 14), seed=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1)
    return ((noise - noise.min()) / np.ptp(noise)).astype(np.float32)


def study(folder, factor=2, **options):
    return Study({"spline": Method(folder)}, [factor], folder / "out", **options)


class TestRoundTripSize:
    @pytest.mark.parametrize("factor", [1, 1.25, 1.5, 2, 2.4, 2.5, 3, 10 / 3])
    @pytest.mark.parametrize("n", [9, 10, 11, 12, 13, 29])
    def test_a_result_has_this_size_and_none_larger_would_do(self, n, factor):
        def back(k):
            lr = Acquire([factor, 1, 1])(RobustScale()(torch.rand(1, k, 2, 2)))[0].shape[1]
            return target_shape([lr], [1.0], scale_factor=factor)[0]

        size = round_trip_size(n, factor)
        assert 0 < size <= n
        assert back(size) == size
        if factor == int(factor):
            assert size == n - n % factor
        else:  # a whole factor crops larger sizes, so that they lead back to another one
            assert all(back(k) != k for k in range(size + 1, n + 1))

    def test_none(self):
        assert round_trip_size(2, 3) == 0


class TestHeadMask:
    def ball(self, radius, shape=(40, 44, 36), centre=(20, 22, 18)):
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
        return ((grid - np.reshape(centre, (3, 1, 1, 1))) ** 2).sum(0) < radius**2

    def test_whole_head_with_noise_dark_skull_and_a_spot_in_the_air(self):
        rng = np.random.default_rng(0)
        head = self.ball(14)
        image = 0.6 * head + 0.3 * (head & ~self.ball(12.5)) - 0.6 * (self.ball(12.5) & ~self.ball(10))
        image[2:5, 2:5, 2:5] = 1
        image = np.clip(np.hypot(image + 0.03 * rng.standard_normal(head.shape), 0.03), 0, 1)
        mask = head_mask(image)
        assert mask[self.ball(13)].all()  # the skull too
        assert not mask[~self.ball(15.8)].any()  # the Gaussian may add a voxel at a bright rim
        assert not mask[:6, :6, :6].any()

    @pytest.mark.parametrize(("outer", "inner", "core"), [(0.9, 0.5, 0.05), (0.3, 0.9, 0.1), (0.35, 0.3, 1.0)])
    def test_skull_stripped_with_dark_and_bright_tissue(self, outer, inner, core):
        brain = self.ball(14)
        image = np.where(self.ball(5), core, np.where(self.ball(10), inner, outer)) * brain
        mask = head_mask(image)
        assert mask[self.ball(13.5)].all()
        assert not mask[~brain].any()

    def test_a_brain_that_fills_the_array(self):
        image = 0.4 + 0.6 * smooth((20, 20, 20))
        assert head_mask(image).mean() > 0.99

    def test_slit_open_to_one_side_is_filled_in_the_slices_that_enclose_it(self):
        head = self.ball(14)
        image = 0.8 * head
        image[18:23, 19:26, 18:] = 0  # a canal that leaves the head along the last axis
        assert head_mask(image)[20, 22, 20]


class TestScores:
    def test_whole_array_is_what_scikit_image_says(self):
        truth, image = smooth(), smooth(seed=1) - 0.3
        found = scores(image, truth, np.ones(truth.shape, bool))
        positive = np.where(image < 0, 0, image)
        assert (image < 0).any()
        assert found["psnr"] == pytest.approx(peak_signal_noise_ratio(truth, positive, data_range=1), abs=1e-5)
        assert found["ssim"] == structural_similarity(truth, positive, data_range=1)
        volume = VolumeSSIM()(*(torch.from_numpy(v)[None, None] for v in (positive, truth)))
        assert found["ssim"] == pytest.approx(float(volume), abs=1e-6)
        assert found["rmse"] == pytest.approx(np.sqrt(np.mean((positive - truth.astype(np.float64)) ** 2)))
        for name in ("psnr", "ssim", "rmse"):
            assert found[f"{name}_head"] == pytest.approx(found[name], rel=1e-9)

    def test_head_by_the_formula_at_each_voxel(self):
        truth, image = smooth((12, 11, 10)), smooth((12, 11, 10), seed=1)
        head = np.zeros(truth.shape, bool)
        head[1:8, 4:9, 2:6] = True
        found = scores(image, truth, head)
        squares = (image.astype(np.float64) - truth)[head] ** 2
        assert found["rmse_head"] == pytest.approx(np.sqrt(squares.mean()))
        assert found["psnr_head"] == pytest.approx(-10 * np.log10(squares.mean()))
        values = []
        for place in np.argwhere(head):
            if all(3 <= p < n - 3 for p, n in zip(place, head.shape, strict=True)):  # the window lies in the image
                window = tuple(slice(p - 3, p + 4) for p in place)
                x, y = (v[window].ravel().astype(np.float64) for v in (truth, image))
                c1, c2, cov = 0.01**2, 0.03**2, np.cov(x, y)
                means = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
                values.append(means * (2 * cov[0, 1] + c2) / (cov[0, 0] + cov[1, 1] + c2))
        assert len(values) == 5 * 4 * 3
        assert found["ssim_head"] == pytest.approx(np.mean(values), abs=1e-5)
        assert abs(found["ssim_head"] - found["ssim"]) > 1e-3

    def test_equal_volumes_and_no_head(self):
        truth = smooth()
        found = scores(truth, truth, np.zeros(truth.shape, bool))
        assert (found["psnr"], found["ssim"], found["rmse"]) == (inf, 1, 0)
        assert all(isnan(found[f"{name}_head"]) for name in ("psnr", "ssim", "rmse"))


class TestPrepareScan:
    def test_lr_is_acquires_and_the_truth_is_the_cropped_scan(self, write_nifti, tmp_path, oblique):
        path = write_nifti(voxels=(1000 * smooth((17, 16, 15))).astype(np.int16))
        own = study(tmp_path, noise_std=0.02, seed=3)
        prepare_scan(own, "2", path, "scan")
        truth, lr = (nib.load(p("2", "scan")) for p in (own.truth_path, own.lowres_path))
        hr = RobustScale(lower=None, clip=True)(LoadScan()(path))
        wanted_lr, wanted_hr = Acquire(2, "gaussian_spline", 0.02, 3)(hr)
        np.testing.assert_array_equal(np.asarray(truth.dataobj), wanted_hr[0].numpy())
        np.testing.assert_array_equal(np.asarray(lr.dataobj), wanted_lr[0].numpy())
        assert truth.get_data_dtype() == lr.get_data_dtype() == np.float32
        assert truth.shape == (16, 16, 14) and lr.shape == (8, 8, 7)
        np.testing.assert_allclose(truth.affine, oblique(), atol=1e-5)
        corners = [lr.affine @ [-0.5, -0.5, -0.5, 1], truth.affine @ [-0.5, -0.5, -0.5, 1]]
        np.testing.assert_allclose(*corners, atol=1e-4)  # the outer voxel borders agree
        assert set(np.unique(nib.load(own.head_path("2", "scan")).dataobj)) <= {0, 1}

    def test_per_axis_factor(self, write_nifti, tmp_path):
        path = write_nifti(voxels=(1000 * smooth((17, 16, 16))).astype(np.int16))
        own = study(tmp_path, [1, 1.5, 3])
        prepare_scan(own, "1x1.5x3", path, "scan")
        assert nib.load(own.truth_path("1x1.5x3", "scan")).shape == (17, 16, 15)
        assert nib.load(own.lowres_path("1x1.5x3", "scan")).shape == (17, 11, 5)

    def test_too_small_a_scan_is_refused(self, write_nifti, tmp_path):
        with pytest.raises(ScanError, match=r"scan\.nii\.gz: expected at least 7 voxels .* got \(6, 6, 4\)"):
            prepare_scan(study(tmp_path), "2", write_nifti(), "scan")


class TestScoreFile:
    @pytest.fixture
    def ready(self, write_nifti, tmp_path):
        own = study(tmp_path)
        prepare_scan(own, "2", write_nifti(voxels=(1000 * smooth()).astype(np.int16)), "scan")
        return own

    def test_scores_of_files(self, ready):
        truth = nib.load(ready.truth_path("2", "scan"))
        values = np.asarray(truth.dataobj)
        result = ready.result_path("2", "spline", "scan")
        result.parent.mkdir()
        nib.save(nib.Nifti1Image(values + np.float32(0.1), truth.affine), result)
        found = score_file(ready, "2", "spline", "scan")
        assert found["psnr"] == pytest.approx(20, abs=1e-4)
        assert found["rmse_head"] == pytest.approx(0.1, abs=1e-6)

    def test_another_shape_is_refused(self, ready):
        result = ready.result_path("2", "spline", "scan")
        result.parent.mkdir()
        nib.save(nib.Nifti1Image(smooth((16, 14, 13)), np.eye(4)), result)
        with pytest.raises(ScanError, match=r"expected the truth's \(16, 14, 14\) voxels, got \(16, 14, 13\)"):
            score_file(ready, "2", "spline", "scan")
