from __future__ import annotations

import gzip
import json
import locale
import logging
import re

import itk
import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.errors import ScanError
from custom_components.transforms.load import LoadScan, LoadScand, load_scan

RNG = np.random.default_rng(1)
INT16 = RNG.integers(-300, 900, (7, 6, 5)).astype(np.int16)


def error_of(path, **kwargs) -> str:
    """The one line that loading a bad scan gives; it names the file."""
    with pytest.raises(ScanError) as info:
        load_scan(path, **kwargs)
    message = str(info.value)
    assert str(path) in message
    assert "\n" not in message
    assert "expected" in message
    return message


def edit_header(path, offset: int, value) -> None:
    """Overwrite bytes of a header on disk, past nibabel's mending."""
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    data[offset : offset + value.nbytes] = value.tobytes()
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))


AFFINES = [
    {},
    {"flips": (-1, 1, -1)},
    {"flips": (-1, -1, 1), "axes": (2, 0, 1)},
    {"angles": (1.2, 2.8, -2.0), "spacing": (0.5, 0.5, 6)},
]


@pytest.mark.parametrize("spec", AFFINES)
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "SCAN.NII.GZ"])
def test_nifti_voxels_affine_and_meta(write_nifti, oblique, name, spec):
    def describe(image):
        image.header["descrip"] = "3T, run 2 \xb5".encode("latin-1")
        image.header.set_xyzt_units("mm", "sec")

    path = write_nifti(name, INT16, oblique(**spec), edit=describe)
    image, warnings = load_scan(path)
    assert image.shape == (1, 7, 6, 5)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    np.testing.assert_array_equal(image[0].numpy(), INT16)
    assert image.affine.dtype == torch.float64
    np.testing.assert_array_equal(image.affine.numpy(), nib.load(path).affine)
    assert warnings == []
    got = {
        k: image.meta[k] for k in ("filename_or_obj", "scan_dtype", "sform_code", "qform_code", "descrip", "time_unit")
    }
    assert got == {
        "filename_or_obj": str(path),
        "scan_dtype": "int16",
        "sform_code": 2,
        "qform_code": 0,
        "descrip": "3T, run 2 \xb5",
        "time_unit": 8,
    }


@pytest.mark.parametrize(
    "dtype",
    ["int8", "uint8", "int16", ">i2", "uint16", "int32", "uint32", "int64", "uint64", "float32", ">f4", "float64"],
)
def test_nifti_types(write_nifti, dtype):
    voxels = RNG.integers(0, 120, (4, 5, 6)).astype(dtype)
    image, _ = load_scan(write_nifti("scan.nii", voxels, dtype=voxels.dtype))
    np.testing.assert_array_equal(image[0].numpy(), voxels.astype(np.float32))
    assert image.meta["scan_dtype"] == np.dtype(dtype).newbyteorder("=").name


def test_nifti2_and_trailing_unit_axes(write_nifti):
    image, _ = load_scan(write_nifti(voxels=INT16[..., None, None], cls=nib.Nifti2Image))
    np.testing.assert_array_equal(image[0].numpy(), INT16)


def test_header_scaling_is_applied_and_makes_floats(write_nifti):
    path = write_nifti("scan.nii", INT16)
    edit_header(path, 112, np.array([0.5, -10], np.float32))  # scl_slope, scl_inter
    image, _ = load_scan(path)
    np.testing.assert_allclose(image[0].numpy(), INT16 * 0.5 - 10, atol=1e-4)
    assert image.meta["scan_dtype"] == "float32"


