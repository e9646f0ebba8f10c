import itertools
import os
import time

import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.data.utils import no_collation
from monai.transforms import Compose, Lambdad, RandScaleIntensityd

from custom_components.datasets import RandomPatches, ScanDataset, ScanLoader, with_scale_factors
from custom_components.errors import ScanError


def load(path):
    """Stands for a reader: fails in the ways that files make readers fail."""
    if path == "constant.nii":
        raise ScanError("constant.nii: expected contrast,\n got the constant 3")
    if path == "wrapped.nii":
        try:
            raise ScanError("wrapped.nii: expected 3D, got 4D")
        except ScanError as error:
            raise OSError("cannot read") from error
    if path == "twice.nii":
        try:
            raise ScanError("the inner reason")
        except ScanError as error:
            raise ScanError("the outer one") from error
    if path == "foreign.nii":
        raise OSError("foreign trouble\nin two lines")
    return MetaTensor(torch.full((1, 2, 2, 2), float(len(path))))


@pytest.fixture
def items():
    names = ("a.nii", "constant.nii", "bb.nii", "wrapped.nii", "foreign.nii", "ccc.nii")
    return [{"image": name, "stem": name.removesuffix(".nii")} for name in names]


class TestScanDataset:
    @pytest.fixture
    def dataset(self, items):
        return ScanDataset(items, Compose([Lambdad("image", load)]))

    def test_good_scans_are_loaded(self, dataset):
        assert len(dataset) == 6
        for index, value in ((0, 5), (2, 6), (5, 7), (-1, 7)):
            item = dataset[index]
            assert "error" not in item
            assert torch.equal(item["image"].as_tensor(), torch.full((1, 2, 2, 2), float(value)))

    @pytest.mark.parametrize(
        ("index", "error"),
        [
            (1, "constant.nii: expected contrast, got the constant 3"),  # MONAI's Compose wrapped it in a RuntimeError
            (3, "wrapped.nii: expected 3D, got 4D"),
            (4, "OSError: foreign trouble in two lines"),
        ],
    )
    def test_a_bad_one_is_an_item_with_one_line(self, dataset, items, index, error):
        assert dataset[index] == {**items[index], "error": error}
        assert "error" not in items[index]

    def test_the_innermost_reason_counts(self):
        assert (
            ScanDataset([{"image": "twice.nii"}], Compose([Lambdad("image", load)]))[0]["error"] == "the inner reason"
        )

    def test_without_compose(self, items):
        def fail(_):
            raise ScanError("plain")

        assert ScanDataset(items, fail)[0]["error"] == "plain"

    def test_others_go_on_in_a_loader(self, dataset):
        loader = DataLoader(dataset, batch_size=1, collate_fn=no_collation, num_workers=0)
        seen = [(item["stem"], "error" in item) for (item,) in loader]
        assert seen == [
            ("a", False), ("constant", True), ("bb", False), ("wrapped", True), ("foreign", True), ("ccc", False),
        ]  # fmt: skip

    def test_a_slice_too(self, dataset):
        assert ["error" in item for item in dataset[:3]] == [False, True, False]

    def test_a_wish_to_stop_is_no_failed_scan(self, items):
        def interrupt(_):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ScanDataset(items, interrupt)[0]


def slow(item):
    """Loads in a fifth of a second, and says where."""
    time.sleep(0.2)
    if item["image"] == "foreign.nii":
        raise OSError("foreign trouble")
    return {
        **item,
        "process": os.getpid(),
        "image": MetaTensor(torch.ones(1, 2, 2), meta={"filename_or_obj": item["image"]}),
    }


class TestScanLoader:
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_scans_one_by_one_in_their_order(self, items, num_workers):
        loader = ScanLoader(ScanDataset(items, Compose([Lambdad("image", load)])), num_workers)
        got = [item for (item,) in loader]
        assert [item["stem"] for item in got] == [item["stem"] for item in items]
        assert ["error" in item for item in got] == [False, True, False, True, True, False]
        assert [float(item["image"].mean()) for item in got if "error" not in item] == [5, 6, 7]
        assert all(("loading" in item) == (num_workers > 0) for item in got)

    def test_a_worker_says_what_loading_took(self):
        data = [{"image": name} for name in ("a.nii", "foreign.nii")]
        good, bad = (item for (item,) in ScanLoader(ScanDataset(data, slow), 1))
        assert good["process"] != os.getpid() and good["image"].meta["filename_or_obj"] == "a.nii"
        assert bad["error"] == "OSError: foreign trouble"
        for item in (good, bad):
            assert 0.2 <= item["loading"]["seconds"] < 2
            assert 2**22 < item["loading"]["peak_memory"] < 2**36

    def test_the_next_scan_is_loaded_meanwhile(self):
        scans = iter(ScanLoader(ScanDataset([{"image": "a.nii"}] * 2, slow), 1))
        next(scans)
        time.sleep(0.4)  # stands for the network
        started = time.perf_counter()
        next(scans)
        assert time.perf_counter() - started < 0.15

    @pytest.mark.parametrize("num_workers", [-1, "two", 1.5, None])
    def test_errors(self, num_workers):
        with pytest.raises(ValueError, match=f"num_workers must be a whole number >= 0, got {num_workers!r}"):
            ScanLoader(ScanDataset([], load), num_workers)


class TestRandomPatches:
    @pytest.fixture
    def scans(self):
        return [{"image": torch.full((1, 2, 2), float(i))} for i in range(3)]

    def test_each_scan_gives_as_many_patches(self, scans):
        dataset = RandomPatches(scans, lambda item: float(item["image"][0, 0, 0]), patches_per_scan=4)
        assert len(dataset) == 12
        assert sorted(dataset[i] for i in range(12)) == [0.0] * 4 + [1.0] * 4 + [2.0] * 4
        assert [dataset[i] for i in range(3)] == [0, 1, 2]

    def test_random_part_is_drawn_anew_and_follows_the_seed(self):
        runs = []
        for seed in (1, 1, 2):
            transform = Compose([RandScaleIntensityd("image", 0.5, prob=1.0)]).set_random_state(seed)
            dataset = RandomPatches([{"image": torch.ones(1, 2, 2)}], transform, 3)
            runs.append([float(dataset[i]["image"][0, 0, 0]) for i in (0, 1, 2)])
        assert runs[0] == runs[1]
        assert runs[0] != runs[2]
        assert len(set(runs[0])) == 3

    def test_batches_of_a_loader(self, scans):
        loader = DataLoader(RandomPatches(scans, dict, 2), batch_size=3, num_workers=0)
        assert [batch["image"].shape for batch in loader] == [(3, 1, 2, 2)] * 2

    @pytest.mark.parametrize(("scans", "patches"), [([], 4), ([{"image": 1}], 0), ([{"image": 1}], -2)])
    def test_errors(self, scans, patches):
        with pytest.raises(ValueError, match=f"scans and patches_per_scan >= 1, got {len(scans)} and {patches}"):
            RandomPatches(scans, dict, patches)


def test_each_scan_at_each_factor():
    items = [{"image": "a", "stem": "a"}, {"image": "b", "stem": "b"}]
    factors = [2, (1, 1, 3.3)]
    got = with_scale_factors(items, factors)
    assert [(i["image"], i["scale_factor"]) for i in got] == list(itertools.product("ab", factors))
    assert all(set(i) == {"image", "stem", "scale_factor"} for i in got)
    assert "scale_factor" not in items[0]
