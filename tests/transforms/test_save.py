from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components import files
from custom_components.errors import ScanError
from custom_components.transforms.load import LoadScan, LoadScand
from custom_components.transforms.regrid import ToTargetGrid
from custom_components.transforms.save import NIFTI_DTYPES, SaveScan, SaveScand, as_stored, nifti_dtype

ROOT = Path(files.__file__).absolute().parent.parent


def result(affine, shape=(7, 6, 5), scale=100.0, **meta):
    values = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)) * scale
    return MetaTensor(values, affine=torch.as_tensor(affine), meta={"filename_or_obj": "in/t1.nii.gz", **meta})


AFFINES = [
    {},
    {"flips": (-1, 1, -1)},
    {"flips": (-1, -1, 1), "axes": (2, 0, 1), "angles": (1e-3, -2e-3, 3.1)},
    {"angles": (1.2, 2.8, -2.0), "spacing": (0.5, 0.5, 6)},
]


@pytest.mark.parametrize("spec", AFFINES)
def test_geometry_units_and_description(tmp_path, oblique, spec):
    affine = oblique(**spec)
    meta = {"sform_code": 4, "qform_code": 1, "descrip": "3T, run 2 \xb5", "time_unit": 8, "scan_dtype": "int16"}
    saved = SaveScan(tmp_path)(result(affine, **meta))
    assert saved.meta["saved_to"] == str(tmp_path / "t1_sr.nii.gz")
    image = nib.load(tmp_path / "t1_sr.nii.gz")
    np.testing.assert_allclose(image.get_sform(), affine, atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), affine, atol=1e-3)
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (4, 1)
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert bytes(image.header["descrip"].item()) == "3T, run 2 \xb5".encode("latin-1")


