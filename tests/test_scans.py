from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from custom_components.scans import ScanError, atomic_write, find_scans, scan_stem, training_scans


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


@pytest.fixture
def dataset(tmp_path):
    """Two splits; subject s1 has two contrasts, f1 is fetal, and one entry is a plain path."""

    def entry(image, **fields):
        touch(tmp_path / image)
        return {"image": image, **fields}

    touch(tmp_path / "plain_T1w.nii.gz")
    content = {
        "name": "some",
        "training": [
            entry("s1_T1w.nii.gz", subject="one", modality="T1w", reference={"T2w": "s1_T2w.nii.gz"}),
            entry("s1_T2w.nii.gz", subject="one", modality="T2w"),
            entry("f/f1.nii.gz", subject="f1", modality="T2w", population="fetal"),
            "plain_T1w.nii.gz",
        ],
        "validation": [entry("v1.nii.gz")],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return tmp_path


def test_sections_of_a_dataset(dataset):
    scans = training_scans(dataset, "training")
    assert scans[0] == {
        "image": str(dataset / "s1_T1w.nii.gz"),
        "stem": "s1_T1w",
        "subject": "one",
        "modality": "T1w",
        "population": "adult",
    }
    assert [s["subject"] for s in scans] == ["one", "one", "f1", "plain"]
    assert {tuple(s) for s in scans} == {tuple(scans[0])}, "items that are collated must have the same keys"
    assert [s["stem"] for s in training_scans(dataset, "validation")] == ["v1"]
    assert len(training_scans(dataset, "all")) == 5


def test_where_filters(dataset):
    def stems(where):
        return [s["stem"] for s in training_scans(dataset, "training", where=where)]

    assert stems({"population": "adult"}) == ["s1_T1w", "s1_T2w", "plain_T1w"]
    assert stems({"population": "fetal"}) == ["f1"]
    assert stems({"modality": ["T2w", "FLAIR"]}) == ["s1_T2w", "f1"]
    assert stems({"modality": "T2w", "population": "adult"}) == ["s1_T2w"]
    with pytest.raises(ValueError, match=r"expected scans in split 'training' where .*PD.*, got none"):
        stems({"modality": "PD"})


def test_max_subjects_keeps_whole_subjects_and_grows(dataset):
    kept = [{s["subject"] for s in training_scans(dataset, "training", seed=3, max_subjects=n)} for n in (1, 2, 3)]
    assert [len(k) for k in kept] == [1, 2, 3]
    assert kept[0] < kept[1] < kept[2]
    for subjects, n in zip(kept, (1, 2, 3), strict=True):
        scans = training_scans(dataset, "training", seed=3, max_subjects=n)
        assert len(scans) == len(subjects) + ("one" in subjects)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match=f"max_subjects must be from 1 to 3 in split 'training', got {wrong}"):
            training_scans(dataset, "training", max_subjects=wrong)


def subjects_of(scans):
    return {s["subject"] for s in scans}


def test_plain_folder_is_split_by_subject(tmp_path):
    for k in range(10):
        touch(tmp_path / f"sub-{k:02d}_T1w.nii.gz", tmp_path / f"sub-{k:02d}_T2w.nii.gz")
    touch(tmp_path / "single.mha")
    training, validation = (training_scans(tmp_path, s, seed=1) for s in ("training", "validation"))
    assert len(subjects_of(training)) == 9
    assert len(subjects_of(validation)) == 2
    assert not subjects_of(training) & subjects_of(validation)
    assert sorted(s["image"] for s in training + validation) == [s["image"] for s in training_scans(tmp_path, "all")]
    assert training_scans(tmp_path, "validation", seed=1) == validation
    assert any(subjects_of(training_scans(tmp_path, "validation", seed=k)) != subjects_of(validation) for k in range(9))
    assert len(subjects_of(training_scans(tmp_path, "validation", val_fraction=0.01))) == 1
    assert len(subjects_of(training_scans(tmp_path, "training", val_fraction=0.99))) == 1


