import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.acquisition import interpolation_operator, rescaled_affine
from custom_components.errors import ScanError
from custom_components.transforms.acquire import Acquire
from custom_components.transforms.regrid import ToTargetGrid, ToTargetGridd

SHAPE, SPACING = (8, 6, 5), (0.9, 1.1, 3.3)


@pytest.fixture
def scan(oblique):
    x = torch.rand((1, *SHAPE), generator=torch.Generator().manual_seed(0))
    return MetaTensor(x, affine=torch.from_numpy(oblique(SPACING)), meta={"filename_or_obj": "a.nii", "descrip": "T1"})


@pytest.mark.parametrize(
    ("kwargs", "shape"),
    [
        ({}, (16, 12, 10)),
        ({"scale_factor": 3}, (24, 18, 15)),
        ({"scale_factor": (2, 2, 3)}, (16, 12, 15)),
        ({"scale_factor": (1, 1, 3.3)}, (8, 6, 16)),
        ({"scale_factor": 2.5}, (20, 15, 12)),
        ({"scale_factor": 1}, SHAPE),
        ({"target_spacing": 0.9}, (8, 7, 18)),
        ({"target_spacing": (0, 0, 1.1)}, (8, 6, 15)),
        ({"target_spacing": SPACING}, SHAPE),
    ],
)
class TestToTargetGrid:
    def test_shape_affine_and_voxels(self, scan, kwargs, shape):
        y = ToTargetGrid(**kwargs)(scan)
        assert y.shape == (1, *shape)
        assert y.dtype == torch.float32
        assert y.meta["slice_axis"] == 2
        torch.testing.assert_close(y.affine, rescaled_affine(scan.affine, SHAPE, shape), rtol=0, atol=1e-12)
        torch.testing.assert_close(y.as_tensor(), interpolation_operator(SHAPE, shape)(scan.as_tensor()[None])[0])

    def test_extent_and_written_spacing(self, scan, kwargs, shape):
        y = ToTargetGrid(**kwargs)(scan)
        np.testing.assert_allclose(
            y.pixdim, [n * s / m for n, s, m in zip(SHAPE, SPACING, shape, strict=True)], rtol=1e-12
        )
        for corner in ((0, 0, 0), (1, 1, 1), (0, 1, 0)):
            old = [n * c - 0.5 for n, c in zip(SHAPE, corner, strict=True)]
            new = [n * c - 0.5 for n, c in zip(shape, corner, strict=True)]
            at = [a[:3, :3] @ v + a[:3, 3] for a, v in ((scan.affine.numpy(), old), (y.affine.numpy(), new))]
            np.testing.assert_allclose(*at, rtol=0, atol=1e-10)

    def test_meta_is_kept_and_input_untouched(self, scan, kwargs, shape):
        affine, voxels = scan.affine.clone(), scan.clone()
        y = ToTargetGrid(**kwargs)(scan)
        assert (y.meta["filename_or_obj"], y.meta["descrip"]) == ("a.nii", "T1")
        assert torch.equal(scan.affine, affine)
        assert torch.equal(scan, voxels)
        assert "slice_axis" not in scan.meta


@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
def test_kind_and_channels(scan, kind):
    two = MetaTensor(torch.cat([scan.as_tensor(), scan.as_tensor().flip(1)]), affine=scan.affine)
    y = ToTargetGrid(scale_factor=2, kind=kind)(two)
    expected = interpolation_operator(SHAPE, (16, 12, 10), kind)
    torch.testing.assert_close(y.as_tensor(), expected(two.as_tensor()[None])[0])


def test_two_dimensions():
    y = ToTargetGrid(scale_factor=(2, 3))(MetaTensor(torch.rand(1, 4, 5), affine=torch.diag(torch.tensor([1.0, 2, 1]))))
    assert y.shape == (1, 8, 15)
    np.testing.assert_allclose(y.affine, [[0.5, 0, -0.25], [0, 2 / 3, -2 / 3], [0, 0, 1]])
    assert "slice_axis" not in y.meta


def extent(image):
    """Outer corners of the field of view in mm: that of the first voxel and that of the last."""
    last = torch.tensor([n - 0.5 for n in image.shape[1:]], dtype=torch.float64)
    first = torch.full((3,), -0.5, dtype=torch.float64)
    return [image.affine[:3, :3] @ corner + image.affine[:3, 3] for corner in (first, last)]


