from __future__ import annotations

import json

import pytest

from custom_components.splits import training_scans


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


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
