from __future__ import annotations

import io
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

from custom_components.app.uploads import MIB, Limits, safe_name, scan_of, take_upload, unzip
from custom_components.errors import ScanError


@pytest.fixture
def make_zip(tmp_path):
    def make(entries, name="series.zip", compression=zipfile.ZIP_DEFLATED) -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", compression) as archive:
            for entry, content in entries:
                archive.writestr(entry, content)
        return path

    return make


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("scan 1 (T1w).nii.gz", "scan 1 (T1w).nii.gz"),
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\t1.nii", "t1.nii"),
        (".hidden.nii", "hidden.nii"),
        ("@net::a$b%.png", "_net__a_b_.png"),
        ("...", "scan"),
        ("größe.nii", "größe.nii"),
        (200 * "a" + ".nii.gz", 121 * "a" + ".nii.gz"),
    ],
)
def test_a_name_is_one_of_a_plain_file(given, expected):
    assert safe_name(given) == expected


def test_a_file_moves_as_it_is(tmp_path):
    source = tmp_path / "up" / "t1.nii.gz"
    source.parent.mkdir()
    source.write_bytes(b"any bytes")
    taken = take_upload(source, tmp_path / "input", Limits())
    assert taken == tmp_path / "input" / "t1.nii.gz"
    assert taken.read_bytes() == b"any bytes"
    assert stat.S_IMODE(taken.stat().st_mode) == 0o600
    assert not source.exists()


def test_a_file_over_the_limit_is_removed(tmp_path):
    source = tmp_path / "t1.nii"
    with source.open("wb") as file:
        file.truncate(2 * MIB + 1)
    with pytest.raises(ScanError, match=r"^t1\.nii: expected at most 2 MiB, got 2 MiB$"):
        take_upload(source, tmp_path / "input", Limits(upload_mib=2))
    assert not source.exists()
    with source.open("wb") as file:
        file.truncate(2 * MIB)
    assert take_upload(source, tmp_path / "input", Limits(upload_mib=2)).stat().st_size == 2 * MIB


def test_a_zip_of_a_series_gives_its_folder(tmp_path, write_dicom, make_zip):
    series = write_dicom()
    entries = [(f"patient/study/T1/{p.name}", p.read_bytes()) for p in series.iterdir()]
    rest = [("__MACOSX/patient/._x", b"x"), ("patient/DICOMDIR", b"x"), ("patient/.DS_Store", b"x"), ("empty/", b"")]
    taken = take_upload(make_zip(entries + rest), tmp_path / "input", Limits())
    assert taken == tmp_path / "input" / "series" / "patient" / "study" / "T1"
    assert {p.name: p.read_bytes() for p in taken.iterdir()} == {p.name: p.read_bytes() for p in series.iterdir()}
    left = sorted(str(p.relative_to(tmp_path / "input")) for p in (tmp_path / "input").rglob("*") if p.is_file())
    assert left == sorted([f"series/patient/study/T1/{p.name}" for p in series.iterdir()] + ["series/patient/DICOMDIR"])


def test_a_zip_holds_one_scan(tmp_path, make_zip):
    volumes = make_zip([("a/t1.nii.gz", b"x"), ("b/t2.nii", b"x"), ("b/preview.png", b"x")])
    with pytest.raises(ScanError, match=r"series\.zip: expected one scan or DICOM series in the zip, got 2: a/t1"):
        take_upload(volumes, tmp_path / "input", Limits())
    one = make_zip([("a/t1.nii.gz", b"x"), ("a/t1.png", b"x"), ("b/t1_sr.png", b"x")])
    assert take_upload(one, tmp_path / "one", Limits()).name == "t1.nii.gz"
    assert take_upload(make_zip([("b/t1.png", b"x")]), tmp_path / "picture", Limits()).name == "t1.png"


def test_a_zip_without_a_scan_is_left_to_the_command(tmp_path, make_zip):
    assert take_upload(make_zip([("a/notes.txt", b"x")]), tmp_path / "input", Limits()) == tmp_path / "input" / "series"
    assert scan_of(tmp_path / "input" / "series", "series.zip") == tmp_path / "input" / "series"