def test_sform_counts_where_forms_or_pixdim_disagree(write_nifti, oblique):
    sform = oblique()

    def disagree(image):
        image.set_qform(np.diag([2.0, 2, 2, 1]), 1)  # also sets pixdim, off the sform's
        image.set_sform(sform, 4)

    image, warnings = load_scan(write_nifti(edit=disagree))
    np.testing.assert_allclose(image.affine.numpy(), sform, atol=1e-5)
    assert (image.meta["sform_code"], image.meta["qform_code"]) == (4, 4)
    assert len(warnings) == 1
    assert "disagree" in warnings[0]


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_slice_thickness_of_the_bids_file_beside_it(write_nifti, name):
    path = write_nifti(name)
    assert "slice_thickness" not in load_scan(path)[0].meta
    sidecar = path.with_name("scan.json")
    sidecar.write_text(json.dumps({"MagneticFieldStrength": 3, "SliceThickness": 4, "Name": "\xb5"}))
    image, warnings = load_scan(path)
    assert image.meta["slice_thickness"] == 4
    assert type(image.meta["slice_thickness"]) is float
    assert warnings == []
    sidecar.write_text('{"EchoTime": 0.1}')
    image, warnings = load_scan(path)
    assert "slice_thickness" not in image.meta
    assert warnings == []
    path.with_name("other.json").write_text('{"SliceThickness": 4}')
    sidecar.unlink()
    assert "slice_thickness" not in load_scan(path)[0].meta


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "does not read as JSON"),
        (b'{"SliceThickness": 4', "does not read as JSON"),
        (b'\xff\xfe\xfa{"SliceThickness": 4}', "does not read as JSON"),
        (b"[" * 100_000, "does not read as JSON"),
        (b'{"SliceThickness": "4 mm"}', "is not a number"),
        (b'{"SliceThickness": [4, 4]}', "is not a number"),
        (b'{"SliceThickness": true}', "is not a number"),
        (b'{"SliceThickness": NaN}', "is not a number"),
        (b'{"SliceThickness": 1e999}', "is not a number"),
        (b'{"SliceThickness": 1' + b"0" * 400 + b"}", "is not a number"),
    ],
)
def test_a_broken_bids_file_is_a_warning(write_nifti, content, told):
    path = write_nifti()
    path.with_name("scan.json").write_bytes(content)
    image, warnings = load_scan(path)
    assert image.shape == (1, 7, 6, 5)
    assert "slice_thickness" not in image.meta
    assert len(warnings) == 1
    assert told in warnings[0]
    assert "scan.json" in warnings[0]


def test_qform_alone(write_nifti, oblique):
    def only_qform(image):
        image.set_qform(oblique(), 1)
        image.set_sform(None, 0)

    image, warnings = load_scan(write_nifti(edit=only_qform))
    np.testing.assert_allclose(image.affine.numpy(), oblique(), atol=1e-4)
    assert (image.meta["sform_code"], image.meta["qform_code"], warnings) == (0, 1, [])


def test_no_form_is_done_with_a_warning(write_nifti, caplog):
    def no_form(image):
        image.set_sform(None, 0)
        image.set_qform(None, 0)

    path = write_nifti(affine=np.diag([1.0, 2, 3, 1]), edit=no_form)
    item = LoadScand("image")({"image": str(path), "warnings": ["earlier"]})
    np.testing.assert_allclose(item["image"].affine.numpy(), nib.load(path).affine)
    assert item["warnings"][0] == "earlier"
    assert "no sform or qform" in item["warnings"][1]
    with caplog.at_level(logging.WARNING):
        LoadScan()(path)
    assert "no sform or qform" in caplog.text


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 1e-3)])
def test_other_units_become_mm(write_nifti, oblique, unit, factor):
    path = write_nifti(edit=lambda image: image.header.set_xyzt_units(unit))
    image, warnings = load_scan(path)
    np.testing.assert_allclose(image.affine.numpy()[:3], oblique()[:3] * factor, rtol=1e-6)
    assert "converted to mm" in warnings[0]


def test_dictionary_version_leaves_the_item_and_obeys_missing_keys(write_nifti):
    data = {"image": str(write_nifti()), "warnings": []}
    item = LoadScand(["image", "reference"], allow_missing_keys=True)(data)
    assert data == {"image": data["image"], "warnings": []}
    assert item["image"].shape == (1, 7, 6, 5)
    with pytest.raises(KeyError):
        LoadScand(["image", "reference"])(data)


def itk_image(voxels, affine):
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = itk.image_from_array(np.ascontiguousarray(voxels.T))
    image.SetSpacing([float(s) for s in spacing])
    image.SetOrigin([float(v) for v in lps[:3, 3]])
    image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
    return image


@pytest.mark.parametrize("spec", AFFINES)
@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd", "scan.nrrd", "scan.nhdr"])
def test_itk_formats(tmp_path, oblique, name, spec):
    itk.imwrite(itk_image(INT16, oblique(**spec)), str(tmp_path / name))
    image, warnings = load_scan(tmp_path / name)
    np.testing.assert_array_equal(image[0].numpy(), INT16)
    np.testing.assert_allclose(image.affine.numpy(), oblique(**spec), atol=1e-9)
    assert image.affine.dtype == torch.float64
    assert image.is_contiguous()
    assert (image.meta["scan_dtype"], image.meta["descrip"], warnings) == ("int16", "", [])


