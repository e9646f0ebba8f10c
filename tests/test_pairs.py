from __future__ import annotations

import json

import pytest

from custom_components.errors import ScanError
from custom_components.pairs import paired_scans
from custom_components.splits import training_scans


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.fixture
def folders(tmp_path):
    """Ten subjects, two with a second scan; suffixes differ between the folders."""
    low, high = tmp_path / "3T", tmp_path / "7T"
    for k in range(10):
        touch(low / f"sub-{k}_T1w.nii.gz", high / f"sub-{k}_T1w.mha")
    for k in (2, 5):
        touch(low / f"sub-{k}_T2w.nii", high / f"sub-{k}_T2w.nii.gz")
    return low, high


def test_partners_by_name_in_the_split_of_the_sources(folders):
    low, high = folders
    for split in ("training", "validation", "all"):
        pairs = paired_scans(low, high, split, seed=1, val_fraction=0.3)
        assert [{k: v for k, v in p.items() if k != "target"} for p in pairs] == training_scans(low, split, 1, 0.3)
        for pair in pairs:
            suffix = ".mha" if "T1w" in pair["stem"] else ".nii.gz"
            assert pair["target"] == str(high / (pair["stem"] + suffix))
    subjects = [{p["subject"] for p in paired_scans(low, high, s, seed=1)} for s in ("training", "validation")]
    assert not subjects[0] & subjects[1]
    assert len(subjects[0] | subjects[1]) == 10


def test_max_subjects_and_where(folders):
    assert len({p["subject"] for p in paired_scans(*folders, "training", max_subjects=3)}) == 3
    with pytest.raises(ScanError, match=r"expected scans in split 'all' where .*fetal.*, got none"):
        paired_scans(*folders, "all", where={"population": "fetal"})


def test_a_scan_without_a_partner_is_named_in_both_directions(folders):
    low, high = folders
    touch(high / "extra.nii.gz")
    with pytest.raises(ScanError, match=r"7T/extra\.nii\.gz: expected a partner named extra in .*3T, got none"):
        paired_scans(low, high, "training")
    (high / "extra.nii.gz").unlink()
    (high / "sub-4_T1w.mha").unlink()
    with pytest.raises(ScanError, match=r"3T/sub-4_T1w\.nii\.gz: expected a partner named sub-4_T1w in .*7T, got none"):
        paired_scans(low, high, "training")


@pytest.mark.parametrize("side", [0, 1])
def test_two_scans_of_one_name(folders, side):
    touch(folders[side] / "sub-4_T1w.nrrd")
    with pytest.raises(
        ScanError, match=r"sub-4_T1w\.\w+: expected one scan of each name .*, got sub-4_T1w\.[\w.]+ too"
    ):
        paired_scans(*folders, "training")


def test_folders_that_are_none_or_one(folders, tmp_path):
    low, high = folders
    with pytest.raises(ScanError, match=r"dataset_dir must be a folder of scans, got .*gone"):
        paired_scans(tmp_path / "gone", high, "training")
    with pytest.raises(ScanError, match=r"target_dir must be a folder of scans, got .*gone: no such folder"):
        paired_scans(low, tmp_path / "gone", "training")
    with pytest.raises(ScanError, match=r"expected two folders, or a dataset.json .*, got one folder"):
        paired_scans(low, tmp_path / "7T" / ".." / "3T", "training")
    with pytest.raises(ValueError, match=r"split must be .*, got 'train'"):
        paired_scans(low, high, "train")


class TestList:
    @pytest.fixture
    def root(self, tmp_path):
        touch(*(tmp_path / f"low/{n}.nii" for n in "abcd"), *(tmp_path / f"high/{n}_7T.nii" for n in "abc"))
        touch(tmp_path / "low/unlisted.nii")
        return tmp_path

    def write(self, root, **sections):
        (root / "dataset.json").write_text(json.dumps(sections))

    def test_targets_and_sections_are_the_lists(self, root):
        training = [
            {"image": "low/a.nii", "target": "high/a_7T.nii", "label": "low/b.nii", "subject": "one"},
            {"image": "low/b.nii", "label": "high/b_7T.nii"},
        ]
        self.write(root, training=training, test=[{"image": "low/c.nii", "target": "high/c_7T.nii"}], validation=[])
        pairs = paired_scans(root, root, "training")
        assert [p["target"] for p in pairs] == [str(root / "high" / f"{n}_7T.nii") for n in "ab"]
        assert [p["subject"] for p in pairs] == ["one", "b.nii"[:1]]
        assert [p["image"] for p in paired_scans(root, root, "test")] == [str(root / "low/c.nii")]

    def test_the_same_relative_path_in_the_other_folder(self, root):
        (root / "low" / "dataset.json").write_text(json.dumps({"training": ["a.nii", {"image": "b.nii"}, "c.nii"]}))
        touch(*(root / "7T" / f"{n}.nii" for n in "abc"))
        for pair in paired_scans(root / "low", root / "7T", "training"):
            assert pair["target"] == str(root / "7T" / f"{pair['stem']}.nii")

    @pytest.mark.parametrize(
        ("entry", "match"),
        [
            (
                {"image": "low/a.nii", "target": "high/d.nii"},
                r"low/a\.nii: expected a partner by dataset.json, got no such file: .*d\.nii",
            ),
            ("low/a.nii", r"low/a\.nii: expected a partner by dataset.json, got the image itself"),
            ({"image": "low/a.nii", "target": ["x"]}, r"expected a path as target of low/a\.nii, got \['x'\]"),
        ],
    )
    def test_bad_entries(self, root, entry, match):
        self.write(root, training=[entry], validation=[])
        with pytest.raises(ScanError, match=match):
            paired_scans(root, root, "training")
