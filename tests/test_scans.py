from __future__ import annotations

import json

import pytest

from custom_components.batches.summary_file import merge_rows
from custom_components.scans import find_scans, scan_stem


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def dicom(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("t1.nii.gz", "t1"),
        ("a/sub-1.5T_T1w.NII.GZ", "sub-1.5T_T1w"),
        ("t1.nii", "t1"),
        ("t1.mha", "t1"),
        ("t1.nhdr", "t1"),
        ("slice.PNG", "slice"),
        ("a/t1.nii.tiff", "t1.nii"),
        ("1.2.840.113", "1.2.840.113"),
        ("notes.txt", "notes.txt"),
        (".nii", ".nii"),
    ],
)
def test_scan_stem(name, stem):
    assert scan_stem(name) == stem


def test_scan_stem_of_a_folder_is_its_whole_name(tmp_path, monkeypatch):
    (tmp_path / "series.nii").mkdir()
    assert scan_stem(tmp_path / "series.nii") == "series.nii"
    monkeypatch.chdir(tmp_path / "series.nii")
    assert scan_stem(".") == "series.nii"


def test_find_scans_in_a_folder(tmp_path):
    touch(*(tmp_path / n for n in ["b.nii.gz", "a.MHA", "c.nrrd", "d.mhd", "d.raw", "e_sr.nii.gz", "readme.txt"]))
    touch(tmp_path / ".hidden.nii.gz", tmp_path / "._b.nii.gz", tmp_path / "deeper" / "f.nii")
    dicom(tmp_path / "series2" / "IM0001")
    dicom(tmp_path / "series1" / "x.dcm")
    dicom(tmp_path / "index" / "DICOMDIR")
    items = find_scans(tmp_path)
    names = ["a.MHA", "b.nii.gz", "c.nrrd", "d.mhd", "e_sr.nii.gz", "series1", "series2"]
    assert [i["image"] for i in items] == [str(tmp_path / n) for n in names]
    assert [i["stem"] for i in items] == ["a", "b", "c", "d", "e_sr", "series1", "series2"]


def test_pictures_count_where_there_is_no_volume(tmp_path):
    names = ["a.png", "a_sr.png", "b.JPG", "c.tif", "d.jpeg", "e.tiff", "f.bmp", "lone_preview.png"]
    touch(*(tmp_path / n for n in names), tmp_path / "a_sr_preview.png", tmp_path / ".g.png", tmp_path / "h.svg")
    touch(tmp_path / "deeper" / "i.png")
    assert [i["image"] for i in find_scans(tmp_path)] == [str(tmp_path / n) for n in names]
    assert [i["stem"] for i in find_scans(tmp_path)] == [n.rpartition(".")[0] for n in names]
    preview = tmp_path / "a_sr_preview.png"
    assert [i["image"] for i in find_scans([preview, tmp_path / "b.JPG"])] == [str(preview), str(tmp_path / "b.JPG")]
    touch(tmp_path / "a_sr.nii.gz")
    assert [i["image"] for i in find_scans(tmp_path)] == [str(tmp_path / "a_sr.nii.gz")]


def test_pictures_beside_a_series_do_not_count(tmp_path):
    touch(tmp_path / "a.png")
    dicom(tmp_path / "series" / "IM0001")
    assert [i["image"] for i in find_scans(tmp_path)] == [str(tmp_path / "series")]


def test_a_folder_that_is_a_series_is_one_item(tmp_path):
    for k in range(3):
        dicom(tmp_path / f"slice{k}")
    assert find_scans(tmp_path) == [{"image": str(tmp_path), "stem": tmp_path.name}]


def test_a_bad_path_is_an_item(tmp_path):
    for path in (tmp_path, tmp_path / "missing.nii.gz"):
        assert [i["image"] for i in find_scans(path)] == [str(path)]


def test_lists_and_lists_as_text(tmp_path):
    touch(tmp_path / "a.nii", tmp_path / "sub" / "b.nii", tmp_path / "[c].nii")
    given = [str(tmp_path / "a.nii"), str(tmp_path / "sub"), str(tmp_path / "a.nii")]
    wanted = [{"image": given[0], "stem": "a"}, {"image": str(tmp_path / "sub" / "b.nii"), "stem": "b"}]
    assert find_scans(given) == wanted
    assert find_scans(str(given)) == wanted
    assert find_scans(json.dumps(given)) == wanted
    assert find_scans(str(tmp_path / "[c].nii"))[0]["stem"] == "[c]"
    assert find_scans("[broken")[0]["image"] == "[broken"


def test_stems_are_unique(tmp_path):
    names = ["a.mha", "a.nii", "A.nii.gz", "a_2.nii.gz", "x/a.nii"]
    touch(*(tmp_path / n for n in names))
    stems = [i["stem"] for i in find_scans([tmp_path / n for n in names])]
    assert stems == ["a", "a_2", "A_3", "a_2_2", "a_4"]


def test_a_list_as_long_as_a_command_line_takes(tmp_path):
    """A file name has at most 255 bytes, and to ask for a longer one is an error of the system."""
    paths = [str(tmp_path / f"{k}.nii.gz") for k in range(300)]
    assert [i["image"] for i in find_scans(str(paths))] == paths


def test_results_of_a_run_before_are_no_scans(tmp_path):
    names = ["a.nii", "a_sr.nii.gz", "b.nii", "b_sr.nii.gz"]
    touch(*(tmp_path / n for n in names))

    def row(name):
        return {"file": str(tmp_path / f"{name}.nii"), "status": "ok", "output": f"elsewhere/{name}_sr.nii.gz"}

    assert len(find_scans(tmp_path, tmp_path)) == 4
    merge_rows(tmp_path / "summary.csv", [row("a"), row("of_another_call")])
    assert [i["stem"] for i in find_scans(tmp_path, tmp_path)] == ["a", "b", "b_sr"]
    assert [i["stem"] for i in find_scans(tmp_path, tmp_path / "out")] == ["a", "a_sr", "b", "b_sr"]
    assert [i["stem"] for i in find_scans(tmp_path / "a_sr.nii.gz", tmp_path)] == ["a_sr"]  # asked for by its name