def write_mha(path, voxels, element="MET_SHORT", **fields):
    header = {
        "ObjectType": "Image",
        "NDims": voxels.ndim,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": " ".join(f"{v:g}" for v in np.eye(voxels.ndim).ravel()),
        "Offset": " ".join("0" * voxels.ndim),
        "ElementSpacing": " ".join("1" * voxels.ndim),
        "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": element,
        **fields,
        "ElementDataFile": "LOCAL",
    }
    text = "".join(f"{k} = {v}\n" for k, v in header.items())
    path.write_bytes(text.encode() + voxels.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("dtype", "element"),
    [
        ("int8", "MET_CHAR"),
        ("uint8", "MET_UCHAR"),
        ("uint16", "MET_USHORT"),
        ("int32", "MET_INT"),
        ("uint32", "MET_UINT"),
        ("int64", "MET_LONG_LONG"),
        ("uint64", "MET_ULONG_LONG"),
        ("float32", "MET_FLOAT"),
        ("float64", "MET_DOUBLE"),
    ],
)
def test_itk_types(tmp_path, dtype, element):
    voxels = RNG.integers(0, 120, (4, 5, 6)).astype(dtype)
    image, _ = load_scan(write_mha(tmp_path / "scan.mha", voxels, element))
    np.testing.assert_array_equal(image[0].numpy(), voxels.astype(np.float32))
    assert image.meta["scan_dtype"] == dtype


@pytest.mark.parametrize("spec", [{"flips": (1, 1, 1)}, {"flips": (-1, -1, 1), "spacing": (0.6, 0.6, 4)}])
def test_dicom_series(write_dicom, oblique, spec):
    folder = write_dicom(voxels=INT16, affine=oblique(**spec))
    image, warnings = load_scan(folder)
    np.testing.assert_array_equal(image[0].numpy(), INT16)
    np.testing.assert_allclose(image.affine.numpy(), oblique(**spec), atol=1e-4)  # positions are rounded decimal text
    assert (image.meta["filename_or_obj"], image.meta["scan_dtype"], warnings) == (str(folder), "int16", [])


def test_dicom_series_against_its_normal(write_dicom, oblique):
    """Slices that run against the normal of their plane come in the other order, each voxel in its place."""
    affine = oblique(flips=(1, 1, -1))
    folder = write_dicom(voxels=INT16, affine=affine)
    image, _ = load_scan(folder)
    placed = image.affine.numpy() @ [3, 2, 1, 1]
    i, j, k = np.rint((np.linalg.inv(affine) @ placed)[:3]).astype(int)
    np.testing.assert_allclose(affine @ [i, j, k, 1], placed, atol=1e-3)
    assert image[0, 3, 2, 1] == INT16[i, j, k]


def give_thickness(path, text):
    """Write a single-slice DICOM file anew with this text as its slice thickness."""
    img = itk.imread(str(path), itk.SS)
    tags = img.GetMetaDataDictionary()
    tags["0018|0050"] = text
    io = itk.GDCMImageIO.New()
    io.KeepOriginalUIDOn()
    names = locale.setlocale(locale.LC_ALL)
    itk.ImageFileWriter[type(img)].New(Input=img, FileName=f"{path}.dcm", ImageIO=io).Update()
    locale.setlocale(locale.LC_ALL, names)  # GDCM leaves it at C
    path.with_name(f"{path.name}.dcm").rename(path)


@pytest.mark.parametrize(("text", "thickness"), [("4.5", 4.5), ("0", 0), ("", None), ("thin", None), (None, None)])
def test_slice_thickness_of_dicom(write_dicom, oblique, text, thickness):
    folder = write_dicom(voxels=INT16, affine=oblique(flips=(1, 1, 1), spacing=(0.7, 0.8, 6)))
    for path in sorted(folder.iterdir()):
        if text is not None:
            give_thickness(path, text)
    image, warnings = load_scan(folder)
    assert warnings == []
    assert image.meta.get("slice_thickness", None) == thickness
    assert ("slice_thickness" in image.meta) == (thickness is not None)
    one, _ = load_scan(path, spatial_dims=2)
    assert one.meta.get("slice_thickness", None) == thickness
    assert np.linalg.norm(image.affine.numpy()[:3, 2]) == pytest.approx(6, abs=1e-3)  # the spacing is another thing


def without_tag(path, group, element):
    """Make a DICOM field that holds a number into one that nobody asks for."""
    tag = np.array([group, element], "<u2").tobytes()
    data = path.read_bytes()
    assert data.count(tag) == 1
    path.write_bytes(data.replace(tag, np.array([group, element + 1], "<u2").tobytes()))