class TestSlices:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("kwargs", [{"scale_factor": 2}, {"target_spacing": 0.5}, {"scale_factor": (2.5, 2, 3)}])
    def test_a_single_slice_stays_one(self, oblique, axis, kwargs):
        """It gets finer in its plane; thickness and place are kept."""
        shape = tuple(1 if a == axis else n for a, n in enumerate((8, 6, 10)))
        scan = MetaTensor(torch.rand(1, *shape), affine=torch.from_numpy(oblique((1.0, 1.5, 2.0))))
        y = ToTargetGrid(**kwargs)(scan)
        assert y.shape[axis + 1] == 1
        assert all(m >= 2 * n for a, (n, m) in enumerate(zip(shape, y.shape[1:], strict=True)) if a != axis)
        torch.testing.assert_close(extent(y), extent(scan), rtol=0, atol=1e-10)
        torch.testing.assert_close(y.affine[:, axis], scan.affine[:, axis], rtol=0, atol=1e-12)
        assert y.meta["slice_axis"] == axis
        flat = interpolation_operator([n for n in shape if n > 1], [n for n in y.shape[1:] if n > 1])
        torch.testing.assert_close(y.as_tensor().squeeze(axis + 1), flat(scan.as_tensor().squeeze(axis + 1)[None])[0])

    def test_a_single_slice_may_be_thinner_than_the_target(self):
        scan = MetaTensor(torch.rand(1, 8, 8, 1), affine=torch.diag(torch.tensor([4.0, 4.0, 0.5, 1])))
        assert ToTargetGrid(target_spacing=2)(scan).shape == (1, 16, 16, 1)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize(
        "kwargs",
        [{"scale_factor": 2}, {"scale_factor": (2, 2, 2)}, {"target_spacing": 0.5}, {"target_spacing": [0.5] * 3}],
    )
    def test_in_plane_only(self, oblique, axis, kwargs):
        spacing = [4.0 if a == axis else 1.0 for a in range(3)]
        scan = MetaTensor(torch.rand(1, 5, 6, 7), affine=torch.from_numpy(oblique(spacing)))
        y = ToTargetGrid(**kwargs, in_plane_only=True)(scan)
        assert list(y.shape[1:]) == [n if a == axis else 2 * n for a, n in enumerate((5, 6, 7))]
        torch.testing.assert_close(extent(y), extent(scan), rtol=0, atol=1e-10)
        assert y.meta["slice_axis"] == axis

    def test_in_plane_only_of_slices_thinner_than_the_target(self):
        """The target is coarser than the axis that is kept."""
        scan = MetaTensor(torch.rand(1, 8, 8, 9), affine=torch.diag(torch.tensor([2.0, 2, 0.5, 1])))
        given = {"target_spacing": 1, "slice_axis": 2}
        assert ToTargetGrid(**given, in_plane_only=True)(scan).shape == (1, 16, 16, 9)
        with pytest.raises(ScanError, match=r"at most the scan's 0\.5 mm on axis 2"):
            ToTargetGrid(**given)(scan)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_the_axis_that_is_given(self, scan, axis):
        y = ToTargetGrid(slice_axis=axis, in_plane_only=True)(scan)
        assert list(y.shape[1:]) == [n if a == axis else 2 * n for a, n in enumerate(SHAPE)]
        assert y.meta["slice_axis"] == axis

    def test_the_axis_of_the_meta_data(self, scan):
        """An acquisition in the plane leaves voxels that are larger there than across the slices."""
        scan.meta["slice_axis"] = 1
        assert ToTargetGrid()(scan).meta["slice_axis"] == 1
        assert ToTargetGrid(in_plane_only=True)(scan).shape == (1, 16, 6, 10)
        assert ToTargetGrid(slice_axis=0)(scan).meta["slice_axis"] == 0

    def test_back_from_an_acquisition_in_the_plane(self, oblique):
        hr = MetaTensor(torch.rand(1, 12, 14, 16), affine=torch.from_numpy(oblique((1.3, 1, 1))))
        lr, truth = Acquire(2, in_plane_only=True)(hr)
        y = ToTargetGrid(scale_factor=2, in_plane_only=True)(lr)
        assert y.shape == truth.shape == hr.shape
        torch.testing.assert_close(y.affine, hr.affine, rtol=0, atol=1e-12)

    def test_a_wished_shape_goes_first(self, scan):
        """That of the truth may have more slices."""
        assert ToTargetGrid(in_plane_only=True)(scan, (9, 9, 9)).shape == (1, 9, 9, 9)

    @pytest.mark.parametrize("axis", [3, -1, "2"])
    def test_an_axis_that_is_none(self, axis):
        with pytest.raises(ValueError, match="slice_axis must be 0, 1, 2 or None, got"):
            ToTargetGridd("image", slice_axis=axis)


