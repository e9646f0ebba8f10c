"""Evaluations under many conditions: what is run, what is run again, and the table of all of them."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from custom_components.acquisition import PROTOCOLS
from custom_components.conditions import run
from custom_components.conditions.__main__ import SCALE_FACTORS, main, parsed
from custom_components.conditions.run import Conditions
from custom_components.conditions.table import report, rows_of
from custom_components.errors import ScanError

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_recnn"
# what a process does that stands in for `monai.bundle run`: gains are the noise's, less the length of the protocol's name
STAND_IN = """
import csv, json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
ids = json.loads((folder / "run.json").read_text())
with (pathlib.Path(sys.argv[2]) / "calls").open("a") as calls:
    print(folder.name, *sys.argv[3:], file=calls)
{before}
with (folder / "metrics_by_factor.csv").open("w", newline="") as file:
    parts = [m + p for m in ("psnr", "ssim", "rmse") for p in ("_mean", "_std", "_gain", "_worst_gain")]
    writer = csv.writer(file)
    writer.writerow(["scale_factor", "method", "scans", *parts])
    for factor in ids["val_scale_factors"]:
        for method, gain in (("model", ids["val_noise_std"] - len(ids["val_protocol"])), ("spline", 0)):
            values = [30 + gain, 1, gain, gain - factor]
            writer.writerow([factor, method, 2, *values, *[v / 100 for v in values], *values])
{after}
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Two protocols and two levels of noise; `before` and `after` are what each process does around its table."""
    monkeypatch.setattr(run, "POLL", 0.01)
    bundle = tmp_path / "bundle"
    (bundle / "models").mkdir(parents=True)
    (bundle / "models" / "model.pt").write_bytes(b"weights")

    def make(before="", after="", **given):
        code = STAND_IN.format(before=before, after=after)

        class StandIn(Conditions):
            def command(self, condition):
                return [sys.executable, "-c", code, str(self.folder(condition)), str(tmp_path), *self.options]

        conditions = [(protocol, noise) for noise in (0.0, 0.03) for protocol in ("box", "bicubic")]
        return StandIn(bundle, tmp_path / "out", conditions, **{"ids": {"val_scale_factors": [2, 1.5]}, **given})

    return make


@pytest.fixture
def calls(tmp_path):
    """Folders of the processes since it was last asked."""

    def calls():
        file = tmp_path / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return sorted(lines)

    return calls


ALL = ["bicubic_0", "bicubic_0.03", "box_0", "box_0.03"]


def rows(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def test_table_of_all_conditions(made, calls, tmp_path):
    assert made().run() == {}
    assert calls() == ALL
    table = rows(tmp_path / "out" / "conditions.csv")
    assert [(r["protocol"], r["noise_std"], r["scale_factor"]) for r in table] == [
        (protocol, noise, factor)
        for noise in ("0.0", "0.03")
        for protocol in ("box", "bicubic")
        for factor in ("2", "1.5")
    ]
    assert {r["scans"] for r in table} == {"2"}
    first = {name: float(value) for name, value in table[5].items() if name.startswith(("psnr", "ssim"))}
    assert first == pytest.approx(
        {
            "psnr_spline": 30,
            "psnr_model": 27.03,
            "psnr_gain": -2.97,
            "psnr_worst_gain": -4.47,
            "ssim_spline": 0.3,
            "ssim_model": 0.2703,
            "ssim_gain": -0.0297,
            "ssim_worst_gain": -0.0447,
        }
    )
    text = (tmp_path / "out" / "conditions.md").read_text()
    assert "| box      | 0.03 ".replace(" ", "") in text.replace(" ", "")
    assert "Least gain in PSNR of any scan: -9.00 (bicubic, noise 0, factor 2).\n" in text
    assert "Least gain in SSIM of any scan: -0.0900 (bicubic, noise 0, factor 2).\n" in text


def test_nothing_is_computed_twice_but_what_changed_is(made, calls, tmp_path):
    made().run()
    assert calls() == ALL
    assert made().run() == {} and calls() == []
    assert made(options=["--seed", "1"]).run() == {}
    assert calls() == [f"{name} --seed 1" for name in ALL]
    (tmp_path / "bundle" / "models" / "model.pt").write_bytes(b"other weights")
    changed = made(options=["--seed", "1"])
    assert changed.rows() == []
    changed.run()
    assert calls() == [f"{name} --seed 1" for name in ALL]
    made(ids={"val_scale_factors": [2]}).run()
    assert calls() == ALL
    assert {row["scale_factor"] for row in rows(tmp_path / "out" / "conditions.csv")} == {"2"}


def test_what_an_evaluation_is_told(made, tmp_path):
    made().run()
    ids = json.loads((tmp_path / "out" / "box_0.03" / "run.json").read_text())
    assert (ids["val_protocol"], ids["val_noise_std"]) == ("box", 0.03)
    assert ids["output_dir"] == str(tmp_path / "out" / "box_0.03")
    assert ids["checkpoint"] == str(tmp_path / "bundle" / "models" / "model.pt")
    assert "known_acquisition" not in ids
    made(known=True).run()
    ids = json.loads((tmp_path / "out" / "box_0.03" / "run.json").read_text())
    assert (ids["known_acquisition"], ids["known_noise_std"]) == ("box", 0.03)


FAILS = "sys.exit('error: expected this, got that') if ids['val_protocol'] == 'box' and ids['val_noise_std'] else None"


def test_a_failed_condition_stops_no_other_and_is_tried_again(made, calls, tmp_path):
    failed = made(before=FAILS).run()
    assert failed == {("box", 0.03): "ended with exit code 1: expected this, got that"}
    assert len(rows(tmp_path / "out" / "conditions.csv")) == 6
    calls()
    assert made().run() == {} and calls() == ["box_0.03"]
    assert len(rows(tmp_path / "out" / "conditions.csv")) == 8


def test_rows_stay_where_one_scan_failed(made, calls, tmp_path):
    assert list(made(after=FAILS).run()) == [("box", 0.03)]
    assert len(rows(tmp_path / "out" / "conditions.csv")) == 8
    calls()
    made().run()
    assert calls() == ["box_0.03"]


WAIT = "import time; (folder / 'alive').touch(); [time.sleep(0.01) for _ in iter(lambda: (folder / '../go').exists(), True)]"


@pytest.mark.parametrize(("jobs", "most"), [(1, 1), (2, 2), (9, 4)])
def test_so_many_at_a_time(made, tmp_path, jobs, most):
    """None ends before the test lets it: a further one would be seen."""
    conditions, out = made(before=WAIT), tmp_path / "out"
    thread = threading.Thread(target=conditions.run, args=(jobs,))
    thread.start()
    end = time.monotonic() + 30
    while len(list(out.glob("*/alive"))) < most and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)
    seen = len(list(out.glob("*/alive")))
    (out / "go").touch()
    thread.join()
    assert seen == most
    assert len(conditions.rows()) == 8


def test_processes_end_with_the_run(made, tmp_path, monkeypatch):
    def interrupted(_):
        if len(list((tmp_path / "out").glob("*/pid"))) == 2:
            raise KeyboardInterrupt

    sleeps = "import os, time; (folder / 'pid').write_text(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(run.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(before=sleeps).run(2)
    pids = [int(file.read_text() or 0) for file in (tmp_path / "out").glob("*/pid")]
    for pid in filter(None, pids):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_one_run_at_a_time(made, tmp_path):
    with run.only_one(tmp_path / "out"), pytest.raises(ScanError, match="expected one comparison at a time"):
        made().run()


def test_no_rows_give_no_table():
    assert report([]) == ""
    assert rows_of(("box", 0.0), []) == []


# The command line


def test_defaults(tmp_path):
    conditions, jobs = parsed(["--bundle", str(BUNDLE), "--dataset_dir", "SCANS", "--output_dir", str(tmp_path)])
    assert jobs == 1
    assert conditions.ids == {"dataset_dir": "SCANS", "val_scale_factors": SCALE_FACTORS}
    assert len(conditions.conditions) == 6 and {p for p, _ in conditions.conditions} <= set(PROTOCOLS)
    assert conditions.options == []


def test_options(tmp_path):
    given = (
        "--dataset_dir S --protocols box --noise_std 0.01 --known --jobs 3 --checkpoint m.pt --val_in_plane_only True"
    )
    conditions, jobs = parsed(
        ["--bundle", str(BUNDLE), "--output_dir", str(tmp_path), *given.split(), "--scale_factors", "[2, [1, 1, 3]]"]
    )
    assert (conditions.conditions, conditions.known, jobs) == ([("box", 0.01)], True, 3)
    assert conditions.ids["val_scale_factors"] == [2, [1, 1, 3]]
    assert conditions.ids["checkpoint"] == str(Path("m.pt").absolute())
    assert conditions.options == ["--val_in_plane_only", "True"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (["--bundle", "nowhere"], "expected the folder of a bundle, got no nowhere"),
        (["--jobs", "0"], "expected at least 1, got 0"),
        (["--noise_std", "-1"], r"expected values >= 0, got \[-1.0\]"),
        (["--protocols", "blur"], "invalid choice"),
        (["--scale_factors", "2,"], "invalid"),
    ],
)
def test_a_command_line_that_cannot_be_read(change, match, tmp_path, capsys):
    given = ["--bundle", str(BUNDLE), "--dataset_dir", "S", "--output_dir", str(tmp_path)]
    with pytest.raises(SystemExit, match="2"):
        parsed([*given, *change])
    assert re.search(match, capsys.readouterr().err)


@pytest.mark.slow
def test_an_evaluation_from_end_to_end(write_nifti, tmp_path, capsys):
    """The table says what the evaluation of each condition says of its scans."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        smooth = gaussian_filter(rng.random((16, 18, 15)), 1.5)
        write_nifti(f"hr/{name}.nii.gz", (1000 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.int16))
    given = ["--bundle", str(BUNDLE), "--dataset_dir", str(tmp_path / "hr"), "--output_dir", str(tmp_path / "out")]
    given += ["--scale_factors", "[2, [1, 1, 2.5]]", "--protocols", "box", "--noise_std", "0", "0.05", "--jobs", "2"]
    assert main([*given, "--device", "$torch.device('cpu')"]) == 0
    assert "Least gain in PSNR" in capsys.readouterr().out
    table = rows(tmp_path / "out" / "conditions.csv")
    assert [(r["noise_std"], r["scale_factor"]) for r in table] == [
        (noise, factor) for noise in ("0.0", "0.05") for factor in ("2x2x2", "1x1x2.5")
    ]
    for row in table:
        scans = rows(tmp_path / "out" / f"box_{float(row['noise_std']):g}" / "metrics.csv")
        psnr = {
            m: [float(s["psnr"]) for s in scans if (s["scale_factor"], s["method"]) == (row["scale_factor"], m)]
            for m in ("model", "spline")
        }
        gains = np.subtract(psnr["model"], psnr["spline"])
        assert float(row["psnr_gain"]) == pytest.approx(gains.mean(), abs=1e-5)
        assert float(row["psnr_worst_gain"]) == pytest.approx(gains.min(), abs=1e-5)
    assert float(table[0]["psnr_spline"]) > float(table[2]["psnr_spline"]) + 1  # noise was added
