from __future__ import annotations

import itk
import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread, imsave
from PIL import Image

from custom_components.errors import ScanError
from custom_components.transforms.load import LoadScand, load_scan
from custom_components.transforms.picture import write_png
from custom_components.transforms.read_itk import read_itk

RNG = np.random.default_rng(3)
GREY = {
    "uint8": RNG.integers(0, 256, (9, 14)).astype(np.uint8),
    "uint16": RNG.integers(0, 65536, (9, 14)).astype("<u2"),
}
NO_SIZE = "no voxel size in the file, 1 mm assumed"


def error_of(path, **kwargs) -> str:
    """The one line that loading a bad picture gives; it names the file."""
    with pytest.raises(ScanError) as info:
        load_scan(path, **{"spatial_dims": 2, **kwargs})
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    assert "expected" in message
    return message


@pytest.mark.parametrize("dtype", GREY)
@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.tif", "a.tiff"])
def test_grey_of_8_and_16_bits_as_itk_has_it(tmp_path, dtype, name):
    rows, path = GREY[dtype], tmp_path / name
    itk.imwrite(itk.image_from_array(rows), str(path))
    image, warnings = load_scan(path, spatial_dims=2)
    assert image.shape == (1, 14, 9, 1)
    np.testing.assert_array_equal(image[0, :, :, 0].numpy(), rows.T)
    voxels, affine, _, _ = read_itk(path, 2)
    np.testing.assert_array_equal(image[0].numpy(), voxels)
    np.testing.assert_allclose(image.affine.numpy(), affine, atol=1e-6)
    assert (image.meta["scan_dtype"], image.meta["picture"], warnings) == (dtype, True, [NO_SIZE])
    assert image.is_contiguous()


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.bmp"])
def test_jpeg_and_bmp(tmp_path, name):
    rows = np.add.outer(np.arange(0, 90, 10), np.arange(0, 112, 8)).astype(np.uint8)
    itk.imwrite(itk.image_from_array(rows), str(tmp_path / name))
    image, _ = load_scan(tmp_path / name, spatial_dims=2)
    np.testing.assert_allclose(image[0, :, :, 0].numpy(), rows.T, atol=8)  # JPEG changes the levels
    assert image.meta["scan_dtype"] == "uint8"


def test_dots_per_inch_are_no_voxel_size(tmp_path):
    for name in ("a.png", "a.tif", "a.jpg", "a.bmp"):
        Image.fromarray(GREY["uint8"]).save(tmp_path / name, dpi=(300, 150))
        item = LoadScand("image", spatial_dims=2)({"image": str(tmp_path / name)})
        assert item["image"].pixdim.tolist() == [1, 1, 1]
        assert item["warnings"] == [NO_SIZE]


def test_colours_that_are_all_grey(tmp_path):
    grey = GREY["uint8"]
    rgba = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    imsave(tmp_path / "rgba.png", rgba)
    for name in ("rgb.png", "rgb.tif", "rgb.bmp"):
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(rgba[..., :3]), is_vector=True), str(tmp_path / name))
    Image.fromarray(grey, "L").convert("P").save(tmp_path / "palette.png")
    Image.fromarray(rgba[..., 2:], "LA").save(tmp_path / "la.png")
    for name in ("rgba.png", "rgb.png", "rgb.tif", "rgb.bmp", "palette.png", "la.png"):
        image, warnings = load_scan(tmp_path / name, spatial_dims=2)
        np.testing.assert_array_equal(image[0, :, :, 0].numpy(), grey.T)
        assert (image.meta["scan_dtype"], warnings) == ("uint8", [NO_SIZE])


def test_transparency_is_left_out_with_a_warning(tmp_path):
    grey = GREY["uint8"]
    imsave(tmp_path / "a.png", np.dstack([grey, grey, grey, grey]))
    image, warnings = load_scan(tmp_path / "a.png", spatial_dims=2)
    np.testing.assert_array_equal(image[0, :, :, 0].numpy(), grey.T)
    assert warnings == [NO_SIZE, "the picture's transparency is left out"]


def test_other_voxel_types(tmp_path):
    bits = GREY["uint8"] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    floats = (GREY["uint8"] / 7 - 5).astype(np.float32)
    itk.imwrite(itk.image_from_array(floats), str(tmp_path / "floats.tif"))
    for name, rows, dtype in (("bits.png", bits * 255.0, "uint8"), ("floats.tif", floats, "float32")):
        image, _ = load_scan(tmp_path / name, spatial_dims=2)
        np.testing.assert_array_equal(image[0, :, :, 0].numpy(), rows.T)
        assert image.meta["scan_dtype"] == dtype