def test_codes_without_a_header_are_scanner(tmp_path, oblique):
    SaveScan(tmp_path)(result(oblique()))
    header = nib.load(tmp_path / "t1_sr.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert header.get_data_dtype() == np.float32


def test_a_sheared_affine_is_in_the_sform_alone(tmp_path, oblique):
    affine = oblique() @ np.array([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    SaveScan(tmp_path)(result(affine, sform_code=2, qform_code=1))
    image = nib.load(tmp_path / "t1_sr.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (2, 0)
    np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(affine[:3, :3], axis=0), rtol=1e-6)


@pytest.mark.parametrize("dtype", NIFTI_DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_voxels_are_rounded_and_clipped_to_the_scan_type(tmp_path, oblique, dtype, order):
    kind = np.dtype(dtype)
    limits = np.iinfo(kind) if kind.kind in "iu" else np.finfo(np.float32)
    values = np.linspace(-3, 130, 5 * 4 * 70).reshape(5, 4, 70)
    values[0, 0, :6] = [float(limits.min) * 1.0, float(limits.max) * 1.0, 0.5, 1.5, -0.4, 2.51]
    if kind.kind in "iu":
        values[0, 0, :2] = [limits.min - 4096.0, limits.max + 4096.0]
    tensor = torch.from_numpy(np.array(values, order=order).astype(np.float32))
    image = result(oblique(), scan_dtype=dtype)
    SaveScan(tmp_path)(MetaTensor(tensor[None], meta=image.meta))
    stored = nib.load(tmp_path / "t1_sr.nii.gz")
    assert stored.get_data_dtype() == kind
    assert (stored.dataobj.slope, stored.dataobj.inter) == (1, 0)
    got = np.asanyarray(stored.dataobj)
    wanted = tensor.numpy().astype(np.float64)
    if kind.kind in "iu":
        wanted = np.clip(np.rint(wanted), limits.min, limits.max)
    np.testing.assert_array_equal(got, wanted.astype(kind))


def test_types_that_nifti_readers_do_not_know():
    assert nifti_dtype("int64", -5, 2**31 - 1) == np.int32
    assert nifti_dtype("uint64", 0, 2**31 - 1) == np.int32
    assert nifti_dtype("int64", 0, 2**31) == np.float32
    assert nifti_dtype("float16", 0, 1) == np.float32
    assert nifti_dtype("longdouble", 0, 1) == np.float64
    assert nifti_dtype("bool", 0, 1) == np.uint8


def test_float_on_request_and_reduced_precision_in(tmp_path, oblique):
    image = result(oblique(), scan_dtype="uint8")
    SaveScan(tmp_path, dtype="float32")(image)
    got = np.asanyarray(nib.load(tmp_path / "t1_sr.nii.gz").dataobj)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, image[0].numpy())
    np.testing.assert_array_equal(as_stored(image[0].bfloat16().as_tensor(), "float32"), image[0].bfloat16().float())


def test_a_scan_comes_back_as_it_went(write_nifti, tmp_path, oblique):
    def describe(image):
        image.header["descrip"] = b"FSL5.0"
        image.set_qform(oblique(), 1)
        image.set_sform(oblique(), 1)

    path = write_nifti("t1.nii.gz", edit=describe)
    before = path.read_bytes()
    SaveScan(tmp_path / "out")(LoadScan()(path))
    a, b = nib.load(path), nib.load(tmp_path / "out" / "t1_sr.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(a.dataobj), np.asanyarray(b.dataobj))
    np.testing.assert_array_equal(a.affine, b.affine)
    np.testing.assert_allclose(a.get_qform(), b.get_qform(), atol=1e-5)
    assert a.get_data_dtype() == b.get_data_dtype()
    for key in ("sform_code", "qform_code", "descrip"):
        assert a.header[key] == b.header[key]
    assert path.read_bytes() == before


def test_equal_results_are_equal_files(tmp_path, oblique, monkeypatch):
    files = []
    for name, clock in (("a", 1e9), ("b", 1.1e9)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        SaveScan(tmp_path / name)(result(oblique()))
        files.append((tmp_path / name / "t1_sr.nii.gz").read_bytes())
    assert files[0] == files[1]


def test_dictionary_version_names_files_by_stem(tmp_path, oblique):
    item = {"pred": result(oblique()), "lowres": result(oblique()), "stem": "t1_2"}
    out = SaveScand(["pred", "lowres"], output_dir=tmp_path, postfix="sr")(item)
    assert out["pred"].meta["saved_to"] == str(tmp_path / "t1_2_sr.nii.gz")
    assert out["lowres"].meta["saved_to"] == str(tmp_path / "t1_2_lowres_sr.nii.gz")
    assert sorted(os.listdir(tmp_path)) == ["t1_2_lowres_sr.nii.gz", "t1_2_sr.nii.gz"]
    SaveScand(output_dir=tmp_path, postfix="")({"pred": result(oblique())})
    assert (tmp_path / "t1.nii.gz").exists()
    with pytest.raises(KeyError):
        SaveScand(output_dir=tmp_path)({})


def picture(rows, **meta):
    """A result `(1, X, Y, 1)` that came as a picture, from its rows and columns."""
    values = torch.from_numpy(np.ascontiguousarray(rows.T, dtype=np.float32))[None, ..., None]
    meta = {"filename_or_obj": "in/t1.png", "picture": True, "scan_dtype": "uint8", **meta}
    return MetaTensor(values, affine=torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)), meta=meta)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_picture_becomes_a_picture_of_its_bit_depth(tmp_path, dtype):
    top = np.iinfo(dtype).max
    rows = np.array([[-3.0, 0.5, 1.5, 2.51], [top - 0.6, top + 0.4, top + 900, 7]])
    saved = SaveScan(tmp_path)(picture(rows, scan_dtype=dtype))
    assert saved.meta["saved_to"] == str(tmp_path / "t1_sr.png")
    assert os.listdir(tmp_path) == ["t1_sr.png"]
    got = itk.array_from_image(itk.imread(str(tmp_path / "t1_sr.png")))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, [[0, 0, 2, 3], [top - 1, top, top, 7]])
    SaveScan(tmp_path / "again")(picture(rows, scan_dtype=dtype))
    assert (tmp_path / "again" / "t1_sr.png").read_bytes() == (tmp_path / "t1_sr.png").read_bytes()


@pytest.mark.parametrize("name", ["t1.png", "t1.tif", "t1.bmp"])
def test_a_picture_stays_upright_and_level(tmp_path, name):
    rows = np.random.default_rng(0).integers(0, 256, (6, 9)).astype(np.uint8)
    itk.imwrite(itk.image_from_array(rows), str(tmp_path / name))
    fine = ToTargetGrid(scale_factor=2, kind="nearest")(LoadScan(spatial_dims=2)(tmp_path / name))
    SaveScan(tmp_path / "out")(fine)
    got = itk.array_from_image(itk.imread(str(tmp_path / "out" / "t1_sr.png")))
    np.testing.assert_array_equal(got, np.kron(rows, np.ones((2, 2))))


def test_pictures_of_another_voxel_type(tmp_path):
    rows = np.linspace(-3, 300, 20).reshape(4, 5)
    SaveScan(tmp_path, dtype="uint16")(picture(rows))
    got = itk.array_from_image(itk.imread(str(tmp_path / "t1_sr.png")))
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, np.clip(np.rint(rows), 0, 65535))
    SaveScan(tmp_path / "float", dtype="float32")(picture(rows))
    SaveScan(tmp_path / "tiff")(picture(rows, scan_dtype="float32"))
    for folder in ("float", "tiff"):
        assert os.listdir(tmp_path / folder) == ["t1_sr.nii.gz"]
        image = nib.load(tmp_path / folder / "t1_sr.nii.gz")
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32)[..., 0], rows.T.astype(np.float32))
        np.testing.assert_array_equal(image.affine, np.diag([-1.0, -1, 1, 1]))
    thick = picture(rows)
    SaveScan(tmp_path / "thick")(MetaTensor(thick.repeat(1, 1, 1, 2), meta=thick.meta))
    assert os.listdir(tmp_path / "thick") == ["t1_sr.nii.gz"]


