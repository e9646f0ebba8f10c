"""The command line: ids of a study, exit codes, one-line errors, and a comparison that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from math import nan
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from custom_components.compare import __main__ as command
from custom_components.compare.process import only_one
from custom_components.compare.results import Result, read_results
from custom_components.compare.study import Method, Study
from custom_components.networks import ReCNN

ROOT = Path(__file__).parents[2]
BUNDLE = "bundles/brain_mri_sr_recnn"
# The report is not what is tested here: a module that writes none is quick.
PROGRAM = """
import runpy, sys, types
report = types.ModuleType("custom_components.compare.report")
report.write_report = lambda *_: None
sys.modules["custom_components.compare.report"] = report
runpy.run_module("custom_components.compare", run_name="__main__", alter_sys=True)
"""


def start(*arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(words, cwd=ROOT, env=environment, text=True, **options)


@pytest.fixture
def compared(monkeypatch):
    """Studies that `main` has asked for; `compared.rows` is what comes out."""

    class Compared(list):
        rows = (Result("a", "2", "spline", 30, 0.9, 0.1, 25, 0.8, 0.2, 1, 1),)

        def __call__(self, study):
            self.append(study)
            return list(self.rows)

    compared = Compared()
    monkeypatch.setattr(command, "compare", compared)
    return compared


@pytest.fixture
def scans(write_nifti, tmp_path):
    write_nifti("hr/a.nii.gz")
    return tmp_path / "hr"


class TestParsed:
    def test_values(self):
        words = "--dataset_dir 2024 --scale_factors [2,[1,1,3]] --noise_std 0.02 --where {'population':'adult'}"
        words += ' --methods::m::bundle b --methods::m::options::a=false --rank ["m"] --authors /there'
        assert command.parsed(words.split()) == {
            "config_file": None,
            "dataset_dir": "2024",
            "scale_factors": [2, [1, 1, 3]],
            "noise_std": 0.02,
            "where": {"population": "adult"},
            "methods::m::bundle": "b",
            "methods::m::options::a": False,
            "rank": ["m"],
            "authors": "/there",
        }

    @pytest.mark.parametrize("words", [["word"], ["--id"], ["--a", "1", "b"]])
    def test_bad_words(self, words, capsys):
        with pytest.raises(SystemExit) as caught:
            command.parsed(words)
        assert caught.value.code == 2
        assert "expected --id VALUE, got" in capsys.readouterr().err

    def test_help_tells_of_each_id(self, capsys):
        with pytest.raises(SystemExit) as caught:
            command.parsed(["--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert all(f"--{name} " in text for name in (*command.DEFAULTS, "config_file"))


class TestMain:
    def test_file_and_overrides(self, compared, scans, tmp_path, capsys):
        methods = {"spline": {"bundle": BUNDLE}}
        (tmp_path / "s.json").write_text(json.dumps({"dataset_dir": str(scans), "split": "all", "methods": methods}))
        words = ["--config_file", str(tmp_path / "s.json"), "--scale_factors", "[3]", "--output_dir", "my results"]
        assert command.main(words) == 0
        (study,) = compared
        assert study.scale_factors == ["3"]
        assert study.command.startswith("python -m custom_components.compare --config_file ")
        assert study.command.endswith("--scale_factors '[3]' --output_dir 'my results'")
        printed = capsys.readouterr()
        assert "1 results, 0 failed. Report: " in printed.out
        assert printed.err == ""

    def test_a_failed_row_gives_exit_code_1(self, compared, scans, capsys):
        compared.rows = (*compared.rows, Result("b", "2", "spline", error="ended by signal 9"))
        words = ["--dataset_dir", str(scans), "--split", "all", "--methods", f"{{'spline': {{'bundle': '{BUNDLE}'}}}}"]
        assert command.main(words) == 1
        printed = capsys.readouterr()
        assert printed.err == "x2, spline, b: ended by signal 9\n"
        assert "2 results, 1 failed" in printed.out


def test_table():
    study = Study({"a": Method(Path()), "b": Method(Path())}, [2], Path(), reference="a")
    results = [
        Result("x", "2", "a", 30, 0.9, 0.1, 20, nan, 0.2, 1),
        Result("y", "2", "a", 31, 0.8, 0.1, 21, 0.7, 0.2, 2),
        Result("x", "2", "b", error="no"),
        Result("y", "2", "b", error="no"),
    ]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in command.table(results, study).splitlines()]
    assert cells[2] == ["x2", "a", "2 of 2", "30.50", "0.8500", "20.50", "0.7000", "1.5"]
    assert cells[3] == ["x2", "b", "0 of 2", "-", "-", "-", "-", "-"]


@pytest.mark.slow
def test_a_bad_study_is_one_line():
    process = start("--methods", "{'a': {'bundle': 'nowhere'}}", "--dataset_dir", "x", stderr=subprocess.PIPE)
    _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr == "error: nowhere: expected the bundle of method 'a', got: no such file or folder\n"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole group killed", "terminated"])
def test_a_comparison_that_is_killed_goes_on_where_it_was(how, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        voxels = np.random.default_rng(seed).integers(100, 900, (12, 12, 12)).astype(np.int16)
        (tmp_path / "hr").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "hr" / f"{name}.nii.gz")
    tiny = {"network_def::num_layers": 2, "network_def::num_filters": 2, "checkpoint": str(tmp_path / "tiny.pt")}
    torch.save(ReCNN(3, num_layers=2, num_filters=2).state_dict(), tmp_path / "tiny.pt")
    methods = {"spline": {"bundle": BUNDLE, "options": tiny}, "mine": {"bundle": BUNDLE, "options": tiny}}
    (tmp_path / "s.json").write_text(
        json.dumps({"methods": methods, "dataset_dir": str(tmp_path / "hr"), "split": "all"})
    )
    words = ["--config_file", tmp_path / "s.json", "--output_dir", tmp_path / "out"]
    table, log = tmp_path / "out" / "results.csv", tmp_path / "out" / "x2" / "mine" / "log.txt"
    with (tmp_path / "stderr").open("w") as stderr, start(*words, stderr=stderr, start_new_session=True) as process:
        while not log.exists():
            assert process.poll() is None, (tmp_path / "stderr").read_text()
            time.sleep(0.05)
        if how == "terminated":
            process.terminate()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == (143 if how == "terminated" else -9)
    rows = read_results(table)
    assert [(r.scan, r.method, r.error) for r in rows] == [("a", "spline", ""), ("b", "spline", "")]
    if how == "terminated":
        with only_one(tmp_path / "out"):  # the lock is free: the method's process was stopped too
            return
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "x2" / "spline").glob("*_sr.nii.gz")}
    again = start(*words, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    stdout, stderr = again.communicate()
    assert again.returncode == 0, stderr
    assert "4 results, 0 failed" in stdout
    results = read_results(table)
    assert [r for r in results if r.method == "spline"] == rows
    assert {p: p.stat().st_mtime_ns for p in files} == files
    assert all(a.psnr == b.psnr and a.seconds > 0 for a, b in zip(results[::2], results[1::2], strict=True))
