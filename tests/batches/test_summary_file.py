from __future__ import annotations

import csv
import multiprocessing

import pytest

from custom_components.batches.summary_file import COLUMNS, merge_rows, read_rows
from custom_components.errors import ScanError


def row(name, **fields):
    return {"file": f"in/{name}.nii", "status": "ok", "output": f"out/{name}_sr.nii.gz", **fields}


def files(path):
    return [r["file"] for r in read_rows(path)]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "summary.csv"
    merge_rows(path, [])
    assert path.read_bytes().decode() == ",".join(COLUMNS) + "\r\n"
    merge_rows(path, [row("é", warnings='a, "b"\nc')])
    assert read_rows(path) == [{**dict.fromkeys(COLUMNS, ""), **row("é", warnings='a, "b"\nc')}]


def test_a_line_takes_the_place_of_that_of_its_file(tmp_path):
    path = tmp_path / "summary.csv"
    merge_rows(path, [row("a"), row("b"), row("c")])
    merge_rows(path, [row("b", status="failed", output=""), row("d")])
    assert [(r["file"], r["status"]) for r in read_rows(path)] == [
        *(("in/a.nii", "ok"), ("in/b.nii", "failed"), ("in/c.nii", "ok"), ("in/d.nii", "ok"))
    ]


def test_a_line_goes_when_its_output_is_another_scan_s(tmp_path):
    path = tmp_path / "summary.csv"
    merge_rows(path, [row("a"), row("b"), row("x", output="", status="failed")])
    merge_rows(path, [{**row("a"), "file": "elsewhere/a.nii"}, row("y", output="", status="failed")])
    assert files(path) == ["in/b.nii", "in/x.nii", "elsewhere/a.nii", "in/y.nii"]


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"a;b\n1;2\n", b'file,status\n"', b"file,status\n\x00,\x00\n"]
)
def test_another_file_of_its_name_has_no_lines(tmp_path, content):
    (tmp_path / "summary.csv").write_bytes(content)
    assert [r for r in read_rows(tmp_path / "summary.csv") if r["status"] == "ok"] == []
    merge_rows(tmp_path / "summary.csv", [row("a")])
    assert files(tmp_path / "summary.csv")[-1] == "in/a.nii"


def test_other_columns(tmp_path):
    """Of a version before or after this one."""
    (tmp_path / "summary.csv").write_text("status,file,colour\nok,in/a.nii,red\nfailed\nok,in/b.nii,blue,more\n")
    merge_rows(tmp_path / "summary.csv", [row("c")])
    with (tmp_path / "summary.csv").open(newline="") as file:
        assert [tuple(r) == COLUMNS and r["file"] for r in csv.DictReader(file)] == ["in/a.nii", "in/b.nii", "in/c.nii"]
    assert read_rows(tmp_path / "none.csv") == read_rows(tmp_path) == []


def test_what_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanError, match=r"summary\.csv: expected to write the file, got"):
        merge_rows(tmp_path / "file" / "summary.csv", [])


def add(path, name):
    for number in range(40):
        merge_rows(path, [row(f"{name}{number}")])


def test_processes_at_the_same_time_lose_no_line(tmp_path):
    path, fork = tmp_path / "summary.csv", multiprocessing.get_context("fork")
    processes = [fork.Process(target=add, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(files(path)) == sorted(f"in/{name}{number}.nii" for name in "abc" for number in range(40))
    assert [p.name for p in tmp_path.iterdir()] == ["summary.csv"]
