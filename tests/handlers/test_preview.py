from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

import custom_components.handlers.preview as module
from custom_components.handlers.preview import Preview


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
