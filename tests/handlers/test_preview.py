from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.image import imread
from monai.transforms import Compose

import custom_components.handlers.preview as module
from custom_components.handlers.preview import Preview
from custom_components.handlers.summary import SummaryReport
from custom_components.scans import find_scans
from custom_components.transforms import (
    ConsistencyErrord,
    KeepBackgroundd,
    LoadScand,
    RestoreIntensityd,
    RobustScaled,
    SaveScand,
    ToTargetGridd,
)
from custom_components.transforms.picture import write_png


def test_a_picture_for_each_scan_that_succeeded(
    make_item: Any, evaluate: Any, postprocessing: Any, tmp_path: Path
) -> None:
    nameless = make_item("c")
    del nameless["stem"], nameless["lowres"]
    items = [make_item("a"), {"image": "b.nii.gz", "stem": "b", "error": "gone"}]
    evaluate(items, Preview(tmp_path / "out"), postprocessing=postprocessing)
    evaluate([nameless], Preview(tmp_path / "out", postfix=""))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_sr.png", "c.png"]
    full, less = (imread(tmp_path / "out" / n) for n in ("a_sr.png", "c.png"))
    assert (full[..., :3].max(), full[..., :3].min()) == (1, 0)
    assert full.shape[1] - less.shape[1] == pytest.approx(2.54 * 130, abs=2)  # a column less without the input


def test_what_is_drawn(make_item: Any, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(module, "three_planes", lambda volumes, path, **_: drawn.update(volumes, path=path))
    item = make_item("a")
    evaluate([item], Preview(tmp_path))
    assert list(drawn) == ["input", "spline", "SR", "path"]
    assert drawn["input"] is item["lowres"]
    assert float((drawn["SR"] - item["image"] / 2).abs().max()) == 0
    assert drawn["path"] == tmp_path / "a_sr.png"


def test_a_preview_that_fails_does_not_fail_the_scan(
    make_item: Any, evaluate: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    engine = evaluate([make_item("a")], Preview(tmp_path / "file"))
    assert engine.failed == []
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("in/a.nii.gz: no preview: ")
    assert "expected to write the file" in record.getMessage()


def _infer(folder: Path, out: Path, evaluate: Any, dtype: str | None = None) -> Any:
    """The inference path of a model in 2D, the half in place of its network, from a folder to files in `out`."""
    scans = find_scans(folder)
    inputs = [scan["image"] for scan in scans]
    before = Compose([LoadScand("image", spatial_dims=2), RobustScaled("image"), ToTargetGridd("image")])
    after = Compose(
        [
            KeepBackgroundd("pred"),
            ConsistencyErrord("pred"),
            RestoreIntensityd(["pred", "image", "lowres"]),
            SaveScand("pred", output_dir=out, dtype=dtype, inputs=inputs),
        ]
    )
    handlers = [SummaryReport(out), Preview(out, inputs=inputs)]
    return evaluate([before(scan) for scan in scans], *handlers, postprocessing=after)


def _head() -> np.ndarray:
    """A slice `(X, Y)`, a bright half-disc on empty background."""
    x, y = np.meshgrid(np.arange(28) - 14, np.arange(24) - 12, indexing="ij")
    return np.where((x**2 + y**2 < 80) & (x > -4), 150 + 4 * x + 3 * y, 0).clip(0, 255).astype(np.uint8)


def test_a_picture_all_the_way(evaluate: Any, tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "a.png", _head())
    out = tmp_path / "out"
    engine = _infer(tmp_path / "in", out, evaluate)
    assert engine.failed == []
    assert sorted(p.name for p in out.iterdir()) == ["a_sr.png", "a_sr_preview.png", "summary.csv"]
    result, preview = imread(out / "a_sr.png"), imread(out / "a_sr_preview.png")
    assert result.shape == (48, 56)
    blocks = result.reshape(24, 2, 28, 2).mean((1, 3))
    assert np.corrcoef(blocks.ravel(), _head().T.ravel())[0, 1] > 0.97  # upright
    width, height = 0.3 + 3 * 2.54, 0.55 + 2.5 * 24 / 28 + 2.54 + 0.04 + 0.32  # three columns; the slice and its detail
    assert preview.shape[:2] == pytest.approx((130 * height, 130 * width), abs=2)
    summary = (out / "summary.csv").read_text()
    assert "28x24x1,56x48x1,1x1x1,0.5x0.5x1" in summary
    assert "no voxel size in the file, 1 mm assumed" in summary
    assert [scan["image"] for scan in find_scans(out)] == [str(out / "a_sr.png")]


def test_a_picture_saved_as_nifti_has_its_own_preview(evaluate: Any, tmp_path: Path) -> None:
    """Its preview never has a name that a result as a picture has in another run."""
    write_png(tmp_path / "a.png", _head())
    _infer(tmp_path, tmp_path / "out", evaluate, dtype="float32")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_sr.nii.gz", "a_sr_preview.png", "summary.csv"]
    image = nib.load(tmp_path / "out" / "a_sr.nii.gz")
    np.testing.assert_allclose(image.affine, [[-0.5, 0, 0, 0.25], [0, -0.5, 0, 0.25], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert [scan["stem"] for scan in find_scans(tmp_path / "out")] == ["a_sr"]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_all_the_way(evaluate: Any, tmp_path: Path, axis: int) -> None:
    (tmp_path / "in").mkdir()
    voxels = np.expand_dims(_head().astype(np.int16), axis)
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1, 1, 1])), tmp_path / "in" / "a.nii.gz")
    assert _infer(tmp_path / "in", tmp_path / "out", evaluate).failed == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_sr.nii.gz", "a_sr.png", "summary.csv"]
    picture = imread(tmp_path / "out" / "a_sr.png")
    height = 0.55 + 2.5 * 24 / 28 + 2.54 + 0.04 + 0.32  # one plane and its detail
    assert picture.shape[0] == pytest.approx(130 * height, abs=2)


def test_inputs_are_never_drawn_over(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    own = {"filename_or_obj": str(tmp_path / "c.png"), "picture": True}
    (tmp_path / "a_sr.png").write_text("input")
    (tmp_path / "b_preview.png").write_text("input")
    inputs = [tmp_path / "a_sr.png", tmp_path / "b_preview.png"]
    evaluate([make_item("a")], Preview(tmp_path / ".." / tmp_path.name, inputs=inputs))
    item = make_item("b")
    item["image"].meta |= {"picture": True}
    evaluate([item], Preview(tmp_path, postfix="", inputs=inputs))
    item = make_item("c")
    item["image"].meta |= own
    evaluate([item], Preview(tmp_path, postfix=""))
    names = ["a_sr.png", "a_sr_preview.png", "b_preview.png", "c_preview.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert {p.read_text() for p in inputs} == {"input"}
