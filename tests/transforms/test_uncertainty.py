from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.errors import ScanError
from custom_components.transforms import (
    RestoreIntensityd,
    RestoreUncertainty,
    RestoreUncertaintyd,
    RobustScale,
    SaveScand,
    SplitUncertaintyd,
    split_uncertainty,
)

NAMES = ["t1_sr.nii.gz", "t1_sr_uncertainty.nii.gz"]


def _pair(size: tuple[int, ...] = (7, 6, 5)) -> torch.Tensor:
    return torch.rand((2, *size), generator=torch.Generator().manual_seed(0))


class TestSplit:
    def test_the_channels_share_their_memory(self) -> None:
        both = _pair()
        result, spread = split_uncertainty(both)
        assert spread is not None
        assert result.shape == spread.shape == (1, 7, 6, 5)
        assert torch.equal(torch.cat([result, spread]), both)
        assert result.data_ptr() == both.data_ptr()

    def test_meta_data_go_to_both_and_are_not_shared(self) -> None:
        result, spread = split_uncertainty(MetaTensor(_pair(), meta={"descrip": "a"}))
        assert isinstance(result, MetaTensor)
        assert isinstance(spread, MetaTensor)
        result.meta["descrip"] = "b"
        assert spread.meta["descrip"] == "a"

    def test_a_result_alone_stays_as_it_is(self) -> None:
        item = {"pred": _pair()[:1], "image": 1}
        after = SplitUncertaintyd()(item)
        assert set(after) == {"pred", "image"}
        assert torch.equal(after["pred"], item["pred"])

    def test_dictionary_version(self) -> None:
        item = {"pred": _pair(), "other": 2 * _pair()}
        after = SplitUncertaintyd(["pred", "other"], "std")(item)
        for name, expected in (
            ("pred", _pair()[:1]),
            ("std", _pair()[1:]),
            ("other", 2 * _pair()[:1]),
            ("std_other", 2 * _pair()[1:]),
        ):
            assert torch.equal(after[name], expected)
        assert item["pred"].shape[0] == 2
        assert SplitUncertaintyd(allow_missing_keys=True)({}) == {}
        with pytest.raises(KeyError):
            SplitUncertaintyd()({})

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="expected 1 or 2 channels, the result and its uncertainty, got 3"):
            split_uncertainty(torch.zeros(3, 4, 4, 4))


class TestRestore:
    def test_it_is_the_spread_of_restored_results(self) -> None:
        """An error of one standard deviation on the [0, 1] scale, brought back, is as large as the map brought back."""
        scan = RobustScale()(MetaTensor(500 + 900 * _pair()[:1], affine=torch.diag(torch.tensor([2.0, 2, 3, 1]))))
        result, spread = 0.2 + 0.5 * _pair()[:1], 0.1 * _pair()[1:]
        item = {"image": scan, "a": result.clone(), "b": result + spread, "uncertainty": spread.clone()}
        for chain in ((RestoreUncertaintyd(), RestoreIntensityd(["a", "b"])), (RestoreIntensityd("a"),)):
            for transform in chain:
                item = transform(item)  # type: ignore[operator]
        restored = item["uncertainty"]
        item = RestoreIntensityd("a")({"image": scan, "a": result.clone()})
        other = RestoreIntensityd("b")({"image": scan, "b": result + spread})
        torch.testing.assert_close(restored.as_tensor(), (other["b"] - item["a"]).as_tensor(), rtol=1e-4, atol=1e-2)
        assert torch.equal(restored.affine, scan.affine)
        assert restored.meta["intensity_upper"] == scan.meta["intensity_upper"]

    def test_signed_scans_and_the_restored_image_as_reference(self) -> None:
        scan = RobustScale()(MetaTensor(-700 + 900 * _pair()[:1]))
        wanted = (scan.meta["intensity_upper"] - scan.meta["intensity_lower"]) * _pair()[1:]
        item = RestoreIntensityd("image")({"image": scan, "uncertainty": _pair()[1:]})
        after = RestoreUncertaintyd()(item)
        torch.testing.assert_close(after["uncertainty"].as_tensor(), wanted)

    def test_empty_background_has_no_error(self) -> None:
        """Of a block of brain on exact zeros 4 of 8 voxels wide, whose neighbours are no background: 6 of them, times 2."""
        lowres = torch.full((1, 8, 8, 8), -0.01)
        lowres[:, 2:6, 2:6, 2:6] = _pair((4, 4, 4))[:1] + 0.1
        image = RobustScale()(MetaTensor(_pair((16, 16, 16))[:1]))
        item = {"image": image, "lowres": MetaTensor(lowres), "uncertainty": torch.ones(1, 16, 16, 16)}
        spread = RestoreUncertaintyd()(dict(item))["uncertainty"]
        wanted = torch.zeros(16, 16, 16)
        wanted[2:14, 2:14, 2:14] = image.meta["intensity_upper"] - image.meta["intensity_lower"]
        assert torch.equal(spread[0].as_tensor(), wanted)
        narrow = RestoreUncertaintyd(margin=0)({**item, "uncertainty": torch.ones(1, 16, 16, 16)})["uncertainty"]
        assert int(narrow.count_nonzero()) == 8**3

    def test_missing_maps_and_errors(self) -> None:
        image = RobustScale()(MetaTensor(_pair()[:1]))
        item = {"image": image}
        assert RestoreUncertaintyd(allow_missing_keys=True)(item) == item
        with pytest.raises(KeyError):
            RestoreUncertaintyd()(item)
        with pytest.raises(ScanError, match=r"expected a map of shape \(7, 6, 5\), got \(4, 4, 4\)"):
            RestoreUncertainty()(torch.zeros(1, 4, 4, 4), image)