@pytest.mark.parametrize("name", ["../out.nii", "a/../../out.nii", "/out.nii", "..\\out.nii", "C:\\out.nii"])
def test_no_entry_leads_out_of_the_folder(tmp_path, make_zip, name):
    before = make_zip([("good.nii", b"x"), (name, b"x")])
    with pytest.raises(ScanError, match=r"series\.zip: expected files below the zip's own folder, got '"):
        unzip(before, tmp_path / "deep" / "folder", Limits())
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "series.zip"] or not any(tmp_path.rglob("*.nii"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path, make_zip, kind):
    entry = zipfile.ZipInfo("link.nii")
    entry.external_attr = (kind | 0o777) << 16
    with pytest.raises(ScanError, match=r"expected plain files in the zip, got the link or device 'link\.nii'"):
        unzip(make_zip([(entry, b"/etc/passwd")]), tmp_path / "folder", Limits())
    assert not (tmp_path / "folder").exists()


def test_a_bomb_stops_at_the_limit(tmp_path, make_zip):
    bomb = make_zip([("a.nii", bytes(2 * MIB)), ("b.nii", bytes(2 * MIB))])
    assert bomb.stat().st_size < MIB / 16
    with pytest.raises(ScanError, match=r"series\.zip: expected at most 3 MiB in the zip, got more"):
        unzip(bomb, tmp_path / "folder", Limits(unzipped_mib=3))
    assert not (tmp_path / "folder").exists()
    unzip(bomb, tmp_path / "folder", Limits(unzipped_mib=4))
    assert (tmp_path / "folder" / "b.nii").stat().st_size == 2 * MIB


def test_a_size_that_the_zip_lies_about_does_not_count(tmp_path, make_zip):
    bomb = make_zip([("a.nii", bytes(4 * MIB))])
    content = bytearray(bomb.read_bytes())
    for signature, place in (
        (b"PK\x03\x04", 22),
        (b"PK\x01\x02", 24),
    ):  # uncompressed size: PKWARE's appnote, 4.3.7 and 4.3.12
        start = content.index(signature) + place
        content[start : start + 4] = (100).to_bytes(4, "little")
    bomb.write_bytes(content)
    with pytest.raises(ScanError, match=r"series\.zip: expected"):
        unzip(bomb, tmp_path / "folder", Limits(unzipped_mib=1))
    assert not (tmp_path / "folder").exists()


def test_the_number_of_files_is_bounded(tmp_path, make_zip):
    many = make_zip([(f"{i}.dcm", b"") for i in range(5)])
    unzip(many, tmp_path / "folder", Limits(files=5))
    with pytest.raises(ScanError, match=r"expected at most 4 files in the zip, got 5"):
        unzip(many, tmp_path / "other", Limits(files=4))


def _broken(kind: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", np.random.default_rng(0).bytes(1000))
    content = bytearray(file.getvalue())
    if kind == "password":
        content[6] |= 1  # flags of the local and of the central header
        content[content.index(b"PK\x01\x02") + 8] |= 1
    elif kind == "damage":
        content[200:300] = bytes(100)
    return {"text": b"no zip", "empty": b"", "cut": bytes(content[:-30])}.get(kind, bytes(content))


@pytest.mark.parametrize("kind", ["text", "empty", "cut", "password", "damage"])
def test_what_is_no_whole_zip_gets_one_line(tmp_path, kind):
    path = tmp_path / "scan.zip"
    path.write_bytes(_broken(kind))
    with pytest.raises(ScanError, match=r"^scan\.zip: expected a whole zip without a password, got: .+$") as caught:
        take_upload(path, tmp_path / "input", Limits())
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "input") == []


@pytest.mark.parametrize("name", ["upload_mib", "unzipped_mib", "files"])
def test_limits_are_at_least_one(name):
    with pytest.raises(ValueError, match=rf"{name} must be >= 1, got 0"):
        Limits(**{name: 0})
