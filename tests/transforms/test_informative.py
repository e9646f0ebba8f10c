"""Slices with information, and the crop to them: counted by hand, and in mm."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.errors import ScanError
from custom_components.transforms import KeepInformativeSlices, KeepInformativeSlicesd, LoadScand, informative_slices


def stack(counts, size=10, value=1.0):
    """A volume `(size, size, len(counts))` with so many voxels of `value` in each slice."""
    volume = torch.zeros(size * size, len(counts))
    for k, count in enumerate(counts):
        volume[:count, k] = value
    return volume.view(size, size, -1)


def test_rule_counted_by_hand():
    volume = stack([0, 9, 10, 50, 100])  # 10 of 100 voxels are a tenth; a slice of 100 equal voxels has no variance
    assert informative_slices(volume, 2).tolist() == [False, False, True, True, False]
    assert informative_slices(volume, 2, min_variance=0).tolist() == [False, False, True, True, True]
    assert informative_slices(volume, 2, share=0.09).tolist() == [False, True, True, True, False]
    assert informative_slices(volume, 2, level=1.0).tolist() == [False] * 5  # above, not at, the level
    faint = stack([50], value=0.2)  # variance 0.25 * 0.04
    assert informative_slices(faint, 2, min_variance=0.0099).tolist() == [True]
    assert informative_slices(faint, 2, min_variance=0.0101).tolist() == [False]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis(axis):
    volume = stack([0, 50, 0, 20]).movedim(2, axis)
    assert informative_slices(volume, axis).tolist() == [False, True, False, True]


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_voxels_stay_where_they_are_in_mm(write_nifti, oblique, axes):
    """Thick slices along any array axis of an oblique scan; read back from the file that nibabel wrote."""
    affine = oblique(spacing=(0.9, 1.1, 3.3), axes=axes)
    across = int(np.argmax(np.linalg.norm(affine[:3, :3], axis=0)))
    voxels = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32)
    ends = np.moveaxis(voxels, across, 0)
    ends[:3], ends[6], ends[-2:] = 0, 0, 0  # the empty slice within stays
    path = write_nifti(voxels=voxels, affine=affine)
    item = LoadScand("image")({"image": str(path)})
    result = KeepInformativeSlicesd("image")(item)["image"]
    assert result.shape[1:] == tuple(7 if axis == across else 12 for axis in range(3))
    np.testing.assert_array_equal(result[0].numpy(), voxels.take(range(3, 10), across))
    index = np.full(3, 5.0)
    before = index + 3 * (np.arange(3) == across)
    expected = nib.affines.apply_affine(nib.load(path).affine, before)
    np.testing.assert_allclose(nib.affines.apply_affine(result.affine.numpy(), index), expected, atol=1e-4)
    assert result.meta["filename_or_obj"] == str(path)
    np.testing.assert_array_equal(item["image"].affine, nib.load(path).affine)  # the input is as it was


def test_a_given_axis_and_plain_tensors():
    volume = stack([0, 50, 50, 0])[None]
    assert torch.equal(KeepInformativeSlices()(volume), volume[..., 1:3])  # isotropic: head-foot, the last axis
    rows = KeepInformativeSlices(axis=0, share=0.5)(volume)  # five rows of ten are full, in two slices of four
    assert torch.equal(rows, volume[:, :5])


def test_whole_scans_and_single_slices_stay():
    scan = MetaTensor(stack([50, 30, 20])[None], affine=torch.diag(torch.tensor([1.0, 1, 4, 1])))
    result = KeepInformativeSlices()(scan)
    assert torch.equal(result, scan) and torch.equal(result.affine, scan.affine)
    assert KeepInformativeSlices()(scan[..., :1]).shape == (1, 10, 10, 1)


def test_the_result_is_a_copy():
    scan = stack([0, 50, 0])[None]
    KeepInformativeSlices()(scan).fill_(7)
    assert scan.max() == 1


def test_all_keys_are_cropped_as_the_first():
    image, other = stack([0, 50, 50, 0])[None], torch.rand(1, 10, 10, 4)
    result = KeepInformativeSlicesd(["image", "reference"])({"image": image, "reference": other, "stem": "a"})
    assert torch.equal(result["reference"], other[..., 1:3]) and result["stem"] == "a"
    with pytest.raises(ValueError, match=r"expected scans on one grid, got the shapes \[\(10, 10, 4\), \(9, 10, 4\)\]"):
        KeepInformativeSlicesd(["image", "reference"])({"image": image, "reference": other[:, 1:]})
    item = {"image": image}
    lenient = KeepInformativeSlicesd(["image", "reference"], allow_missing_keys=True)(item)
    assert lenient["image"].shape[-1] == 2 and item["image"] is image


def test_nothing_to_keep_is_refused():
    scan = MetaTensor(stack([0, 9, 5])[None], meta={"filename_or_obj": "a.nii.gz"})
    expected = (
        r"a\.nii\.gz: expected a slice with 10% of its voxels above 0\.1 and a variance of 0\.001, got none in 3 slices"
    )
    with pytest.raises(ScanError, match=expected):
        KeepInformativeSlices()(scan)


def test_bad_input():
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got 1\.5"):
        KeepInformativeSlices(share=1.5)
    with pytest.raises(ValueError, match="min_variance must be >= 0, got -1"):
        informative_slices(torch.zeros(2, 2, 2), 0, min_variance=-1)
    with pytest.raises(ValueError, match="level must be finite, got nan"):
        KeepInformativeSlices(level=float("nan"))
    with pytest.raises(ValueError, match="axis must be 0, 1, 2 or None, got 3"):
        KeepInformativeSlices(axis=3)
    with pytest.raises(ValueError, match="axis must be 0, 1 or 2, got -1"):
        informative_slices(torch.zeros(2, 2, 2), -1)
    with pytest.raises(ValueError, match=r"expected a volume \(X, Y, Z\), got the shape \(1, 2, 2, 2\)"):
        informative_slices(torch.zeros(1, 2, 2, 2), 0)
    with pytest.raises(ValueError, match=r"expected a scan \(C, X, Y, Z\), got the shape \(2, 2, 2\)"):
        KeepInformativeSlices()(torch.zeros(2, 2, 2))
