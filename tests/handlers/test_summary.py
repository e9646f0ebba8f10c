from __future__ import annotations

import csv
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor

import custom_components.handlers.summary as module
from custom_components.batches.fingerprint import fingerprint
from custom_components.batches.summary_file import COLUMNS, merge_rows
from custom_components.errors import ScanError
from custom_components.handlers.summary import SummaryReport
from custom_components.memory import GIB
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


def test_lines_of_other_scans_stay(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    report = SummaryReport(tmp_path)
    evaluate([make_item("a"), make_item("b", warnings=["old"]), make_item("c")], report)
    evaluate([make_item("d"), make_item("b", warnings=["new"])], report)
    rows = _read(tmp_path / "summary.csv")
    assert [(r["file"], r["warnings"]) for r in rows] == [
        *(("in/a.nii.gz", ""), ("in/b.nii.gz", "new"), ("in/c.nii.gz", ""), ("in/d.nii.gz", ""))
    ]
    assert [r["file"] for r in report.rows] == ["in/d.nii.gz", "in/b.nii.gz"]


def test_a_line_that_another_run_has_replaced_is_not_written_again(
    make_item: Any, evaluate: Any, tmp_path: Path
) -> None:
    class Other:
        """A run beside this one that does the first scan again while this one is at its second."""

        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), self.write)

        def write(self) -> None:
            merge_rows(tmp_path / "summary.csv", [{"file": "in/a.nii.gz", "status": "ok", "warnings": "of the other"}])

    evaluate([make_item("a"), make_item("b")], SummaryReport(tmp_path), Other())
    assert [r["warnings"] for r in _read(tmp_path / "summary.csv")] == ["of the other", ""]


def test_the_line_comes_when_all_handlers_are_through(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    """Else a scan would count as done without its preview, if the run is killed between the two."""

    class Later:
        def attach(self, engine: Any) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(_read(tmp_path / "summary.csv")))

    seen: list[Any] = []
    evaluate([make_item("a"), make_item("b")], SummaryReport(tmp_path), Later())
    assert [len(rows) for rows in seen] == [0, 1]
    assert len(_read(tmp_path / "summary.csv")) == 2


def test_loading_in_a_worker_counts(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    """Its seconds and not those of waiting for it; the memory of the process that took more."""
    items = [make_item("a", loading={"seconds": 100.0, "peak_memory": 64 * GIB}), make_item("b")]
    items += [make_item("c", loading={"seconds": 0.0, "peak_memory": 0})]
    evaluate(items, SummaryReport(tmp_path))
    a, b, c = _read(tmp_path / "summary.csv")
    assert 100 <= float(a["seconds"]) < 105 and max(float(b["seconds"]), float(c["seconds"])) < 5
    assert float(a["peak_memory_gib"]) == 64 and 0.01 < float(c["peak_memory_gib"]) < 32


def test_fingerprint_of_an_item_with_its_result(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    def save(data: dict[str, Any]) -> dict[str, Any]:
        meta = {"saved_to": f"out/{data['stem']}_sr.nii.gz", "saved_state": [7, "00"]}
        return {**data, "pred": MetaTensor(data["pred"], meta=meta)}

    evaluate([make_item("a", fingerprint="x"), make_item("b")], SummaryReport(tmp_path), postprocessing=save)
    a, b = (r["fingerprint"] for r in _read(tmp_path / "summary.csv"))
    assert (a, b) == (fingerprint("x", [7, "00"]), "")


def test_a_map_beside_the_result_counts(make_item: Any, evaluate: Any, tmp_path: Path) -> None:
    def save(data: dict[str, Any]) -> dict[str, Any]:
        result, spread = (
            MetaTensor(data["pred"], meta={**data["image"].meta, "saved_to": f"out/{name}", "saved_state": state})
            for name, state in (("a_sr.nii.gz", [7, "00"]), ("a_sr_uncertainty.nii.gz", [8, "01"]))
        )
        return {**data, "pred": result, "uncertainty": spread}

    evaluate([make_item("a", fingerprint="x")], SummaryReport(tmp_path), postprocessing=save)
    (row,) = _read(tmp_path / "summary.csv")
    assert (row["output"], row["uncertainty"]) == ("out/a_sr.nii.gz", "out/a_sr_uncertainty.nii.gz")
    assert row["fingerprint"] == fingerprint("x", [7, "00"], [8, "01"])


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
        if len(self._unwritten) in (1, 2):
            raise ScanError("disk full")
        write(self)

    monkeypatch.setattr(SummaryReport, "_write", full)
    engine = evaluate([make_item(n) for n in "abc"], report)
    assert engine.failed == [(str(tmp_path / "summary.csv"), "disk full")]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == ["disk full"]
    assert len(_read(tmp_path / "summary.csv")) == 3