@pytest.mark.parametrize(("tag", "turn"), [(3, lambda a: a[::-1, ::-1]), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)])
def test_a_picture_that_a_camera_turned_is_upright(tmp_path, tag, turn):
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(GREY["uint8"]).save(tmp_path / "a.png", exif=exif)
    image, _ = load_scan(tmp_path / "a.png", spatial_dims=2)
    np.testing.assert_array_equal(image[0, :, :, 0].numpy(), turn(GREY["uint8"]).T)


def test_what_is_no_grey_slice(tmp_path):
    grey = GREY["uint8"]
    rgb = np.dstack([grey, grey, grey])
    rgb[2, 3:5, 1] ^= 1
    Image.fromarray(rgb).save(tmp_path / "rgb.png")
    assert "got colours in 2 of 126 pixels" in error_of(tmp_path / "rgb.png")
    Image.fromarray(np.dstack([grey] * 4), "CMYK").save(tmp_path / "cmyk.jpg")
    assert "got CMYK colours" in error_of(tmp_path / "cmyk.jpg")
    deep = np.dstack([GREY["uint16"]] * 3)
    for name in ("deep.png", "deep.tif"):
        itk.imwrite(itk.image_from_array(deep, is_vector=True), str(tmp_path / name))
        assert "got 16-bit colours" in error_of(tmp_path / name)
    Image.fromarray(grey).save(tmp_path / "stack.tif", save_all=True, append_images=[Image.fromarray(grey)] * 2)
    assert "expected one picture per file, got 3" in error_of(tmp_path / "stack.tif")
    Image.fromarray(grey[:1]).save(tmp_path / "row.png")
    assert "expected a slice or a volume, got an image of shape (14, 1)" in error_of(tmp_path / "row.png")
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "plain.png")
    assert "constant 7" in error_of(tmp_path / "plain.png")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_a_model_in_3d_gets_one_line(tmp_path, name):
    Image.fromarray(GREY["uint8"]).save(tmp_path / name)
    wanted = "expected at least 2 voxels along each of 3 axes, got a single slice of shape (14, 9)"
    assert error_of(tmp_path / name, spatial_dims=3) == f"{tmp_path / name}: {wanted}"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
@pytest.mark.parametrize("dims", [2, 3])
def test_not_a_picture(tmp_path, name, dims, capfd):
    path = tmp_path / name
    assert "no such file" in error_of(path, spatial_dims=dims)
    path.touch()
    assert "empty file" in error_of(path, spatial_dims=dims)
    for text in (b"shopping list: milk, " * 99, b"\x89PNG\r\n\x1a\nmilk", b"II*\x00milk" * 9):
        path.write_bytes(text)
        assert "got a file that does not read as one" in error_of(path, spatial_dims=dims)
    nib.save(nib.Nifti1Image(GREY["uint8"], np.eye(4)), tmp_path / "slice.nii")
    path.write_bytes((tmp_path / "slice.nii").read_bytes())
    assert "expected a picture (PNG, JPEG, TIFF, BMP), got" in error_of(path, spatial_dims=dims)
    path.unlink()
    path.mkdir()
    assert "no scan found in it" in error_of(path, spatial_dims=dims)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp"])
def test_a_picture_that_is_cut_short(tmp_path, name, capfd):
    """One line at any length, but for the end mark of a PNG: without it all of the picture is there."""
    path = tmp_path / name
    Image.fromarray(GREY["uint8"]).save(path)
    data, whole = path.read_bytes(), load_scan(path, spatial_dims=2)[0]
    for length in [*range(1, len(data) - 21, 7), len(data) - 22]:
        path.write_bytes(data[:length])
        assert error_of(path).startswith(f"{path}: expected ")
    path.write_bytes(data[: -12 if name == "a.png" else -3])
    if name == "a.png":
        np.testing.assert_array_equal(load_scan(path, spatial_dims=2)[0].numpy(), whole.numpy())
    else:
        assert "cut short" in error_of(path)
    assert capfd.readouterr().err == ""


def test_a_damaged_picture(tmp_path):
    Image.fromarray(GREY["uint16"]).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.png").write_bytes(data)
    assert "cut short or damaged" in error_of(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", GREY)
def test_written_pictures_read_by_others(tmp_path, dtype):
    rows = GREY[dtype]
    write_png(tmp_path / "new" / "a.png", rows.T)
    read = itk.array_from_image(itk.imread(str(tmp_path / "new" / "a.png")))
    assert read.dtype == rows.dtype
    np.testing.assert_array_equal(read, rows)
    if dtype == "uint8":
        np.testing.assert_allclose(imread(tmp_path / "new" / "a.png"), rows / 255, atol=1e-6)
    with pytest.raises(ScanError, match=r"a\.png: expected to write the file, got"):
        write_png(tmp_path / "new" / "a.png" / "a.png", rows.T)
