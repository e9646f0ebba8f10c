from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from custom_components.acquisition import interpolation_operator
from custom_components.app.loading import compare
from custom_components.app.maps import coloured
from custom_components.app.views import SIDES
from custom_components.errors import ScanError
from custom_components.transforms.picture import write_png

SHAPE, SPACING = (6, 5, 4), (1.0, 1.5, 3.0)
FLIPS = [(1, 1, 1), (-1, 1, -1), (-1, -1, 1)]
# canonical axes (right, front, top) of rows, columns and the normal, as a radiologist sees them: rows and columns run backwards,
# but for the columns of a sagittal plane, whose front is on the left
ORACLE = {"axial": (1, 0, 2), "coronal": (2, 0, 1), "sagittal": (2, 1, 0)}


@pytest.fixture
def pair(tmp_path, write_nifti, oblique):
    """A scan and a result of twice its voxels along each axis, both random, and their comparison."""

    def make(axes=(0, 1, 2), flips=(1, 1, 1), shape=SHAPE, factor=(2, 2, 2), spacing=SPACING):
        rng = np.random.default_rng(0)
        low = rng.integers(0, 1000, shape).astype(np.int16)
        high = rng.integers(0, 1000, np.multiply(shape, factor)).astype(np.int16)
        affine = oblique(spacing=spacing, axes=axes, flips=flips)
        fine = affine @ np.diag([*(1 / np.array(factor)), 1])
        fine[:3, 3] += (fine[:3, :3].sum(1) - affine[:3, :3].sum(1)) / 2
        paths = write_nifti("low.nii.gz", low, affine), write_nifti("high.nii.gz", high, fine)
        return paths, compare(*paths, tmp_path / "pictures")

    return make


def oracle(path, plane, number):
    """A slice by nibabel's reorientation of the whole scan."""
    canonical = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)
    rows, columns, normal = ORACLE[plane]
    return np.moveaxis(canonical, (rows, columns, normal), (0, 1, 2))[::-1, ::-1, number - 1]


def grey_levels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def content(grey):
    """What is within the black margins."""
    rows, columns = (np.flatnonzero(grey.any(axis)) for axis in (1, 0))
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_slices_are_those_of_the_reoriented_scan(pair, axes, flips):
    paths, shown = pair(axes, flips)
    assert shown.planes == ("sagittal", "coronal", "axial")
    for plane in shown.planes:
        for number in (1, 4, shown.count(plane)):
            np.testing.assert_array_equal(shown.pixels(plane, number, "sr")[0], oracle(paths[1], plane, number))
            expected = oracle(paths[0], plane, (number + 1) // 2)
            np.testing.assert_array_equal(shown.pixels(plane, number, "input")[0], expected)


@pytest.mark.parametrize("factor", [(2, 2, 2), (2, 1, 3), (1, 1, 2)])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_the_one_spline_slice_is_that_of_the_whole_volume(pair, tmp_path, write_nifti, axes, factor):
    paths, shown = pair(axes, (-1, 1, 1), factor=factor)
    low, high = nib.load(paths[0]), nib.load(paths[1])
    scan = torch.from_numpy(np.asarray(low.dataobj, dtype=np.float32))
    whole = interpolation_operator(low.shape, high.shape)(scan[None, None])[0, 0].numpy()
    path = write_nifti("whole.nii.gz", whole, high.affine)
    for plane in shown.planes:
        for number in range(1, shown.count(plane) + 1):
            got = shown.pixels(plane, number, "spline")[0]
            np.testing.assert_allclose(got, oracle(path, plane, number), atol=1e-2)


@pytest.mark.parametrize("axes", [(0, 1, 2), (1, 2, 0)])
def test_pictures_have_one_size_and_one_scale_in_mm(pair, axes):
    _, shown = pair(axes)
    extent = dict.fromkeys(range(3), 0.0)
    for axis, world in enumerate(axes):
        extent[world] = SHAPE[axis] * SPACING[axis]
    scales = set()
    for plane, (rows, columns, _) in ORACLE.items():
        for name in ("input", "spline", "sr"):
            grey = grey_levels(shown.picture(plane, 2, name))
            assert grey.shape[0] == grey.shape[1] > 500
            height, width = content(grey).shape
            scales |= {width / extent[columns], height / extent[rows]}
    assert max(scales) / min(scales) == pytest.approx(1, abs=0.01)
    assert grey.shape[0] / max(extent.values()) == pytest.approx(max(scales), rel=0.01)


def test_pictures_have_one_grey_window(pair):
    _, shown = pair()
    low, high = shown.window
    for name in ("input", "sr"):
        pixels = shown.pixels("axial", 3, name)[0]
        grey = content(grey_levels(shown.picture("axial", 3, name)))
        bright = np.clip((pixels - low) / (high - low), 0, 1)
        assert set(np.unique(grey)) == set(np.rint(255 * bright).astype(int).ravel())  # nearest voxels, none mixed
        assert grey[0, 0] == round(255 * float(bright[0, 0]))
        assert grey[-1, -1] == round(255 * float(bright[-1, -1]))


@pytest.mark.parametrize(("axes", "flips"), [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1))])
def test_the_expected_error_lies_on_the_result(pair, tmp_path, write_nifti, axes, flips):
    paths, _ = pair(axes, flips)
    high = nib.load(paths[1])
    rng = np.random.default_rng(1)
    error = write_nifti("error.nii.gz", rng.random(high.shape).astype(np.float32), high.affine)
    shown = compare(*paths, tmp_path / "with_error", error)
    assert shown.largest_error == pytest.approx(np.percentile(nib.load(error).get_fdata(), 99.5), rel=1e-5)
    for plane in shown.planes:
        pixels = shown.pixels(plane, 2, "uncertainty")[0]
        np.testing.assert_allclose(pixels, oracle(error, plane, 2), rtol=1e-6)
        picture, beside = (grey_levels(shown.picture(plane, 2, name)) for name in ("uncertainty", "sr"))
        assert picture.shape == (*beside.shape, 3)
        side = beside.shape[0]
        step = side // 2  # the middle of the square is the middle of the slice
        row, column = (int(n * (0.5 - 1e-9)) for n in pixels.shape)
        around = coloured(pixels[row : row + 2, column : column + 2], shown.largest_error).reshape(-1, 3)
        assert (picture[step - 1, step - 1] == around).all(1).any()
    bar = shown.colour_bar()
    assert bar is not None and bar.parent == shown.folder
    assert grey_levels(bar).ndim == 3