def test_training_section_without_validation_is_split(tmp_path):
    names = [f"{k}_T1w.nii.gz" for k in range(5)]
    touch(*(tmp_path / n for n in names))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": names, "test": names[:1]}))
    training, validation = (training_scans(tmp_path, s) for s in ("training", "validation"))
    assert (len(training), len(validation)) == (4, 1)
    assert not subjects_of(training) & subjects_of(validation)
    assert len(training_scans(tmp_path, "test")) == 1


def test_bad_datasets(tmp_path):
    def fails(match, split="training", **kwargs):
        with pytest.raises(ValueError, match=match):
            training_scans(tmp_path, split, **kwargs)

    fails("expected scans of at least 2 subjects to split, got 0")
    touch(tmp_path / "a_1.nii", tmp_path / "a_2.nii")
    fails("expected scans of at least 2 subjects to split, got 1")
    fails("expected a section 'test' in dataset.json, got no dataset.json", split="test")
    fails("split must be 'training', .*, got 'train'", split="train")
    fails("val_fraction must be between 0 and 1, got 1", val_fraction=1)
    index = tmp_path / "dataset.json"
    for content, match in [
        ("{", "expected a JSON dataset list, got"),
        ("[]", "expected a section 'training', 'validation' or 'test', got none"),
        ('{"validation": ["a_1.nii"]}', "expected a section 'training' in dataset.json, got only validation"),
        ('{"training": {}, "validation": []}', "expected a list under 'training', got dict"),
        ('{"training": [{"label": "x"}], "validation": []}', "expected a path under 'image' in 'training'"),
        ('{"training": ["gone.nii"], "validation": []}', "no such file in 'training': .*gone.nii"),
        ('{"training": [], "validation": []}', "expected scans in split 'training', got none"),
    ]:
        index.write_text(content)
        fails(match)
    with pytest.raises(ValueError, match="no such folder"):
        training_scans(tmp_path / "gone", "training")


def test_atomic_write_keeps_the_suffix_and_hides_until_done(tmp_path):
    path = tmp_path / "new" / "table.v2.csv"
    with atomic_write(path) as partial:
        assert partial.parent == path.parent
        assert partial.name.startswith(".")
        assert partial.suffix == ".csv"
        partial.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    assert os.listdir(path.parent) == [path.name]
    with atomic_write(tmp_path / "x.nii.gz") as one, atomic_write(tmp_path / "y.nii.gz") as two:
        assert one != two
        assert one.name.endswith(".nii.gz")
        touch(one, two)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("bug"), KeyboardInterrupt()])
def test_atomic_write_after_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    expected = ScanError if isinstance(error, OSError) else type(error)

    def fail():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(expected) as info:
        fail()
    if expected is ScanError:
        assert str(info.value) == f"{path}: expected to write the file, got: No space left on device"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_atomic_write_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ScanError, match=r"file/x\.csv: expected to write the file"),
        atomic_write(tmp_path / "file" / "x.csv"),
    ):
        pass


def test_leftovers_of_dead_processes_are_removed_and_only_those(tmp_path):
    code = (
        "import os, sys; from custom_components.scans import atomic_write\n"
        "with atomic_write(sys.argv[1]) as p: p.write_text('half'); os._exit(9)"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["custom_components"].__file__)))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.csv")], cwd=root, check=False)
    left = os.listdir(tmp_path)
    assert len(left) == 1
    dead = left[0].split("-")[-2]
    assert left[0].startswith(".partial-")
    host = socket.gethostname()
    others = [
        f".partial-{host}-{os.getppid()}-0.csv",
        f".partial-{host}-1-{dead}-0.csv",
        f".partial-elsewhere-{dead}-0.csv",
    ]
    touch(*(tmp_path / n for n in others))
    with atomic_write(tmp_path / "b.csv") as partial:
        partial.write_text("b")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "b.csv"])