def test_pictures_that_are_inputs_are_never_written_over(tmp_path):
    rows = np.arange(20.0).reshape(4, 5)
    with pytest.raises(ScanError, match=r"t1.png: expected an output apart from the inputs"):
        SaveScan(tmp_path, postfix="")(picture(rows, filename_or_obj=str(tmp_path / "t1.png")))
    with pytest.raises(ScanError, match=r"t1_sr.png: expected an output apart from the inputs"):
        SaveScan(tmp_path, inputs=[tmp_path / "t1_sr.png"])(picture(rows))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("spec", AFFINES)
@pytest.mark.parametrize("cut", [np.s_[:, :, 9], np.s_[:, :, 9:10], np.s_[:, 8:9], np.s_[7:8]])
def test_a_single_slice_stays_one_in_its_place(write_nifti, tmp_path, oblique, spec, cut):
    blob = [np.exp(-(((np.arange(n) - 0.45 * n) / 2.5) ** 2)) for n in (16, 18, 20)]
    voxels = (1e4 * np.einsum("i,j,k->ijk", *blob))[cut].astype(np.int16)
    path = write_nifti("t1.nii.gz", voxels, oblique(**spec))
    SaveScan(tmp_path / "out")(ToTargetGrid(scale_factor=2)(LoadScan(spatial_dims=2)(path)))
    before, after = nib.load(path), nib.load(tmp_path / "out" / "t1_sr.nii.gz")
    shape = (*before.shape, 1)[:3]
    flat = shape.index(1)
    assert after.shape == tuple(n if n == 1 else 2 * n for n in shape)
    spacing = np.linalg.norm(before.affine[:3, :3], axis=0)
    np.testing.assert_allclose(
        after.header.get_zooms(), [s if a == flat else s / 2 for a, s in enumerate(spacing)], rtol=1e-6
    )
    assert after.get_data_dtype() == np.int16
    np.testing.assert_allclose(after.get_qform(), after.affine, atol=1e-3)
    centres = []
    for image in (before, after):
        values = np.asarray(image.dataobj, dtype=float).reshape((*image.shape, 1)[:3])
        centre = [(np.indices(values.shape)[a] * values).sum() / values.sum() for a in range(3)]
        centres.append((image.affine @ [*centre, 1])[:3])
    np.testing.assert_allclose(centres[1], centres[0], atol=0.01)


