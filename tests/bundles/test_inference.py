"""Inference through the bundle's own config: the result on disk, where it lies, what its voxels are, what is said of it."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from custom_components.batches.summary_file import COLUMNS

ROOT = Path(__file__).parents[2]
SHEAR = np.array([[1, 0.2, 0, 5], [0, 1.1, 0.1, -9], [0, 0, 3, 40], [0, 0, 0, 1.0]])
AFFINES = {
    "plain": {"spacing": (1, 1, 1), "angles": (0, 0, 0), "flips": (1, 1, 1)},
    "oblique_anisotropic": {},
    "flipped": {"spacing": (1, 1, 2.5), "angles": (0, 0, 0), "flips": (-1, 1, -1)},
    "permuted_oblique": {"spacing": (3, 0.9, 0.9), "axes": (2, 0, 1), "flips": (-1, -1, 1)},
    "sheared": None,
}
FACTORS = ([2, 2, 2], [3, 3, 3], [2, 2, 3], [2.5, 2.5, 2.5], [1, 1, 3.3])


@pytest.fixture
def affine_of(oblique):
    return lambda name: SHEAR if AFFINES[name] is None else oblique(**AFFINES[name])


def result(folder, stem="scan"):
    return nib.load(folder / f"{stem}_sr.nii.gz")


def voxels(image):
    return np.asarray(image.dataobj)


def outer_corners(affine, shape):
    """The 8 corners of the field of view in mm, at the outer borders of the outer voxels."""
    ends = itertools.product(*((-0.5, n - 0.5) for n in shape))
    return nib.affines.apply_affine(affine, np.array(list(ends)))


def centre_of_mass(values, affine):
    return nib.affines.apply_affine(affine, ndimage.center_of_mass(values.astype(np.float64)))


def blob(shape=(15, 14, 13)):
    """A smooth bright spot off the centre, as an int16 scan that is 0 elsewhere."""
    centre = [0.44 * n for n in shape]
    squares = [(np.arange(n) - c) ** 2 / (2 * 1.4**2) for n, c in zip(shape, centre, strict=True)]
    return np.rint(20000 * np.exp(-sum(np.ix_(*squares)))).astype(np.int16)


def spline(scan, factors):
    """The spline alone, by scipy; a scan without negative values gets none."""
    fine = ndimage.zoom(scan.astype(np.float64), factors, order=3, mode="nearest", grid_mode=True)
    return fine.clip(min=0) if scan.min() >= 0 else fine


class TestGeometry:
    @pytest.mark.parametrize("factors", FACTORS, ids=lambda f: "x".join(map(str, f)))
    @pytest.mark.parametrize("name", AFFINES)
    def test_field_of_view_and_blob_stay_in_place(self, name, factors, affine_of, write_nifti, infer, tmp_path):
        affine, scan = affine_of(name), blob()

        def describe(image):
            image.set_sform(affine, 1)
            image.header["descrip"] = b"MPRAGE, head coil"
            image.header.set_xyzt_units("mm", "sec")

        (row,) = infer(write_nifti(voxels=scan, affine=affine, edit=describe), scale_factor=factors)
        assert (row["status"], row["error"]) == ("ok", "")
        image = result(tmp_path / "out")
        shape = tuple(round(n * f) for n, f in zip(scan.shape, factors, strict=True))
        assert image.shape == shape
        sform, spacing = image.get_sform(), np.linalg.norm(affine[:3, :3], axis=0)
        np.testing.assert_allclose(
            np.linalg.norm(sform[:3, :3], axis=0), spacing * scan.shape / np.array(shape), rtol=1e-6
        )
        np.testing.assert_allclose(outer_corners(sform, shape), outer_corners(affine, scan.shape), atol=1e-4)
        moved = np.abs(centre_of_mass(voxels(image), sform) - centre_of_mass(scan, affine))
        assert moved.max() < 0.01
        assert int(image.header["sform_code"]) == 1
        if name == "sheared":
            assert int(image.header["qform_code"]) == 0
        else:
            assert int(image.header["qform_code"]) == 1
            np.testing.assert_allclose(image.get_qform(), sform, atol=1e-4)
            np.testing.assert_allclose(image.header.get_zooms(), np.linalg.norm(sform[:3, :3], axis=0), rtol=1e-6)
        assert nib.aff2axcodes(sform) == nib.aff2axcodes(affine)
        assert image.header.get_xyzt_units() == ("mm", "sec")
        assert image.header["descrip"].item() == b"MPRAGE, head coil"

    @pytest.mark.parametrize("suffix", ["mha", "nrrd"])
    def test_formats_in_lps(self, suffix, oblique, infer, tmp_path):
        affine, scan = oblique(spacing=(0.9, 1.1, 3.3), flips=(1, 1, 1)), blob()
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image = itk.image_from_array(np.ascontiguousarray(scan.T))
        image.SetSpacing(spacing.tolist())
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetDirection(itk.matrix_from_array(lps[:3, :3] / spacing))
        itk.imwrite(image, tmp_path / f"scan.{suffix}")
        infer(tmp_path / f"scan.{suffix}", scale_factor=[1, 1, 3.3])
        self.check(result(tmp_path / "out"), scan, affine)

    def test_dicom_series(self, oblique, write_dicom, infer, tmp_path):
        affine, scan = oblique(spacing=(0.9, 1.1, 3.3), flips=(1, 1, 1)), blob()
        infer(write_dicom("t1_series", voxels=scan, affine=affine), scale_factor=[1, 1, 3.3])
        self.check(result(tmp_path / "out", "t1_series"), scan, affine)

    @staticmethod
    def check(image, scan, affine):
        assert image.shape == (*scan.shape[:2], 43)
        assert image.get_data_dtype() == np.int16
        # DICOM keeps positions as decimal text
        np.testing.assert_allclose(
            outer_corners(image.affine, image.shape), outer_corners(affine, scan.shape), atol=2e-3
        )
        assert np.abs(centre_of_mass(voxels(image), image.affine) - centre_of_mass(scan, affine)).max() < 0.01

    @pytest.mark.parametrize(
        ("options", "shape", "spacing"),
        [
            ({}, (18, 16, 14), (0.45, 0.55, 1.65)),
            ({"target_spacing": [1, 1, 1]}, None, None),  # coarser than 0.9 mm: refused
            ({"target_spacing": [0, 0, 1]}, (9, 8, 23), (0.9, 1.1, 23.1 / 23)),
            ({"target_spacing": 0.9}, (9, 10, 26), (0.9, 0.88, 23.1 / 26)),
            ({"scale_factor": [1, 1, 2.5]}, (9, 8, 18), (0.9, 1.1, 23.1 / 18)),
            ({"scale_factor": 3}, (27, 24, 21), (0.3, 1.1 / 3, 1.1)),
        ],
    )
    def test_target(self, options, shape, spacing, write_nifti, noise, infer, tmp_path):
        (row,) = infer(write_nifti(voxels=noise()), **options)
        if shape is None:
            assert "target spacing must be at most the scan's 0.9 mm on axis 0" in row["error"]
            return
        assert result(tmp_path / "out").shape == shape
        assert result(tmp_path / "out").header.get_zooms() == pytest.approx(spacing, rel=1e-5)
        assert row["shape_out"] == "x".join(map(str, shape))


class TestIntensity:
    @pytest.mark.parametrize("factors", [(2, 2, 2), (1, 1, 2.5)])
    def test_zero_weights_give_the_spline(self, factors, write_nifti, noise, infer, tmp_path):
        scan = noise((10, 9, 8), dtype=np.float32)
        infer(write_nifti(voxels=scan), scale_factor=list(factors))
        np.testing.assert_allclose(voxels(result(tmp_path / "out")), spline(scan, factors), atol=0.01)

    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [
            (np.int16, -300, 900),
            (np.int16, 30000, 32767),
            (np.uint8, 0, 256),
            (np.uint16, 40000, 65536),
            (np.int8, -128, 128),
        ],
        ids=str,
    )
    def test_integers_are_rounded_and_clipped(self, dtype, low, high, noise, write_nifti, infer, tmp_path):
        scan = noise(low=low, high=high, dtype=dtype)
        infer(write_nifti(voxels=scan))
        image, limits = result(tmp_path / "out"), np.iinfo(dtype)
        assert image.get_data_dtype() == dtype
        assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
        expected = spline(scan, 2)
        assert expected.max() > limits.max or (dtype == np.int16 and high == 900)  # the spline overshoots
        np.testing.assert_allclose(voxels(image), expected.clip(limits.min, limits.max), atol=0.51)

    def test_negative_values_stay(self, noise, write_nifti, infer, tmp_path):
        infer(write_nifti(voxels=noise(low=-1000, high=-100, dtype=np.float32)))
        assert voxels(result(tmp_path / "out")).mean() == pytest.approx(-550, abs=30)

    def test_no_negative_values_from_a_scan_without(self, noise, write_nifti, infer, tmp_path):
        scan = noise(low=0, high=2, dtype=np.float32)
        infer(write_nifti(voxels=scan))
        assert spline(scan - 1, 2).min() < -1.1  # the spline overshoots
        assert voxels(result(tmp_path / "out")).min() == 0

    def test_scaled_scan_becomes_float(self, noise, write_nifti, infer, tmp_path):
        scan = noise()
        path = write_nifti(voxels=scan, edit=lambda image: image.header.set_slope_inter(0.25, -10))
        infer(path, scale_factor=[1, 1, 2])
        image = result(tmp_path / "out")
        assert image.get_data_dtype() == np.float32
        expected = spline(nib.load(path).get_fdata(), (1, 1, 2))
        np.testing.assert_allclose(voxels(image), expected, atol=0.01)

    def test_bright_vessel_is_kept(self, noise, write_nifti, infer, tmp_path):
        scan = noise((16, 16, 16), dtype=np.int16)
        scan[8, 8, 8] = 12000
        infer(write_nifti(voxels=scan))
        np.testing.assert_allclose(voxels(result(tmp_path / "out")), spline(scan, 2), atol=0.51)
        assert voxels(result(tmp_path / "out")).max() > 6000

    @pytest.mark.parametrize("background", [0, -1000])
    def test_background_stays(self, background, noise, write_nifti, infer, tmp_path):
        scan = np.full((14, 14, 14), background, np.int16)
        scan[4:10, 4:10, 4:10] = noise((6, 6, 6))
        infer(write_nifti(voxels=scan), weights="random")
        outside = np.ones((28, 28, 28), bool)
        outside[6:22, 6:22, 6:22] = False  # one LR voxel around what is not empty
        assert (voxels(result(tmp_path / "out"))[outside] == background).all()

    def test_output_dtype(self, noise, write_nifti, infer, tmp_path):
        infer(write_nifti(voxels=noise()), output_dtype="float32")
        image = result(tmp_path / "out")
        assert image.get_data_dtype() == np.float32
        np.testing.assert_allclose(voxels(image), spline(noise(), 2), atol=0.01)


def test_small_memory_gives_the_same_result(noise, write_nifti, infer, tmp_path):
    scan = write_nifti(voxels=noise((40, 30, 20), dtype=np.float32))
    infer(scan, tmp_path / "large", "random")
    infer(scan, tmp_path / "small", "random", memory_gib=0.0003)
    large, small = (voxels(result(tmp_path / name)) for name in ("large", "small"))
    assert np.abs(large - small).max() <= 1e-5 * np.ptp(large)
    assert np.abs(large - spline(noise((40, 30, 20)), 2)).max() > 1  # the network does something


class TestSummary:
    def test_line_of_a_scan(self, noise, write_nifti, infer, tmp_path):
        path = write_nifti("sub/head.nii", voxels=noise())
        (row,) = infer(path, weights="random")
        assert tuple(row) == COLUMNS
        assert row["file"] == str(path)
        assert row["output"] == str(tmp_path / "out" / "head_sr.nii.gz")
        assert (row["shape_in"], row["shape_out"]) == ("9x8x7", "18x16x14")
        assert (row["spacing_in"], row["spacing_out"]) == ("0.9x1.1x3.3", "0.45x0.55x1.65")
        assert 0 < float(row["seconds"]) < 60
        assert 0.05 < float(row["peak_memory_gib"]) < 6
        assert 0 < float(row["consistency_error"]) < 1
        assert (row["status"], row["warnings"], row["error"]) == ("ok", "", "")

    def test_consistency_error_by_scipy(self, noise, write_nifti, infer, tmp_path):
        scan = noise(dtype=np.float32)
        (row,) = infer(write_nifti(voxels=scan), weights="random")
        blurred = ndimage.gaussian_filter(voxels(result(tmp_path / "out")), 1, mode="nearest")
        again = ndimage.zoom(blurred, 0.5, order=3, mode="nearest", grid_mode=True)
        low, high = np.percentile(scan, [0.1, 99.9])
        error = np.sqrt(np.mean(((again - scan) / (high - low)) ** 2))
        # to 0.01, as the error is taken before negative values are clipped
        assert float(row["consistency_error"]) == pytest.approx(error, abs=0.01)
        assert error > 0.05

    def test_warns_outside_the_trained_range(self, noise, write_nifti, infer, caplog):
        limits = {"scale_factor": [1, 3], "spacing": [0.5, 2], "intensity": {"50": [0.9, 1.0]}}
        (row,) = infer(write_nifti(voxels=noise()), scale_factor=[1, 1, 4], trained_range=limits)
        assert row["status"] == "ok"
        for sentence in (
            "scale factor 1 x 1 x 4 is outside the trained range of 1 to 3",
            "intensity distribution is outside the trained range: percentile 50 of the foreground",
        ):
            assert sentence in row["warnings"]
            assert sum(sentence in r.message and r.levelname == "WARNING" for r in caplog.records) == 1
        assert "target spacing" not in row["warnings"]

    def test_no_warning_within_it(self, noise, write_nifti, infer):
        limits = {"scale_factor": [1, 3], "spacing": [0.4, 2], "intensity": {"50": [0.1, 0.9]}}
        (row,) = infer(write_nifti(voxels=noise()), trained_range=limits)
        assert row["warnings"] == ""

    def test_doubtful_header_is_a_warning(self, noise, write_nifti, infer):
        def strip(image):
            image.set_sform(None, 0)
            image.set_qform(None, 0)

        (row,) = infer(write_nifti(voxels=noise(), edit=strip))
        assert row["status"] == "ok"
        assert "no sform or qform" in row["warnings"]


class TestCommandLine:
    def test_folder(self, noise, write_nifti, write_dicom, oblique, command, read_summary, tmp_path):
        write_nifti("in/a.nii.gz", voxels=noise())
        write_nifti("in/b.nii", voxels=noise((6, 5, 4)))
        itk.imwrite(itk.image_from_array(noise((5, 6, 7), dtype=np.uint8)), tmp_path / "in" / "a.mha")
        write_dicom("in/series")
        (tmp_path / "in" / "notes.txt").write_text("not a scan")
        run = command(tmp_path / "in", tmp_path / "out", target_spacing="[0,0,0.5]")
        assert run.code == 0, run.stderr
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
            [f"{stem}_sr.{kind}" for stem in ("a", "a_2", "b", "series") for kind in ("nii.gz", "png")]
            + ["summary.csv"]
        )
        rows = read_summary(tmp_path / "out")
        assert [row["status"] for row in rows] == ["ok"] * 4
        assert {row["spacing_out"].rsplit("x", 1)[0] for row in rows} >= {"0.9x1.1"}
        assert all(float(row["spacing_out"].split("x")[2]) == pytest.approx(0.5, rel=0.06) for row in rows)
        assert any("4 of 4 scans done, 0 failed" in line for line in run.lines)
        assert "Traceback" not in run.stderr
        assert "scans" in run.stderr  # the bars over scans
        assert "slices" in run.stderr  # and tiles

    @pytest.mark.slow
    def test_a_process_of_its_own_from_the_readme(self, noise, write_nifti, checkpoints, tmp_path):
        bundle = "bundles/brain_mri_sr_recnn"
        words = f"-m monai.bundle run --config_file {bundle}/configs/inference.json --bundle_root {bundle}".split()
        words += ["--dataset_dir", str(write_nifti(voxels=noise())), "--output_dir", str(tmp_path / "out")]
        words += ["--checkpoint", str(checkpoints["zero"]), "--target_spacing", "[0.9,1,1]"]
        words += ["--network_def::num_layers", "2", "--network_def::num_filters", "2"]
        run = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert result(tmp_path / "out").shape == (9, 9, 23)
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["scan_sr.nii.gz", "scan_sr.png", "summary.csv"]

    def test_log_is_calm(self, noise, write_nifti, command, tmp_path):
        run = command(write_nifti(voxels=noise()), tmp_path / "out", scale_factor="[1,1,2.5]")
        assert result(tmp_path / "out").shape == (9, 8, 18)
        first, last = run.lines
        assert "weights from" in first
        assert "1 of 1 scans done, 0 failed" in last

    def test_preview_is_a_picture_of_three_planes(self, noise, write_nifti, command, tmp_path):
        from matplotlib.image import imread

        command(write_nifti(voxels=noise((20, 18, 6))), tmp_path / "out", scale_factor="[1,1,3]")
        picture = imread(tmp_path / "out" / "scan_sr.png")
        assert min(picture.shape[:2]) > 300
        thirds = np.array_split(picture[..., :3].mean(-1), 3, axis=1)  # input, spline, SR
        assert all(part.std() > 0.05 for part in thirds)


def test_plan_of_a_large_volume_keeps_the_memory_bound():
    from custom_components.inferers import ExactInferer
    from custom_components.networks import ReCNN

    for layers, filters in ((10, 48), (20, 64)):
        plan = ExactInferer(2.0).plan((1, 1, 512, 512, 512), ReCNN(3, num_layers=layers, num_filters=filters))
        assert plan.memory <= 2 * 2**30
        assert plan.work < 1.1
        assert math.prod(plan.splits) <= 2
