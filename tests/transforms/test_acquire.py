import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from custom_components.acquisition import acquisition_operator, rescaled_affine
from custom_components.errors import ScanError
from custom_components.transforms.acquire import Acquire, Acquired, per_axis


class TestPerAxis:
    @pytest.mark.parametrize(("given", "expected"), [(2, (2, 2, 2)), (2.5, (2.5,) * 3), ([1, 1, 3.3], (1, 1, 3.3))])
    def test_values(self, given, expected):
        assert per_axis(given, 3) == expected

    @pytest.mark.parametrize("given", [0.5, (2, 2), (2, 2, 0.9), (), float("nan"), (2, 2, float("nan")), float("inf")])
    def test_errors(self, given):
        with pytest.raises(ValueError, match="one number or 3 numbers >= 1, got"):
            per_axis(given, 3)


class TestAcquire:
    @pytest.fixture
    def scan(self, oblique):
        affine = torch.from_numpy(oblique((0.7, 0.8, 1.1)))
        x = torch.from_numpy(
            gaussian_filter(np.random.default_rng(0).normal(size=(1, 25, 22, 20)), (0, 1, 1, 1))
        ).float()
        meta = {"affine": affine, "filename_or_obj": "hr.nii", "intensity_upper": 9.0}
        return MetaTensor((x - x.min()) / (x.max() - x.min()), meta=meta)

    @pytest.mark.parametrize(
        ("factor", "cropped", "low"),
        [
            (2, (24, 22, 20), (12, 11, 10)),
            (3, (24, 21, 18), (8, 7, 6)),
            ((2, 2, 3), (24, 22, 18), (12, 11, 6)),
            (2.5, (25, 22, 20), (10, 9, 8)),
            ((1, 1, 3.3), (25, 22, 20), (25, 22, 6)),
        ],
    )
    @pytest.mark.parametrize("protocol", ["gaussian_spline", "bicubic"])
    def test_pair(self, scan, factor, cropped, low, protocol):
        lr, hr = Acquire(factor, protocol)(scan)
        truth = scan.as_tensor()[:, : cropped[0], : cropped[1], : cropped[2]]
        assert torch.equal(hr.as_tensor(), truth)
        assert lr.shape == (1, *low)
        torch.testing.assert_close(lr.as_tensor(), acquisition_operator(cropped, low, protocol)(truth[None])[0])
        assert torch.equal(hr.affine, scan.affine)
        torch.testing.assert_close(lr.affine, rescaled_affine(scan.affine, cropped, low), rtol=0, atol=1e-12)
        for image in (lr, hr):
            assert image.meta["filename_or_obj"] == "hr.nii"
            assert image.meta["intensity_upper"] == 9

    def test_scan_is_not_changed(self, scan):
        before, affine = scan.clone(), scan.affine.clone()
        Acquire(2, noise_std=0.1)(scan)
        assert torch.equal(scan, before)
        assert torch.equal(scan.affine, affine)

    def test_noise_is_rician_and_the_same_each_time(self, scan):
        clean, _ = Acquire(2)(scan)
        transform = Acquire(2, noise_std=0.05, seed=3)
        first, second, other = transform(scan)[0], transform(scan)[0], Acquire(2, noise_std=0.05, seed=4)(scan)[0]
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        excess = (first.as_tensor() ** 2 - clean.as_tensor() ** 2).mean()
        spread = 2 * 0.05 * float(clean.square().mean().sqrt()) / clean.numel() ** 0.5
        assert float(excess) == pytest.approx(2 * 0.05**2, abs=5 * spread)

    def test_factor_of_the_item_goes_first(self, scan):
        item = Acquired("image", 2)({"image": scan, "scale_factor": (1, 1, 3.3), "other": 1})
        assert item["image"].shape == (1, 25, 22, 6)
        assert item["target"].shape == scan.shape
        assert item["other"] == 1

    def test_the_slice_thickness_of_the_hr_scan_is_forgotten(self, scan):
        scan.meta["slice_thickness"] = 1.0
        assert all("slice_thickness" not in image.meta for image in Acquire(2)(scan))

    def test_dictionary_version(self, scan):
        lr, hr = Acquire(3, "bicubic", 0.01, 5)(scan)
        item = Acquired("image", 3, "bicubic", 0.01, 5, target_key="truth")({"image": scan})
        assert torch.equal(item["image"], lr)
        assert torch.equal(item["truth"], hr)
        assert "target" not in item

    def test_a_scan_smaller_than_the_factor(self):
        with pytest.raises(
            ScanError, match=r"at least \(2.0, 2.0, 2.0\) voxels for this scale factor, got \(8, 8, 1\)"
        ):
            Acquire(2)(MetaTensor(torch.rand(1, 8, 8, 1)))

    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("factor", [2, 2.5, (2, 2, 2)])
    def test_in_plane_only(self, oblique, axis, factor):
        """The slices stay, whatever the factor, and are told from their thickness; the others are acquired as before."""
        spacing = [1.3 if a == axis else 1.0 for a in range(3)]
        scan = MetaTensor(torch.rand(1, 25, 22, 20), affine=torch.from_numpy(oblique(spacing)))
        own = [1.0 if a == axis else f for a, f in enumerate(per_axis(factor, 3))]
        expected = Acquire(own, "bicubic")(scan)
        assert expected[0].shape[axis + 1] == scan.shape[axis + 1]
        for pair in (
            Acquire(factor, "bicubic", in_plane_only=True)(scan),
            Acquire(3, "bicubic", in_plane_only=True)(scan, factor),
        ):
            for got, wanted in zip(pair, expected, strict=True):
                assert torch.equal(got.as_tensor(), wanted.as_tensor())
                assert torch.equal(got.affine, wanted.affine)
                assert got.meta["slice_axis"] == axis  # the LR voxels are larger in the plane by now
        assert "slice_axis" not in scan.meta
        assert "slice_axis" not in expected[0].meta

    def test_in_plane_only_leaves_a_single_slice(self, oblique):
        scan = MetaTensor(torch.rand(1, 8, 1, 10), affine=torch.from_numpy(oblique((1, 1, 1))))
        lr, hr = Acquire(2, in_plane_only=True)(scan)
        assert (lr.shape, hr.shape) == ((1, 4, 1, 5), (1, 8, 1, 10))
        torch.testing.assert_close(lr.affine[:, 1], scan.affine[:, 1])

    def test_in_plane_only_of_the_dictionary_version(self, scan):
        item = Acquired("image", 2, in_plane_only=True)({"image": scan})
        lr, hr = Acquire(2, in_plane_only=True)(scan)
        assert item["image"].shape == (1, 12, 11, 20)
        assert torch.equal(item["image"], lr)
        assert torch.equal(item["target"], hr)
        own = Acquired("image", 2, in_plane_only=True)({"image": scan, "scale_factor": (2, 1, 4)})
        assert own["image"].shape == (1, 12, 22, 20)
        assert item["scale_factor"] == (2.0, 2.0)  # as reports name it: 2x2
        assert own["scale_factor"] == (2.0, 1.0)

    def test_unknown_protocol(self, scan):
        with pytest.raises(ValueError, match=r"protocol must be one of .*got 'mri'"):
            Acquire(2, "mri")(scan)