@pytest.fixture
def item(oblique: Any) -> dict[str, Any]:
    """A result and its map, ready to be saved."""
    meta = {"filename_or_obj": "in/t1.nii.gz", "scan_dtype": "int16", "sform_code": 2, "descrip": "3T"}
    images = (MetaTensor(v[None], affine=torch.as_tensor(oblique()), meta=dict(meta)) for v in _pair())
    return dict(zip(("pred", "uncertainty"), images, strict=True), stem="t1")


def _save(folder: Path) -> SaveScand:
    """As in the bundle's config."""
    return SaveScand(
        ["pred", "uncertainty"],
        output_dir=folder,
        postfix=["sr", "sr_uncertainty"],
        dtype=[None, "float32"],
        allow_missing_keys=True,
    )


class TestSave:
    def test_the_map_lies_beside_the_result_in_its_place(self, tmp_path: Path, item: dict[str, Any]) -> None:
        item["pred"].mul_(1000)
        after = _save(tmp_path)(item)
        assert sorted(os.listdir(tmp_path)) == NAMES
        assert [after[k].meta["saved_to"] for k in ("pred", "uncertainty")] == [str(tmp_path / n) for n in NAMES]
        result, spread = (nib.load(tmp_path / n) for n in NAMES)
        assert (result.get_data_dtype(), spread.get_data_dtype()) == (np.int16, np.float32)
        np.testing.assert_array_equal(np.asanyarray(spread.dataobj), _pair()[1].numpy())
        np.testing.assert_array_equal(spread.affine, result.affine)
        np.testing.assert_array_equal(spread.get_qform(), result.get_qform())
        for key in ("sform_code", "qform_code", "descrip", "xyzt_units"):
            assert spread.header[key] == result.header[key]

    def test_a_result_alone(self, tmp_path: Path, item: dict[str, Any]) -> None:
        del item["uncertainty"]
        _save(tmp_path)(item)
        assert os.listdir(tmp_path) == NAMES[:1]

    @pytest.mark.parametrize("fails", [0, 1], ids=["result", "map"])
    def test_a_full_disk_leaves_neither(
        self, tmp_path: Path, item: dict[str, Any], monkeypatch: pytest.MonkeyPatch, fails: int
    ) -> None:
        """An older pair stays, byte for byte."""
        _save(tmp_path)(item)
        old = [(tmp_path / n).read_bytes() for n in NAMES]
        write, files = gzip.GzipFile.write, []

        def fills_up(self: Any, data: Any) -> int:
            if self not in files:
                files.append(self)
            if files.index(self) == fails:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(self, data)

        monkeypatch.setattr(gzip.GzipFile, "write", fills_up)
        item["pred"].mul_(100)
        item["uncertainty"].mul_(2)
        with pytest.raises(ScanError, match=f"{NAMES[fails]}: expected to write the file, got: No space left"):
            _save(tmp_path)(item)
        assert sorted(os.listdir(tmp_path)) == NAMES
        assert [(tmp_path / n).read_bytes() for n in NAMES] == old

    @pytest.mark.parametrize("key", ["pred", "uncertainty"])
    def test_neither_where_one_is_not_finite(self, tmp_path: Path, item: dict[str, Any], key: str) -> None:
        item[key][0, 1, 1, 1] = float("nan")
        with pytest.raises(ScanError, match="expected a finite result, got NaN"):
            _save(tmp_path)(item)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("taken", NAMES)
    def test_neither_where_a_name_cannot_be_taken(self, tmp_path: Path, item: dict[str, Any], taken: str) -> None:
        (tmp_path / taken).mkdir()
        with pytest.raises(ScanError, match=f"{taken}: expected to write the file"):
            _save(tmp_path)(item)
        assert os.listdir(tmp_path) == [taken]

    def test_an_input_is_not_written_over(self, tmp_path: Path, item: dict[str, Any]) -> None:
        save = SaveScand(
            ["pred", "uncertainty"], tmp_path, ["sr", "sr_uncertainty"], inputs=iter([tmp_path / NAMES[1]])
        )
        with pytest.raises(ScanError, match="expected an output apart from the inputs"):
            save(item)
        assert os.listdir(tmp_path) == []

    def test_errors(self, tmp_path: Path) -> None:
        for options in ({"postfix": ["a"]}, {"dtype": ["float32"] * 3}):
            with pytest.raises(ValueError, match="expected one postfix and dtype, or one for each of 2 keys, got"):
                SaveScand(["pred", "uncertainty"], tmp_path, **options)
        with pytest.raises(ValueError, match="dtype must be one of"):
            SaveScand(["pred", "uncertainty"], tmp_path, dtype=[None, "int64"])