class TestDictionary:
    @pytest.mark.parametrize(("kwargs", "axis"), [({}, 2), ({"slice_axis": 1}, 1)])
    def test_both_grids_tell_the_slice_axis(self, scan, kwargs, axis):
        item = ToTargetGridd("image", **kwargs, in_plane_only=True)({"image": scan})
        assert item["image"].meta["slice_axis"] == item["lowres"].meta["slice_axis"] == axis
        assert item["image"].shape == (1, *(n if a == axis else 2 * n for a, n in enumerate(SHAPE)))
        assert "slice_axis" not in scan.meta

    def test_low_resolution_is_kept(self, scan):
        item = ToTargetGridd("image")({"image": scan})
        assert torch.equal(item["lowres"], scan)
        assert torch.equal(item["lowres"].affine, scan.affine)
        assert item["lowres"].meta["filename_or_obj"] == "a.nii"
        assert item["lowres"].data_ptr() == scan.data_ptr()  # no copy of the voxels
        assert item["image"].shape == (1, 16, 12, 10)
        assert torch.equal(item["image"], ToTargetGrid()(scan))

    def test_only_the_first_key_is_the_low_resolution_scan(self, scan):
        other = MetaTensor(scan.as_tensor() * 2, affine=scan.affine)
        item = ToTargetGridd(["image", "other"], scale_factor=2)({"image": scan, "other": other})
        assert torch.equal(item["lowres"], scan)
        torch.testing.assert_close(item["other"].as_tensor(), 2 * item["image"].as_tensor())

    def test_grid_of_the_truth(self, scan):
        """The truth's shape goes before the transform's own factor, which would give (16, 12, 10)."""
        item = ToTargetGridd("image", scale_factor=2)({"image": scan, "target": torch.zeros(1, 17, 12, 13)})
        assert item["image"].shape == (1, 17, 12, 13)
        torch.testing.assert_close(item["image"].affine, rescaled_affine(scan.affine, SHAPE, (17, 12, 13)))

    def test_names_of_the_keys(self, scan):
        transform = ToTargetGridd("image", like_key="truth", lowres_key="small")
        item = transform({"image": scan, "truth": torch.zeros(1, 9, 9, 9), "target": torch.zeros(1, 2, 2, 2)})
        assert item["image"].shape == (1, 9, 9, 9)
        assert torch.equal(item["small"], scan)
        assert "lowres" not in item

    def test_item_is_not_changed(self, scan):
        item = {"image": scan}
        ToTargetGridd("image")(item)
        assert list(item) == ["image"]
        assert item["image"] is scan


class TestErrors:
    def test_both(self):
        with pytest.raises(ValueError, match="target_spacing or scale_factor, got both"):
            ToTargetGridd("image", target_spacing=1, scale_factor=2)

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"target_spacing": 1.5}, r"at most the scan's 0.9 mm on axis 0 \(0 keeps an axis\), got 1.5 mm"),
            ({"target_spacing": (0, 0, 4)}, "at most the scan's 3.3 mm on axis 2"),
            ({"target_spacing": -1}, "not negative, got -1"),
            ({"scale_factor": (2, 2)}, "one number or 3 numbers, got 2"),
            ({"scale_factor": 0.5}, "scale_factor must be >= 1, got 0.5"),
            ({"scale_factor": float("nan")}, "must be finite and not negative, got nan"),
        ],
    )
    def test_a_target_that_does_not_fit_the_scan(self, scan, kwargs, match):
        with pytest.raises(ScanError, match=match):
            ToTargetGrid(**kwargs)(scan)


def test_default_factor():
    scan = MetaTensor(torch.rand(1, 4, 5, 6))
    assert ToTargetGrid(default_factor=4)(scan).shape == (1, 16, 20, 24)
    assert ToTargetGrid(scale_factor=1.5, default_factor=4)(scan).shape == (1, 6, 8, 9)
    with pytest.raises(ValueError, match=r"default_factor must be >= 1, got 0\.5"):
        ToTargetGrid(default_factor=0.5)
