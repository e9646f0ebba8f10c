"""One slice as a picture: read from PNG, JPEG, TIFF or BMP, written as PNG."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ScanError
from ..files import PathLike, atomic_write
from .scan_checks import Array, as_float32, check_grid, reading

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
PNG_DTYPES = ("uint8", "uint16")
_GREY = ("L", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of one value per pixel
_COLOURS = {"LA": 1, "RGB": 3, "RGBA": 3}  # channels apart from transparency


def _decoded(path: Path, spatial_dims: int) -> tuple[Any, bool]:
    """The picture as Pillow has it, upright, and whether Pillow cut 16-bit channels down to 8."""
    # Pillow, not ITK, which gives a JPEG or BMP that is cut short grey pixels and one of grey with transparency zeros.
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes on fields of the file that do not matter here
        with reading(path, "a picture (PNG, JPEG, TIFF, BMP)", "a file that does not read as one"):
            picture = Image.open(path, formats=FORMATS)
            pages = getattr(picture, "n_frames", 1)
        with picture:
            check_grid(path, picture.size, (1.0, 1.0), spatial_dims)
            if pages != 1:
                raise ScanError(f"{path}: expected one picture per file, got {pages}")
            codes = [tile[3] if isinstance(tile[3], (tuple, list)) else (tile[3],) for tile in picture.tile]
            with reading(path, "a whole picture", "a file that is cut short or damaged"):
                upright = ImageOps.exif_transpose(picture)
            if upright.mode in ("P", "PA"):
                upright = upright.convert("RGBA")
            elif upright.mode == "1":
                upright = upright.convert("L")
            elif upright.mode == "I" and picture.format == "PNG":  # so do Pillows of before 11 name 16 bits
                upright = upright.convert("I;16")
            return upright, upright.mode in _COLOURS and any(";16" in str(code[0]) for code in codes if code)


def read_picture(path: Path, spatial_dims: int) -> tuple[Array, Array, dict[str, Any], list[str]]:
    """Read a picture of grey levels, of 8 or 16 bits, or of 8-bit colours that are all grey, as one slice.

    Columns become the axis X and rows Y, as ITK does it: the picture is an axial slice in radiological view, so that X goes to the
    patient's left and Y to the back. A picture has no voxel size (its dots per inch are those of paper): 1 mm is assumed.

    Args:
        path: PNG, JPEG, TIFF or BMP file.
        spatial_dims: of the model; 3 refuses any picture.

    Returns:
        Voxels `(X, Y, 1)`, float32; affine `(4, 4)`, float64, voxels to RAS+ mm; fields for `meta`; warnings.

    Raises:
        ScanError: when the picture cannot be used, in one line.
    """
    picture, cut_down = _decoded(path, spatial_dims)
    if cut_down or picture.mode not in (*_GREY, *_COLOURS):
        what = "16-bit colours" if cut_down else f"{picture.mode} colours"
        raise ScanError(f"{path}: expected grey levels, or 8-bit colours that are all grey, got {what}")
    notes = ["no voxel size in the file, 1 mm assumed"]
    pixels = np.asarray(picture)
    if picture.mode in _COLOURS:
        colours, transparency = np.split(pixels, [_COLOURS[picture.mode]], axis=-1)
        coloured = int((colours != colours[..., :1]).any(-1).sum())
        if coloured:
            size = pixels.shape[0] * pixels.shape[1]
            raise ScanError(f"{path}: expected a grey picture, got colours in {coloured} of {size} pixels")
        if (transparency < 255).any():
            notes.append("the picture's transparency is left out")
        pixels = colours[..., 0]
    meta = {
        "scan_dtype": pixels.dtype.newbyteorder("=").name,
        "sform_code": 0,
        "qform_code": 0,
        "descrip": "",
        "time_unit": 0,
        "picture": True,
    }
    return as_float32(pixels.T)[..., None], np.diag([-1.0, -1.0, 1.0, 1.0]), meta, notes


def write_png(path: PathLike, pixels: Array) -> None:
    """Write `(X, Y)`, uint8 or uint16, as a grey PNG with columns X and rows Y, whole or not at all.

    Raises:
        ScanError: when the file cannot be written.
    """
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(pixels.T))
    with atomic_write(path) as partial, partial.open("wb") as file:
        picture.save(file, format="png")
