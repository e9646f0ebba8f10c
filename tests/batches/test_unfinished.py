from __future__ import annotations

import json
import logging
import os

import pytest

from custom_components.batches import part_of, result_fingerprint, unfinished, unfinished_scans
from custom_components.batches.fingerprint import result_state
from custom_components.batches.summary_file import merge_rows
from custom_components.scans import find_scans


class TestPart:
    def test_the_parts_are_all_scans_each_once(self):
        for count in (0, 1, 3, 7, 12):
            for n in (1, 2, 5):
                parts = [part_of(range(count), (k, n)) for k in range(n)]
                assert sorted(v for part in parts for v in part) == list(range(count))
                assert max(map(len, parts)) - min(map(len, parts)) <= 1

    @pytest.mark.parametrize("part", [(1, 1), (-1, 2), (0, 0), "ab", "half", None, 1, (0, 1, 2), ("a", 1)])
    def test_errors(self, part):
        with pytest.raises(ValueError, match=r"part must be \[k, n\] with 0 <= k < n, got"):
            part_of([1, 2], part)


@pytest.fixture
def folder(tmp_path):
    """Three scans, a bundle with a version, weights."""
    for name in "abc":
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.nii").write_text(name)
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "metadata.json").write_text(json.dumps({"version": "1.0.0"}))
    (tmp_path / "model.pt").write_text("weights")
    return tmp_path


@pytest.fixture
def left(folder):
    """Items that are left, with the settings of the first call unless others are given."""

    def left(**options):
        given = {"output_dir": folder / "out", "made_by": ["settings", 1], "checkpoint": folder / "model.pt"}
        return unfinished_scans(find_scans(folder / "in"), **{**given, "bundle_root": folder / "bundle", **options})

    return left


def finish(items, out, status="ok"):
    """Write results and lines as the handlers do."""
    out.mkdir(exist_ok=True)
    rows = []
    for item in items:
        path = out / f"{item['stem']}_sr.nii.gz"
        path.write_text(f"result of {item['stem']}")
        print_ = result_fingerprint(item, result_state(path))
        rows.append({"file": item["image"], "status": status, "output": str(path), "fingerprint": print_})
    merge_rows(out / "summary.csv", rows)


def finish_with_maps(items, out):
    """The same with a map beside each result."""
    out.mkdir(exist_ok=True)
    rows = []
    for item in items:
        paths = [out / f"{item['stem']}_sr{end}.nii.gz" for end in ("", "_uncertainty")]
        for path in paths:
            path.write_text(f"{path.name}")
        print_ = result_fingerprint(item, *(result_state(path) for path in paths))
        row = {"file": item["image"], "status": "ok", "output": str(paths[0]), "uncertainty": str(paths[1])}
        rows.append({**row, "fingerprint": print_})
    merge_rows(out / "summary.csv", rows)


def stems(items):
    return [item["stem"] for item in items]


def test_what_is_done_is_not_left(folder, left, caplog):
    caplog.set_level(logging.INFO)
    items = left()
    assert stems(items) == ["a", "b", "c"]
    assert [{k: item[k] for k in ("image", "stem")} for item in items] == find_scans(folder / "in")
    finish(items[:2], folder / "out")
    assert not caplog.records
    assert stems(left()) == ["c"]
    assert caplog.messages == ["2 of 3 scans are done already (--overwrite True does them again)"]
    assert stems(left(overwrite=True)) == ["a", "b", "c"]
    finish(left(), folder / "out", "failed")
    assert stems(left()) == ["c"]


def change(path):
    path.write_text(path.read_text()[::-1] + "!")


