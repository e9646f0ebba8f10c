from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandScaleIntensityd

from custom_components.batches.fingerprint import content, described, fingerprint, result_state, scan_state
from custom_components.inferers import ExactInferer
from custom_components.networks import AcquisitionEstimator, ReCNN
from custom_components.pretrained import with_weights
from custom_components.transforms import DescribeAcquisition, LoadScand, SaveScand, ToTargetGridd
from custom_components.transforms.picture import write_png


def test_fingerprint():
    """Stated digits: it must be the same in another process, on another day."""
    assert fingerprint("a", {"x": 1, "y": [None, 2.5]}) == fingerprint("a", {"y": [None, 2.5], "x": 1})
    assert fingerprint() == "4f53cda18c2baa0c"  # SHA-256 of "[]"
    parts = [("a",), ("a", None), (["a"],), ("b",), (1,), (1.5,), (True,)]
    assert len({fingerprint(*part) for part in parts}) == len(parts)


class TestDescribed:
    @pytest.mark.parametrize(
        ("make", "others"),
        [
            (lambda **a: ToTargetGridd("image", **a), [{"scale_factor": 3}, {"target_spacing": [1, 0, 1]}]),
            (lambda **a: Compose([LoadScand("image", **a)]), [{"spatial_dims": 2}]),
            (lambda **a: ExactInferer(**{"spatial_dims": 2, **a}), [{"amp_dtype": "bfloat16"}, {"all_axes": True}]),
            (lambda **a: SaveScand("pred", **a), [{"postfix": "hr"}, {"dtype": "float32"}]),
            (
                lambda **a: ReCNN(3, **{"num_layers": 2, "num_filters": 2, **a}),
                [{"num_layers": 3}, {"num_filters": 3}, {"residual": False}],
            ),
        ],
        ids=["grid", "compose", "inferer", "save", "network"],
    )
    def test_equal_when_made_alike_and_only_then(self, make, others):
        assert described(make()) == described(make())
        descriptions = [fingerprint(described(make(**a))) for a in ({}, *others)]
        assert len(set(descriptions)) == len(descriptions)

    def test_what_shapes_no_voxel_does_not_count(self):
        assert described(ExactInferer(1.0, progress=True)) == described(ExactInferer(2.0))
        there = SaveScand("pred", output_dir="there", inputs=["a.nii"])
        assert described(there) == described(SaveScand("pred", output_dir="here"))
        network = ReCNN(3, num_layers=2, num_filters=2)
        assert described(network.eval()) == described(network.train())

    def test_weights_that_a_part_has_from_a_file(self, tmp_path):
        """Those of the network itself count by its checkpoint; a transform's network has none."""
        texts = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            torch.save(AcquisitionEstimator(2).state_dict(), tmp_path / "estimator.pt")
            estimator = with_weights(AcquisitionEstimator(2), tmp_path / "estimator.pt")
            texts.append(described([DescribeAcquisition(estimator=estimator)]))
        assert texts[0] == texts[1] != texts[2]

    def test_plain_values_functions_and_what_has_no_attributes(self):
        class Odd:
            def __init__(self, value):
                self.value, self.itself, self._cache = value, self, object()

        given = [
            1,
            2.5,
            "a",
            None,
            {"k": {3, 1}},
            Path("p"),
            torch.float16,
            np.sum,
            np.float32,
            torch.ones(2),
            object(),
        ]
        assert described(given)[:4] == [1, 2.5, "a", None]
        assert described(given)[4:] == described(given)[4:] == [
            {"k": [1, 3]}, "p", "torch.float16", "numpy.sum", "numpy.float32", ["torch.float32", [1, 1]],
            ["builtins.object", {}, {}],
        ]  # fmt: skip
        assert described(Odd(1)) == described(Odd(1)) != described(Odd(2))

    def test_random_numbers_drawn_do_not_count(self):
        transform = Compose([RandScaleIntensityd("image", 0.5)]).set_random_state(0)
        before = described(transform)
        transform.transforms[0].R.rand()
        assert described(transform) == before != described(Compose([RandScaleIntensityd("image", 0.4)]))

    def test_an_object_that_stands_twice(self):
        shared = ExactInferer(spatial_dims=2)
        assert described([shared, 1]) != described([shared, 2])


def test_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert content(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content(tmp_path / "none") is content(tmp_path) is None


class TestScanState:
    def test_changes_with_the_scan(self, tmp_path):
        path = tmp_path / "a.nii"
        assert scan_state(path) == []
        path.write_bytes(b"abc")
        os.utime(path, ns=(0, 10**18))
        assert scan_state(path) == [["a.nii", 3, 10**18]]
        os.utime(path, ns=(0, 10**18 + 1))
        assert scan_state(path) == [["a.nii", 3, 10**18 + 1]]

    def test_the_facts_beside_a_nifti_file(self, tmp_path):
        for name in ("a.nii.gz", "a.json", "b.nii", "ab.json", "C.NII", "C.json"):
            (tmp_path / name).write_text("{}")
        assert [name for name, *_ in scan_state(tmp_path / "a.nii.gz")] == ["a.nii.gz", "a.json"]
        assert [name for name, *_ in scan_state(tmp_path / "b.nii")] == ["b.nii"]
        assert [name for name, *_ in scan_state(tmp_path / "C.NII")] == ["C.NII", "C.json"]

    def test_voxels_beside_a_header_and_slices_in_a_folder(self, tmp_path):
        for name in ("a.mhd", "a.raw", "ab.raw", "a.nii", "[a].mhd", "[a].raw"):
            (tmp_path / name).write_bytes(b"abc")
        assert [name for name, *_ in scan_state(tmp_path / "a.mhd")] == ["a.mhd", "a.nii", "a.raw"]
        assert [name for name, *_ in scan_state(tmp_path / "[a].mhd")] == ["[a].mhd", "[a].raw"]
        (tmp_path / "folder").mkdir()
        assert [name for name, *_ in scan_state(tmp_path)] == sorted(p.name for p in tmp_path.iterdir() if p.is_file())


class TestResultState:
    def test_gzip(self, tmp_path):
        """Content of equal length that differs by one bit, stored: only checksum and data differ."""
        states = []
        for value in (0, 1):
            with gzip.GzipFile("", "wb", compresslevel=0, fileobj=(tmp_path / "a").open("wb"), mtime=0) as file:
                file.write(bytes([value]) + bytes(999))
                stream = file.fileobj
            stream.close()
            states.append(result_state(tmp_path / "a"))
        assert states[0][0] == states[1][0]
        assert states[0][1] != states[1][1]

    def test_png(self, tmp_path):
        states = []
        for value in (0, 1):
            pixels = np.zeros((32, 32), np.uint8)
            pixels[3, 4] = value
            write_png(tmp_path / "a.png", pixels)
            states.append(result_state(tmp_path / "a.png"))
        assert states[0][1] != states[1][1]

    def test_place_and_time_do_not_count(self, tmp_path):
        (tmp_path / "a").write_bytes(b"x" * 30)
        (tmp_path / "b").write_bytes(b"x" * 30)
        os.utime(tmp_path / "b", ns=(0, 0))
        assert result_state(tmp_path / "a") == result_state(tmp_path / "b") == [30, "78" * 24]

    def test_no_file(self, tmp_path):
        assert result_state(tmp_path / "none") is result_state(tmp_path) is None
        (tmp_path / "short").write_bytes(b"x")
        assert result_state(tmp_path / "short") == [1, "78"]
