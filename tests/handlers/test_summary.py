from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import custom_components.handlers.summary as module
from custom_components.errors import ScanError
from custom_components.handlers.summary import COLUMNS, SummaryReport, peak_memory, reset_peak_memory
from custom_components.transforms.consistency import ConsistencyError


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_line_for_each_scan(
    make_item: Any, evaluate: Any, postprocessing: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = make_item("c")
    broken["image"][..., 0] = 7  # the network fails on it
    items = [
        make_item("a", warnings=["spacing\nodd", 'also, "this"'], consistency_error=0.0123),
        {"image": "in/b.nii.gz", "stem": "b", "error": "expected a scan, got nothing"},
        broken,
        make_item("d", factor=4),
    ]
    path = tmp_path / "new" / "summary.csv"
    with caplog.at_level(logging.INFO):
        evaluate(items, SummaryReport(path.parent), postprocessing=postprocessing)
    rows = _read(path)
    assert tuple(rows[0]) == COLUMNS
    assert [r["file"] for r in rows] == [f"in/{n}.nii.gz" for n in "abcd"]
    assert [r["status"] for r in rows] == ["ok", "failed", "failed", "ok"]
    assert [r["output"] for r in rows] == ["out/a_sr.nii.gz", "", "", "out/d_sr.nii.gz"]
    assert [r["shape_in"] for r in rows] == ["6x8x4", "", "6x8x4", "3x4x2"]
    assert [r["shape_out"] for r in rows] == ["12x16x8", "", "", "12x16x8"]
    assert [r["spacing_in"] for r in rows] == ["2x2x3", "", "2x2x3", "4x4x6"]
    assert [r["spacing_out"] for r in rows] == ["1x1x1.5", "", "", "1x1x1.5"]
    assert rows[0]["consistency_error"] == "0.012300"
    assert rows[0]["warnings"] == 'spacing odd; also, "this"'
    assert rows[1]["error"] == "expected a scan, got nothing"
    assert rows[2]["error"] == "RuntimeError: no memory at all"
    assert all(0 <= float(r["seconds"]) < 5 and 0.01 < float(r["peak_memory_gib"]) < 64 for r in rows)
    logged = [r.getMessage() for r in caplog.records if r.name == module.__name__]
    assert logged == [
        "in/a.nii.gz: spacing odd",
        'in/a.nii.gz: also, "this"',
        f"2 of 4 scans done, 2 failed: see {path}",
    ]


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_a_line_for_a_slice(axis: int, make_item: Any, evaluate: Any, postprocessing: Any, tmp_path: Path) -> None:
    item = make_item("a")
    for key in ("image", "lowres", "target"):
        item[key] = item[key].narrow(axis, 0, 1)
    item["consistency_error"] = ConsistencyError()(item["image"], item["lowres"])
    evaluate([item], SummaryReport(tmp_path), postprocessing=postprocessing)
    (row,) = _read(tmp_path / "summary.csv")
    fine, coarse = ["x".join("1" if a == axis - 1 else n for a, n in enumerate(s)) for s in (("12", "16", "8"), "684")]
    assert (row["status"], row["shape_in"], row["shape_out"]) == ("ok", coarse, fine)
    assert (row["spacing_in"], row["spacing_out"]) == ("2x2x3", "1x1x1.5")
    assert 0 < float(row["consistency_error"]) < 1


class _Slow:
    """A loader that takes its time, and sees how many lines there are when a scan is asked for."""

    def __init__(self, items: list[dict[str, Any]], path: Path) -> None:
        self.items, self.path = items, path
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Any:
        for item in self.items:
            self.seen.append(len(_read(self.path)))
            time.sleep(0.2)
            yield [item]


def test_seconds_hold_the_loading_and_lines_come_at_once(make_item: Any, tmp_path: Path) -> None:
    from monai.inferers import SimpleInferer

    from custom_components.engines import ScanEvaluator

    loader = _Slow([make_item("a"), make_item("b")], tmp_path / "summary.csv")
    ScanEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=torch.nn.Identity(),
        inferer=SimpleInferer(),
        val_handlers=[SummaryReport(tmp_path)],
    ).run()
    assert loader.seen == [0, 1]
    assert all(0.2 <= float(r["seconds"]) < 2 for r in _read(tmp_path / "summary.csv"))


def test_a_new_run_starts_anew(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    report = SummaryReport(tmp_path)
    evaluate([make_item("a"), make_item("b")], report)
    evaluate([make_item("c")], report)
    assert [r["file"] for r in _read(tmp_path / "summary.csv")] == ["in/c.nii.gz"]


def test_peak_memory_sees_what_was_freed_and_forgets_it_after_a_reset() -> None:
    size = 2**28
    reset_peak_memory()
    before = peak_memory()
    block = torch.ones(size, dtype=torch.uint8)
    del block
    assert peak_memory() - before > 0.9 * size
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not let a process reset its peak")
    assert peak_memory() - before < 0.5 * size


def test_a_folder_that_cannot_be_written_ends_the_run_in_one_line(
    make_item: Any, evaluate: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    engine = evaluate([make_item("a")], SummaryReport(tmp_path / "file"))
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert engine.state.iteration == 0
    with pytest.raises(SystemExit) as stopped:
        engine.exit_if_failed()
    assert stopped.value.code == 1
    assert "summary.csv: expected to write the file, got" in record.getMessage()
    assert record.exc_info is None


def test_a_disk_that_fills_up_is_a_failure_of_the_run(
    make_item: Any, evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    report, write = SummaryReport(tmp_path), SummaryReport._write

    def full(self: SummaryReport) -> None:
        if len(self.rows) in (1, 2):
            raise ScanError("disk full")
        write(self)

    monkeypatch.setattr(SummaryReport, "_write", full)
    engine = evaluate([make_item(n) for n in "abc"], report)
    assert engine.failed == [(str(tmp_path / "summary.csv"), "disk full")]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == ["disk full"]
    assert len(_read(tmp_path / "summary.csv")) == 3
