import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.acquisition import interpolation_operator, rescaled_affine
from custom_components.errors import ScanError
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


@pytest.mark.parametrize("kind", ["nearest", "linear", "cubic", "bspline"])
def test_kind_and_channels(scan, kind):
    two = MetaTensor(torch.cat([scan.as_tensor(), scan.as_tensor().flip(1)]), affine=scan.affine)
    y = ToTargetGrid(scale_factor=2, kind=kind)(two)
    expected = interpolation_operator(SHAPE, (16, 12, 10), kind)
    torch.testing.assert_close(y.as_tensor(), expected(two.as_tensor()[None])[0])


def test_two_dimensions():
    y = ToTargetGrid(scale_factor=(2, 3))(MetaTensor(torch.rand(1, 4, 5), affine=torch.diag(torch.tensor([1.0, 2, 1]))))
    assert y.shape == (1, 8, 15)


class TestDictionary:
    def test_low_resolution_is_kept(self, scan):
        item = ToTargetGridd("image")({"image": scan})
        assert item["lowres"] is scan
        assert item["image"].shape == (1, 16, 12, 10)
        assert torch.equal(item["image"], ToTargetGrid()(scan))

    def test_only_the_first_key_is_the_low_resolution_scan(self, scan):
        other = MetaTensor(scan.as_tensor() * 2, affine=scan.affine)
        item = ToTargetGridd(["image", "other"], scale_factor=2)({"image": scan, "other": other})
        assert item["lowres"] is scan
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
        assert item["small"] is scan
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