@pytest.mark.parametrize(
    ("what", "again"),
    [
        (lambda f: change(f / "in" / "a.nii"), "a"),
        (lambda f: os.utime(f / "in" / "a.nii", ns=(0, 0)), "a"),
        (lambda f: (f / "out" / "b_sr.nii.gz").unlink(), "b"),
        (lambda f: change(f / "out" / "b_sr.nii.gz"), "b"),
        (lambda f: os.utime(f / "out" / "b_sr.nii.gz", ns=(0, 0)), ""),
        (lambda f: change(f / "model.pt"), "abc"),
        (lambda f: (f / "bundle/configs/metadata.json").write_text('{"version": "1.0.1"}'), "abc"),
        (lambda f: (f / "bundle/configs/metadata.json").write_text('{"version": "1.0.0", "x": 1}'), ""),
        (lambda f: (f / "out" / "summary.csv").unlink(), "abc"),
    ],
    ids=["scan", "time of scan", "no result", "result", "time of result", "weights", "version", "metadata", "record"],
)
def test_what_has_changed_is_done_again(folder, left, what, again):
    finish(left(), folder / "out")
    assert left() == []
    what(folder)
    assert "".join(stems(left())) == again


@pytest.mark.parametrize(
    ("what", "again"),
    [
        (lambda out: None, ""),
        (lambda out: (out / "b_sr_uncertainty.nii.gz").unlink(), "b"),
        (lambda out: change(out / "b_sr_uncertainty.nii.gz"), "b"),
        (lambda out: change(out / "b_sr.nii.gz"), "b"),
        (lambda out: (out / "b_sr.nii.gz").unlink(), "b"),
    ],
    ids=["nothing", "no map", "map", "result", "no result"],
)
def test_a_map_that_is_gone_or_changed_is_made_again(folder, left, what, again):
    finish_with_maps(left(), folder / "out")
    what(folder / "out")
    assert "".join(stems(left())) == again


def test_maps_are_no_scans(folder, left):
    """Also that of a run before, beside a result that was made again without one."""
    items = left(output_dir=folder / "in")
    finish_with_maps(items, folder / "in")
    finish(items[:1], folder / "in")
    assert find_scans(folder / "in", folder / "in") == find_scans([i["image"] for i in items])


def test_a_new_scan_that_takes_the_name_of_a_result(folder, left):
    """`a.mha` comes before `a.nii`, so that its result is `a_sr` from now on: that of `a.nii` is to be made as `a_2_sr`."""
    finish(left(), folder / "out")
    (folder / "in" / "a.mha").write_text("new")
    assert [(os.path.basename(item["image"]), item["stem"]) for item in left()] == [("a.mha", "a"), ("a.nii", "a_2")]


def test_other_settings_and_versions(folder, left, monkeypatch):
    finish(left(), folder / "out")
    assert stems(left(made_by=["settings", 2])) == ["a", "b", "c"]
    monkeypatch.setattr(unfinished, "__version__", "99")
    assert stems(left()) == ["a", "b", "c"]


def test_a_folder_or_weights_that_were_moved(folder, left):
    finish(left(), folder / "out")
    (folder / "out").rename(folder / "moved")
    (folder / "model.pt").rename(folder / "other.pt")
    assert left(output_dir=folder / "moved", checkpoint=folder / "other.pt") == []
    assert len(left(output_dir=folder / "moved")) == 3  # no weights at all are others


def test_a_record_without_fingerprints_proves_nothing(folder, left):
    """That of a version before, or of a run by other means, also where the result is gone."""
    items = left()
    finish(items, folder / "out")
    merge_rows(
        folder / "out" / "summary.csv",
        [
            {"file": i["image"], "status": "ok", "output": o}
            for i, o in zip(items, ("", "gone.nii.gz", "c_sr.nii.gz"), strict=True)
        ],
    )
    assert stems(left()) == ["a", "b", "c"]


def test_parts_do_not_depend_on_what_is_done(folder, left):
    finish(left()[:1], folder / "out")
    assert [stems(left(part=(k, 2))) for k in range(2)] == [["c"], ["b"]]


def test_no_metadata_and_odd_ones(folder, left):
    for text in ("no JSON", "[1]"):
        (folder / "bundle" / "configs" / "metadata.json").write_text(text)
        assert len(left()) == 3
    assert len(left(bundle_root=folder / "none")) == 3