def test_one_dicom_file(write_dicom, oblique):
    affine = oblique(flips=(1, 1, 1))
    folder = write_dicom(voxels=INT16[:, :, :1], affine=affine)
    (path,) = folder.iterdir()
    assert "at least 2 voxels along each of 3 axes, got a single slice of shape (7, 6, 1)" in error_of(path)
    for given in (path, folder):
        image, warnings = load_scan(given, spatial_dims=2)
        np.testing.assert_array_equal(image[0].numpy(), INT16[:, :, :1])
        np.testing.assert_allclose(image.affine.numpy(), affine, atol=1e-4)
        assert (image.meta["scan_dtype"], warnings) == ("int16", [])


@pytest.mark.parametrize("thickness", ["4.5", None])
def test_the_thickness_of_a_dicom_slice_without_a_spacing_of_slices(tmp_path, oblique, thickness):
    affine = oblique(flips=(1, 1, 1), spacing=(0.7, 0.8, 3))
    img = itk_image(INT16[:, :, :1], affine)
    tags = img.GetMetaDataDictionary()
    tags["0008|0060"], tags["0008|0016"] = "MR", "1.2.840.10008.5.1.4.1.1.4"
    if thickness:
        tags["0018|0050"] = thickness
    io = itk.GDCMImageIO.New()
    io.KeepOriginalUIDOn()
    itk.ImageFileWriter[type(img)].New(Input=img, FileName=str(tmp_path / "a.dcm"), ImageIO=io).Update()
    without_tag(tmp_path / "a.dcm", 0x18, 0x88)  # spacing between slices
    image, warnings = load_scan(tmp_path / "a.dcm", spatial_dims=2)
    affine[:3, 2] *= float(thickness or 1) / 3
    np.testing.assert_allclose(image.affine.numpy(), affine, atol=1e-4)
    assert warnings == ([] if thickness else ["no slice thickness in the file, 1 mm assumed"])


def test_rescaled_dicom_voxels_are_float32(tmp_path, write_dicom):
    (path,) = write_dicom(voxels=INT16[:, :, :1]).iterdir()
    img = itk.imread(str(path), itk.SS)
    tags = img.GetMetaDataDictionary()
    tags["0028|1052"], tags["0028|1053"] = "0", "0.5"
    scaled = itk.image_from_array(itk.array_from_image(img) * np.float64(0.5))
    for key in tags.GetKeys():
        scaled.GetMetaDataDictionary()[key] = tags[key]
    names = locale.setlocale(locale.LC_ALL)
    itk.ImageFileWriter[type(scaled)].New(
        Input=scaled, FileName=str(tmp_path / "a.dcm"), ImageIO=itk.GDCMImageIO.New()
    ).Update()
    locale.setlocale(locale.LC_ALL, names)  # GDCM leaves it at C, in which later tests read no UTF-8
    image, _ = load_scan(tmp_path / "a.dcm", spatial_dims=2)
    np.testing.assert_allclose(image[0].numpy(), INT16[:, :, :1] * 0.5)
    assert image.meta["scan_dtype"] == "float32"


def test_bad_dicom_folders(write_dicom, tmp_path, oblique):
    assert "gaps from 3.3 to 6.6" in error_of(write_dicom("gap", heights=[0, 1, 2, 4, 5]))
    assert "evenly spaced" in error_of(write_dicom("twice", heights=[0, 1, 1, 2, 3]))
    write_dicom("two")
    assert "2 series" in error_of(write_dicom("two", uid="1.2.826.0.1.3680043.2.1125.2", names="other{:03d}"))
    assert "single slice" in error_of(write_dicom("one", voxels=INT16[:, :, :1]))
    assert "several" in error_of(write_dicom("two_planes", voxels=INT16) and _second_plane(write_dicom, oblique))
    (tmp_path / "empty").mkdir()
    assert "no scan found in it" in error_of(tmp_path / "empty")


