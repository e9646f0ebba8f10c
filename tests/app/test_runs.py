from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from custom_components.app.bundles import read_bundle
from custom_components.app.command import Options, command
from custom_components.app.runs import Progress, Run, progress_in
from custom_components.app.sessions import Sessions, remove_abandoned
from custom_components.transforms import LoadScan

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_rrlsrn"


@pytest.fixture
def start(tmp_path, write_nifti):
    started = []

    def start(scan=None, **kwargs) -> Run:
        bundle = kwargs.pop("bundle", BUNDLE)
        started.append(
            Run(read_bundle(bundle), scan or write_nifti(), tmp_path / "run" / "output", Options(), **kwargs)
        )
        return started[-1]

    yield start
    for run in started:
        run.stop()


def test_progress_is_the_newest_bar():
    bars = "\rslices:   0%|          | 0/48 [00:00<?, ?it/s]\rslices:  79%|███████▉  | 38/48 [00:00<00:00, 128.06it/s]"
    assert progress_in("") == Progress(0, 0, "")
    assert progress_in("a log line | 3/4 | of no bar") == Progress(0, 0, "")
    assert progress_in(bars) == Progress(38, 48, "slices")
    assert progress_in(bars + "\r      \rscans: [1/1] 100%|██████████ [00:00<?]") == Progress(38, 48, "slices")
    assert progress_in(bars + "\rtiles:  50%|█████     | 1/2 [00:01<00:01,  1.00s/it]") == Progress(1, 2, "tiles")


def test_progress_of_a_real_bar(tmp_path):
    """Of the tqdm that the inferer draws, so that a change of its form is seen."""
    code = "import tqdm; bar = tqdm.tqdm(total=7, desc='slices', mininterval=0); bar.update(3); bar.refresh()"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert progress_in(printed) == Progress(3, 7, "slices")


def test_a_run_that_is_stopped_is_gone(start):
    run = start()
    assert run.running()
    run.stop()
    assert not run.running()
    assert run.error() == "stopped"
    with pytest.raises(ProcessLookupError):
        os.killpg(run.process.pid, 0)
    assert run.progress() == Progress(0, 0, "")


def test_a_run_that_is_killed_says_so(start):
    run = start()
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(30)
    assert run.error() == "scan.nii.gz: expected a result, got signal 9: was there too little memory?"


def test_a_folder_outlives_its_server_as_long_as_the_run(tmp_path, start):
    """A server that is killed cannot stop its run, which still writes there."""
    sessions = Sessions(tmp_path / "..")
    run = start(keep_open=[sessions.lock])
    os.close(sessions.lock)  # as the kernel does
    sessions.lock = None
    assert sessions.root not in remove_abandoned(sessions.temp_dir)
    assert sessions.root.exists()
    run.stop()
    assert sessions.root in remove_abandoned(sessions.temp_dir)
    sessions.close_all()


@pytest.mark.slow
def test_the_result_is_that_of_the_command(tmp_path, start, write_nifti):
    scan = write_nifti()
    run = start(scan)
    given = [sys.executable, *command(read_bundle(BUNDLE), scan, tmp_path / "OUT", Options())]
    subprocess.run(given, cwd=ROOT, check=True, capture_output=True)
    run.process.wait(120)
    assert run.error() == ""
    assert run.row()["shape_out"] == "14x12x10"
    assert Path(run.row()["output"]).read_bytes() == (tmp_path / "OUT" / "scan_sr.nii.gz").read_bytes()
    assert (run.progress().total, run.progress().unit) == (5, "slices")


@pytest.mark.slow
def test_a_file_that_is_no_scan_gets_the_line_of_the_command(tmp_path, start):
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "notes.nii.gz").write_text("no scan")
    run = start(folder / "notes.nii.gz")
    run.process.wait(120)
    with pytest.raises(ValueError, match="notes") as caught:
        LoadScan()(folder / "notes.nii.gz")
    assert run.error() == str(caught.value).removeprefix(f"{folder}/")
    assert run.error().startswith("notes.nii.gz: expected ")


@pytest.mark.slow
def test_a_bundle_that_does_not_start_gives_its_last_line(tmp_path, start):
    folder = tmp_path / "bundle" / "configs"
    folder.mkdir(parents=True)
    (folder / "metadata.json").write_text("{}")
    (folder / "inference.json").write_text('{"run": ["$1 / 0"]}')
    run = start(bundle=folder.parent)
    run.process.wait(120)
    assert run.row() == {}
    assert run.error() and "\n" not in run.error()
