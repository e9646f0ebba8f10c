"""Inference where something is wrong: with a scan, with the command, with the disk, or when the process is killed."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import random
import re
import signal
import time

import itk
import nibabel as nib
import numpy as np
import pytest
import torch


def checksums(folder):
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def patch(path, dtype, offset, values):
    """Write numbers into the header of an uncompressed NIfTI file: nibabel would mend them."""
    data = bytearray(path.read_bytes())
    raw = np.array(values, dtype=dtype).tobytes()
    data[offset : offset + len(raw)] = raw
    path.write_bytes(bytes(data))


PIXDIM, SROW = 80, 280  # offsets in a NIfTI-1 header


def write_bad_scans(folder, scan, affine):
    """One file per way to be bad; name -> a part of the reason that the user reads."""
    shape = scan.shape

    def nifti(name, voxels, suffix=".nii"):
        nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}{suffix}")
        return folder / f"{name}{suffix}"

    def with_value(value):
        voxels = scan.astype(np.float32)
        voxels[1, 2, 3] = value
        return voxels

    (folder / "text.nii.gz").write_text("this is not an image")
    (folder / "empty.nii").write_bytes(b"")
    (folder / "text.mha").write_text("this is not an image either")
    cut = nifti("truncated", scan, ".nii.gz")
    cut.write_bytes(cut.read_bytes()[:-150])
    short = nifti("short", scan)
    short.write_bytes(short.read_bytes()[:-100])
    nifti("series", np.stack([scan, scan], -1))
    colours = np.zeros(shape, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nifti("rgb", colours)
    nifti("slice", scan[:, :, :1])
    nifti("nan", with_value(np.nan))
    nifti("inf", with_value(np.inf))
    nifti("constant", np.full(shape, 7, np.int16))
    patch(nifti("zero_spacing", scan), "<f4", PIXDIM, [0, 0, 1, 1])
    patch(nifti("negative_spacing", scan), "<f4", PIXDIM, [1, 1, -2, 1])
    patch(nifti("flat_affine", scan), "<f4", SROW, [1, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0])
    coarse = itk.image_from_array(np.ascontiguousarray(scan.T))
    coarse.SetSpacing([0.5, 0.5, 0.5])
    itk.imwrite(coarse, folder / "finer_than_target.nrrd")
    return {
        "text.nii.gz": "expected a NIfTI image",
        "empty.nii": "got an empty file",
        "text.mha": "does not read as an image",
        "truncated.nii.gz": "cut short or damaged",
        "short.nii": "cut short or damaged",
        "series.nii": "expected one volume with 3 axes",
        "rgb.nii": "expected one real value per voxel",
        "slice.nii": "got a single slice",
        "nan.nii": "NaN or infinity in 1 of 504 voxels",
        "inf.nii": "NaN or infinity in 1 of 504 voxels",
        "constant.nii": "got the constant 7",
        "zero_spacing.nii": "expected voxel sizes above 0 mm",
        "negative_spacing.nii": "expected voxel sizes above 0 mm",
        "flat_affine.nii": "expected an invertible affine",
        "finer_than_target.nrrd": "target spacing must be at most the scan's 0.5 mm on axis 0",
    }


def one_line(run):
    """The one line that a failed command gives."""
    assert run.code == 1, (run.stdout, run.stderr)
    assert "Traceback" not in run.stderr + run.stdout
    assert len(run.errors) == 1, (run.stdout, run.stderr)
    return run.errors[0]


def whole(folder):
    """Names in a folder; each file under a final name must read to its end."""
    from matplotlib.image import imread

    for path in folder.glob("[!.]*"):
        if path.name.endswith(".nii.gz"):
            with gzip.open(path) as file:  # its checksum too
                size = len(file.read())
            image = nib.load(path)
            assert size == 352 + image.get_data_dtype().itemsize * np.prod(image.shape)
        elif path.suffix == ".png":
            assert imread(path).ndim == 3
        else:
            assert path.name == "summary.csv"
            assert path.read_bytes().endswith(b"\n")
    return sorted(p.name for p in folder.iterdir())


class TestBadScans:
    def test_good_ones_are_done_beside_every_bad_one(
        self, tmp_path, noise, write_nifti, oblique, command, read_summary
    ):
        scan, affine = noise(), oblique()
        write_nifti("in/a_good.nii.gz", voxels=scan)
        expected = write_bad_scans(tmp_path / "in", scan, affine)
        write_nifti("in/z_good.nii.gz", voxels=scan)
        before = checksums(tmp_path / "in")
        run = command(tmp_path / "in", tmp_path / "out", target_spacing="[0.9,1,1]")
        assert run.code == 1
        assert checksums(tmp_path / "in") == before
        names = ["summary.csv", *(f"{n}_good_sr.{k}" for n in "az" for k in ("nii.gz", "png"))]
        assert whole(tmp_path / "out") == sorted(names)
        rows = {os.path.basename(row["file"]): row for row in read_summary(tmp_path / "out")}
        assert {name for name, row in rows.items() if row["status"] == "ok"} == {"a_good.nii.gz", "z_good.nii.gz"}
        assert {name for name, row in rows.items() if row["status"] == "failed"} == set(expected)
        for name, part in expected.items():
            assert part in rows[name]["error"], rows[name]["error"]
            assert not rows[name]["output"]
            path = str(tmp_path / "in" / name)
            lines = [line for line in run.stdout.splitlines() if path in line]
            assert len(lines) == 1, lines
            assert lines[0].count(path) == 1
            assert part in lines[0]
        assert len(run.errors) == len(expected)
        assert f"2 of {len(rows)} scans done, {len(expected)} failed" in run.lines[-1]
        assert "Traceback" not in run.stdout + run.stderr

    def test_missing(self, tmp_path, command, read_summary):
        run = command(tmp_path / "nothing.nii.gz", tmp_path / "out")
        assert f"{tmp_path / 'nothing.nii.gz'}: expected a scan, got: no such file or folder" in one_line(run)
        assert [row["status"] for row in read_summary(tmp_path / "out")] == ["failed"]

    def test_empty_folder(self, tmp_path, command):
        (tmp_path / "in").mkdir()
        assert f"{tmp_path / 'in'}: no scan found in it" in one_line(command(tmp_path / "in", tmp_path / "out"))

    def test_result_never_replaces_an_input(self, tmp_path, noise, write_nifti, command):
        write_nifti("in/a.nii.gz", voxels=noise())
        write_nifti("in/a_sr.nii.gz", voxels=noise())
        before = checksums(tmp_path / "in")
        run = command(tmp_path / "in", tmp_path / "in")
        assert "expected an output apart from the inputs" in one_line(run)
        after = checksums(tmp_path / "in")
        assert {path: after[path] for path in before} == before


class TestBadCommand:
    @pytest.fixture
    def scan(self, noise, write_nifti):
        return write_nifti(voxels=noise())

    def test_missing_weights(self, tmp_path, scan, command):
        line = one_line(command(scan, tmp_path / "out", checkpoint=tmp_path / "none.pt"))
        assert f"{tmp_path / 'none.pt'}: expected the weights of the network, got no such file" in line

    @pytest.mark.parametrize("content", [b"not weights", {"fc.weight": torch.zeros(2, 2)}], ids=["text", "foreign"])
    def test_foreign_weights(self, tmp_path, scan, command, content):
        path = tmp_path / "other.pt"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        line = one_line(command(scan, tmp_path / "out", checkpoint=path))
        assert f"{path}: expected" in line
        assert not list(tmp_path.glob("out/*_sr.*"))

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            ({"memory_gib": 0}, "memory_gib must be > 0, got 0"),
            ({"memory_gib": "plenty"}, "memory_gib must be > 0, got 'plenty'"),
            ({"memory_gib": 1e-9}, "memory_gib must be >= "),
            ({"target_spacing": "fine"}, "target_spacing must be"),
            ({"target_spacing": "[1,2]"}, "target_spacing must be one number or 3 numbers, got 2"),
            ({"target_spacing": "[1,'b',1]"}, "target_spacing must be"),
            ({"target_spacing": "[-1,1,1]"}, "target_spacing must be finite and not negative, got -1"),
            ({"scale_factor": "[1,0.5,1]"}, "scale_factor must be >= 1, got 0.5"),
            ({"scale_factor": "double"}, "scale_factor must be"),
            ({"scale_factor": 2, "target_spacing": 1}, "expected target_spacing or scale_factor, got both"),
            ({"output_dtype": "float99"}, "dtype must be one of"),
            ({"num_workers": -1}, "num_workers must be a whole number >= 0, got -1"),
            ({"part": "[2,2]"}, "part must be [k, n] with 0 <= k < n, got [2, 2]"),
            ({"part": "half"}, "part must be [k, n] with 0 <= k < n, got 'half'"),
        ],
        ids=lambda v: ",".join(f"{k}={x}" for k, x in v.items()) if isinstance(v, dict) else "",
    )
    def test_bad_option(self, tmp_path, scan, command, options, part):
        assert part in one_line(command(scan, tmp_path / "out", **options))
        assert not list(tmp_path.glob("out/*_sr.*"))


class TestDisk:
    @pytest.fixture
    def scans(self, tmp_path, noise, write_nifti):
        for name in "abcd":
            write_nifti(f"in/{name}.nii.gz", voxels=noise((30, 28, 20)))
        return tmp_path / "in"

    def test_file_in_the_place_of_the_folder(self, tmp_path, scans, command):
        (tmp_path / "out").write_text("mine")
        line = one_line(command(scans, tmp_path / "out"))
        assert f"{tmp_path / 'out' / 'summary.csv'}: expected to write the file" in line
        assert (tmp_path / "out").read_text() == "mine"

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_folder_without_permission(self, tmp_path, scans, command):
        (tmp_path / "out").mkdir(mode=0o500)
        assert "Permission denied" in one_line(command(scans, tmp_path / "out"))

    def test_full(self, tmp_path, scans, command, write_nifti, noise, read_summary):
        write_nifti("in/small.nii.gz", voxels=noise((4, 4, 4)))
        run = command(scans, tmp_path / "out", file_size=100_000)
        assert run.code == 1
        assert len(run.errors) == 4
        for name, line in zip("abcd", run.errors, strict=True):
            assert f"{scans / name}.nii.gz: " in line
            assert f"{tmp_path / 'out' / name}_sr.nii.gz: expected to write the file, got: File too large" in line
        assert "Traceback" not in run.stdout + run.stderr
        assert [row["status"] for row in read_summary(tmp_path / "out")] == ["failed"] * 4 + ["ok"]
        names = whole(tmp_path / "out")
        assert "small_sr.nii.gz" in names
        assert not [name for name in names if name.startswith((".", "a", "b", "c", "d"))]

    @pytest.mark.slow
    def test_kill_leaves_whole_files_and_the_next_run_finishes(self, tmp_path, scans, start, command, read_summary):
        out, draw, killed, partial = tmp_path / "out", random.Random(0), 0, 0
        for attempt in range(6):
            (out / "summary.csv").unlink(missing_ok=True)
            process = start(scans, out)
            while not (out / "summary.csv").exists():
                time.sleep(0.001)
            until = time.monotonic() + draw.uniform(0, 1)
            while time.monotonic() < until and not (attempt % 2 and list(out.glob(".partial-*.nii.gz"))):
                time.sleep(0.0005)  # each second time killed while it writes a volume
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            names = whole(out)
            partial += any(name.startswith(".partial-") for name in names)
            assert all(row["status"] == "ok" for row in read_summary(out))
        assert killed >= 3
        assert partial >= 1  # else this test has seen nothing of it
        assert command(scans, out).code == 0
        names = [f"{name}_sr.{kind}" for name in "abcd" for kind in ("nii.gz", "png")]
        assert whole(out) == sorted([*names, "summary.csv"])
        assert len(read_summary(out)) == 4

    @pytest.mark.slow
    def test_kill_at_random_moments_and_nothing_is_done_twice(
        self, tmp_path, noise, write_nifti, start, command, read_summary
    ):
        """The record is kept between the runs here, and each second run loads in a worker."""
        for number in range(8):
            write_nifti(f"in/{number}.nii.gz", voxels=noise((30, 28, 20)) + number)
        out, draw, done, killed = tmp_path / "out", random.Random(1), {}, 0

        def touched():
            return (out / "summary.csv").stat().st_mtime_ns if (out / "summary.csv").exists() else 0

        for attempt in range(8):
            if len(done) == 8:
                break
            before = touched()
            process = start(tmp_path / "in", out, num_workers=attempt % 2)
            while touched() == before:  # a run writes its record first
                time.sleep(0.001)
            wanted = len(done) + min(draw.randrange(3), 7 - len(done))
            while len(read_summary(out)) < wanted:
                time.sleep(0.001)
            time.sleep(draw.uniform(0, 0.4))
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
            whole(out)
            rows = read_summary(out)
            assert {row["status"] for row in rows} <= {"ok"}
            times = {row["file"]: os.stat(row["output"]).st_mtime_ns for row in rows}
            assert times.items() >= done.items()
            done = times
        assert killed >= 2 and len(done) >= 1  # else this test has seen nothing of it
        run = command(tmp_path / "in", out)
        assert run.code == 0
        if len(done) < 8:
            assert f"{len(done)} of 8 scans are done already" in run.stdout
            assert f"{8 - len(done)} of {8 - len(done)} scans done, 0 failed" in run.stdout
        names = [f"{number}_sr.{kind}" for number in range(8) for kind in ("nii.gz", "png")]
        assert whole(out) == sorted([*names, "summary.csv"])
        rows = {row["file"]: row for row in read_summary(out)}
        assert len(rows) == 8 and {row["status"] for row in rows.values()} == {"ok"}
        assert {file: os.stat(rows[file]["output"]).st_mtime_ns for file in done} == done
        assert command(tmp_path / "in", tmp_path / "undisturbed").code == 0
        for number in range(8):
            name = f"{number}_sr.nii.gz"
            assert (out / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_interrupt_leaves_no_part_of_a_result(tmp_path, noise, write_nifti, start):
    process = start(write_nifti(voxels=noise((60, 60, 60))), tmp_path / "out", scale_factor=4)
    while not (tmp_path / "out" / "summary.csv").exists():
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() != 0
    assert not [n for n in whole(tmp_path / "out") if re.match(r"\.partial|.*_sr", n)]