def test_inputs_are_never_written_over(write_nifti, tmp_path):
    path = write_nifti("t1.nii.gz")
    other = write_nifti("t1_sr.nii.gz")
    before = path.read_bytes(), other.read_bytes()
    item = LoadScand("image")({"image": str(path)})
    with pytest.raises(ScanError, match=r"t1.nii.gz: expected an output apart from the inputs"):
        SaveScand("image", output_dir=tmp_path / "out" / "..", postfix="")(item)
    with pytest.raises(ScanError, match=r"t1_sr.nii.gz: expected an output apart from the inputs"):
        SaveScand("image", output_dir=tmp_path, inputs=[path, other])(item)
    assert (path.read_bytes(), other.read_bytes()) == before


def test_bad_volumes_and_arguments(tmp_path, oblique):
    with pytest.raises(ValueError, match=r"dtype must be one of int8, .* or None, got 'int64'"):
        SaveScan(tmp_path, dtype="int64")
    with pytest.raises(ValueError, match=r"expected a volume of shape \(1, X, Y, Z\), got \(2, 4, 4, 4\)"):
        SaveScan(tmp_path)(MetaTensor(torch.zeros(2, 4, 4, 4)))
    bad = result(oblique(), scan_dtype="int16")
    bad[0, 1, 1, 1] = float("nan")
    with pytest.raises(ScanError, match="expected a finite result, got NaN"):
        SaveScan(tmp_path)(bad)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("after", [0, 1])
def test_a_full_disk_leaves_nothing(tmp_path, oblique, monkeypatch, after):
    """The write fails at once or at the second call, as on a disk that fills up; an older result stays."""
    SaveScan(tmp_path)(result(oblique(), scale=1))
    old = (tmp_path / "t1_sr.nii.gz").read_bytes()
    write, calls = gzip.GzipFile.write, []

    def fills_up(self, data):
        calls.append(len(data))
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(gzip.GzipFile, "write", fills_up)
    with pytest.raises(ScanError) as info:
        SaveScan(tmp_path)(result(oblique(), scale=2))
    assert str(info.value) == f"{tmp_path / 't1_sr.nii.gz'}: expected to write the file, got: No space left on device"
    assert os.listdir(tmp_path) == ["t1_sr.nii.gz"]
    assert (tmp_path / "t1_sr.nii.gz").read_bytes() == old


def test_a_real_limit_on_file_size_leaves_nothing(tmp_path):
    code = """
import resource, signal, sys, torch
from monai.data import MetaTensor
from custom_components.errors import ScanError
from custom_components.transforms.save import SaveScan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
picture = {"filename_or_obj": "slice.png", "picture": True, "scan_dtype": "uint16"}
for shape, meta in (((1, 32, 32, 32), {}), ((1, 200, 200, 1), picture)):
    try:
        SaveScan(sys.argv[1])(MetaTensor(60000 * torch.rand(shape), affine=torch.eye(4), meta=meta))
    except ScanError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    wanted = [
        f"{tmp_path / name}: expected to write the file, got: File too large"
        for name in ("scan_sr.nii.gz", "slice_sr.png")
    ]
    assert done.stdout.splitlines() == wanted
    assert done.stderr == ""
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_writable(tmp_path, oblique):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanError, match=r"t1_sr\.nii\.gz: expected to write the file, got: "):
        SaveScan(tmp_path / "file")(result(oblique()))


def test_memory_is_one_copy_in_the_output_type():
    volume = torch.rand(64, 64, 1024)
    tracemalloc.start()
    as_stored(volume, "int16")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    blocks = 4 * 16 * 64 * 64 * 8  # a few blocks of slices in float64
    assert peak < volume.numel() * 2 + blocks