def _second_plane(write_dicom, oblique):
    return write_dicom("two_planes", voxels=INT16, affine=oblique(axes=(1, 2, 0)), names="plane{:03d}")


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.mha", "scan.nrrd", "scan.dcm", "scan"])
def test_not_an_image(tmp_path, name, capfd):
    path = tmp_path / name
    assert "no such file" in error_of(path)
    path.touch()
    assert "empty file" in error_of(path)
    path.write_text("shopping list: milk, " * 99)
    assert "does not read as" in error_of(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_gzip(write_nifti, share):
    path = write_nifti(voxels=RNG.integers(0, 900, (20, 20, 20)).astype(np.int16))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    assert re.search("cut short|does not read", error_of(path))


@pytest.mark.parametrize("seed", range(12))
def test_a_changed_byte_in_a_gzip_file_is_seen(write_nifti, seed):
    """Most unpack without complaint: only the checksum at the end tells."""
    voxels = np.random.default_rng(seed).integers(0, 900, (20, 20, 20)).astype(np.int16)
    path = write_nifti("flipped.nii.gz", voxels)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert "damaged" in error_of(path)


def test_truncated_others(write_nifti, tmp_path):
    path = write_nifti("scan.nii")
    path.write_bytes(path.read_bytes()[:-9])
    assert "cut short" in error_of(path)
    path = write_mha(tmp_path / "scan.mha", INT16)
    path.write_bytes(path.read_bytes()[:-9])
    assert "cut short" in error_of(path)


def test_wrong_shapes(write_nifti, tmp_path):
    assert "(7, 6, 5, 4)" in error_of(write_nifti(voxels=np.repeat(INT16[..., None], 4, 3)))
    for voxels in (INT16[:, :, :1], INT16[:, :1], INT16[:1], INT16[:, :, 0]):
        path = write_nifti(voxels=voxels)
        assert "single slice" in error_of(path)
        image, _ = load_scan(path, spatial_dims=2)
        assert image.shape == (1, *voxels.shape, 1)[:4]
    assert "of shape (7, 1, 1)" in error_of(write_nifti(voxels=INT16[:, :1, :1]), spatial_dims=2)
    assert "(7, 6, 5, 4)" in error_of(write_mha(tmp_path / "s.mha", np.repeat(INT16[..., None], 4, 3)))
    assert "single slice" in error_of(write_mha(tmp_path / "s.mha", INT16[:, :, 0]))
    flat, _ = load_scan(tmp_path / "s.mha", spatial_dims=2)
    np.testing.assert_array_equal(flat[0, :, :, 0].numpy(), INT16[:, :, 0])
    unit, _ = load_scan(write_mha(tmp_path / "s.mha", INT16[..., None]))
    np.testing.assert_array_equal(unit[0].numpy(), INT16)


def test_wrong_voxel_kinds(write_nifti, tmp_path):
    rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "RGB" in error_of(write_nifti(voxels=rgb))
    assert "complex" in error_of(write_nifti(voxels=INT16.astype(np.complex64)))
    channels = write_mha(tmp_path / "s.mha", INT16[:2], ElementNumberOfChannels=3, DimSize="2 2 5")
    assert "3 values per voxel" in error_of(channels)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_non_finite_and_constant(write_nifti, tmp_path, dtype):
    voxels = INT16.astype(dtype)
    voxels[0, 0, 0], voxels[1, 1, :2] = np.nan, np.inf
    assert "in 3 of 210 voxels" in error_of(write_nifti(voxels=voxels))
    element = "MET_FLOAT" if dtype is np.float32 else "MET_DOUBLE"
    assert "in 3 of 210 voxels" in error_of(write_mha(tmp_path / "s.mha", voxels, element))
    assert "constant 7" in error_of(write_nifti(voxels=np.full((3, 4, 5), 7, dtype)))


def test_beyond_float32_is_refused_without_a_warning(write_nifti):
    voxels = INT16.astype(np.float64)
    voxels[2, 2, 2] = 1e300
    assert "in 1 of 210 voxels" in error_of(write_nifti(voxels=voxels))


@pytest.mark.parametrize("size", [0, -1.5, np.nan, np.inf])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_bad_spacing(write_nifti, name, size, caplog):
    path = write_nifti(name)
    edit_header(path, 76 + 8, np.array(size, np.float32))  # pixdim[2]
    assert "voxel sizes above 0 mm" in error_of(path)
    assert caplog.text == ""  # nibabel's own notes on mending the header are no help


@pytest.mark.parametrize("size", ["0", "-2", "nan"])
def test_bad_spacing_itk(tmp_path, size):
    message = error_of(write_mha(tmp_path / "s.mha", INT16, ElementSpacing=f"1 {size} 1"))
    assert "voxel sizes above 0 mm" in message


@pytest.mark.parametrize("row", [[0, 0, 0, 5], [1, 0, 0, 5], [np.nan, 1, 0, 0]])
def test_bad_affine(write_nifti, tmp_path, row):
    path = write_nifti(affine=np.eye(4))
    edit_header(path, 280 + 16, np.array(row, np.float32))  # srow_y
    assert "invertible affine" in error_of(path)


def test_bad_affine_itk(tmp_path):
    assert "invertible affine" in error_of(write_mha(tmp_path / "s.mha", INT16, TransformMatrix="1 0 0 0 1 0 1 0 0"))


def test_bad_argument():
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, got 4"):
        LoadScan(spatial_dims=4)