def test_the_first_slice_is_the_middle_of_the_head(tmp_path, write_nifti):
    volume = np.zeros((10, 10, 10), np.int16)
    volume[1:3, 4:6, 7:9] = 100
    for flips, expected in (((1, 1, 1), (3, 6, 9)), ((-1, 1, -1), (8, 6, 2))):
        path = write_nifti(voxels=volume, affine=np.diag([*flips, 1]))
        shown = compare(path, path, tmp_path / f"p{flips[0]}")
        assert [shown.start(plane) for plane in shown.planes] == pytest.approx(expected, abs=1)


def test_a_picture_is_shown_as_its_file_shows_it(tmp_path):
    rng = np.random.default_rng(0)
    low, high = (rng.integers(0, 255, (n, 2 * n), dtype=np.uint8) for n in (6, 12))
    write_png(tmp_path / "low.png", low)
    write_png(tmp_path / "high.png", high)
    shown = compare(tmp_path / "low.png", tmp_path / "high.png", tmp_path / "pictures")
    assert (shown.planes, shown.count("picture"), shown.start("picture")) == (("picture",), 1, 1)
    pixels, size = shown.pixels("picture", 1, "sr")
    np.testing.assert_array_equal(pixels, high.T)
    assert size == (6, 12)
    np.testing.assert_array_equal(shown.pixels("picture", 1, "input")[0], low.T)


def test_a_single_slice_has_one_plane(pair):
    _, shown = pair(shape=(6, 5, 1), factor=(2, 2, 1))
    assert shown.planes == ("axial",)
    assert set(shown.planes) < set(SIDES)


def test_what_is_not_there_is_refused(pair, tmp_path):
    paths, shown = pair()
    with pytest.raises(ValueError, match=r"expected one of \('spline', 'input', 'sr'\) in .*, got 'hr' in 'axial'"):
        shown.pixels("axial", 1, "hr")
    with pytest.raises(ValueError, match="got 'uncertainty' in 'axial'"):
        shown.pixels("axial", 1, "uncertainty")
    assert shown.colour_bar() is None
    for number in (0, 9):
        with pytest.raises(ValueError, match=rf"expected a slice from 1 to 8, got {number}"):
            shown.pixels("axial", number, "sr")
    with pytest.raises(ScanError, match="no such file"):
        compare(paths[0], tmp_path / "none.nii", tmp_path / "x")
