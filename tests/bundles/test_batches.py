"""Many scans: workers, what is done is not done again, several calls and machines on one folder."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCHRUN = ROOT / "configs" / "inference" / "torchrun.json"
FORK = multiprocessing.get_context("fork")
MEASURED = ("seconds", "peak_memory_gib", "peak_gpu_memory_gib")  # columns that differ from run to run


@pytest.fixture
def scans(tmp_path, noise, write_nifti):
    """Scans of unlike size, one of them none."""
    for number, name in enumerate("abcde"):
        write_nifti(f"in/{name}.nii.gz", voxels=noise((9 + number, 8, 7)) + number)
    (tmp_path / "in" / "bad.nii.gz").write_text("no scan")
    return tmp_path / "in"


@pytest.fixture
def good(scans):
    (scans / "bad.nii.gz").unlink()
    return scans


def times(folder):
    """When each file of a folder was written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir() if p.name != "summary.csv"}


def told(rows):
    """Lines of a summary without what is measured, by file."""
    return {row["file"]: {k: v for k, v in row.items() if k not in (*MEASURED, "output")} for row in rows}


def test_workers_give_the_same_files_and_lines(scans, infer, tmp_path):
    alone = infer(scans, tmp_path / "alone", "random")
    shared = infer(scans, tmp_path / "shared", "random", num_workers=2)
    assert [row["file"] for row in shared] == [row["file"] for row in alone]
    assert told(shared) == told(alone)
    assert sorted(row["status"] for row in shared) == ["failed", *["ok"] * 5]
    for row in shared:
        assert 0 <= float(row["seconds"]) < 60 and 0.05 < float(row["peak_memory_gib"]) < 6
    names = sorted(p.name for p in (tmp_path / "alone").glob("*.nii.gz"))
    assert len(names) == 5
    for name in names:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_the_next_call_does_the_rest(scans, command, read_summary, noise, write_nifti, tmp_path):
    def call():
        run = command(scans, tmp_path / "out", **{"preview::_disabled_": True})
        return run.code, [re.sub(r".* - ", "", line) for line in run.lines], times(tmp_path / "out")

    code, lines, first = call()
    assert code == 1 and "5 of 6 scans done, 1 failed" in lines[-1]
    write_nifti("in/bad.nii.gz", voxels=noise())
    code, lines, second = call()
    assert code == 0 and second.items() > first.items()
    assert lines[0] == "5 of 6 scans are done already (--overwrite True does them again)"
    assert "1 of 1 scans done, 0 failed" in lines[-1]
    assert call() == (0, ["6 of 6 scans are done already (--overwrite True does them again)"], second)
    assert [(row["status"], row["error"]) for row in read_summary(tmp_path / "out")] == [("ok", "")] * 6


def test_overwrite_does_all_again(scans, infer, tmp_path):
    infer(scans, weights="random")
    at = times(tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in at}
    assert len(infer(scans, weights="random")) == 6
    assert times(tmp_path / "out") == at
    assert len(infer(scans, weights="random", overwrite=True)) == 6
    assert all(new > at[name] for name, new in times(tmp_path / "out").items())
    assert {name: (tmp_path / "out" / name).read_bytes() for name in at} == before


class TestOnlyWhatIsTheSameIsDone:
    @pytest.fixture
    def done_again(self, good, infer, tmp_path):
        """Names of the results that a second call with other options writes anew."""

        def done_again(**options):
            weights = options.pop("weights", "random")
            infer(good, weights="random")
            before = times(tmp_path / "out")
            rows = infer(good, weights=weights, **options)
            assert [row["status"] for row in rows] == ["ok"] * 5
            return sorted(n[0] for n, at in times(tmp_path / "out").items() if at != before.get(n))

        return done_again

    @pytest.mark.parametrize(
        "options",
        [
            {"target_spacing": [0.5, 0.5, 2]},
            {"scale_factor": [1, 1, 2]},
            {"default_factor": 3},
            {"output_dtype": "float32"},
            {"amp_dtype": "bfloat16"},
            {"weights": "zero"},
            {"postprocessing::transforms::0::_disabled_": True},
            {"preprocessing::transforms::1::upper": 99.0},
        ],
        ids=str,
    )
    def test_other_settings_do_all_again(self, done_again, options):
        assert done_again(**options) == [*"abcde"]

    @pytest.mark.parametrize("options", [{}, {"memory_gib": 1.0}, {"num_workers": 1}], ids=str)
    def test_what_gives_the_same_voxels_does_not(self, done_again, options):
        assert done_again(**options) == []

    def test_another_scan_of_the_same_name(self, good, infer, tmp_path):
        """Its result takes the place of the first one's, and so does its line: neither call believes the other's result."""
        other = tmp_path / "other" / "a.nii.gz"
        other.parent.mkdir()
        shutil.copy2(good / "c.nii.gz", other)
        infer(good, weights="random")
        mine = (tmp_path / "out" / "a_sr.nii.gz").read_bytes()
        files = [row["file"] for row in infer(other, weights="random")]
        assert str(other) in files and str(good / "a.nii.gz") not in files
        theirs = (tmp_path / "out" / "a_sr.nii.gz").read_bytes()
        assert theirs == (tmp_path / "out" / "c_sr.nii.gz").read_bytes() != mine
        before = times(tmp_path / "out")
        assert len(infer(good, weights="random")) == 5
        assert [n for n, at in times(tmp_path / "out").items() if at != before[n]] == ["a_sr.nii.gz"]
        assert (tmp_path / "out" / "a_sr.nii.gz").read_bytes() == mine

    def test_results_beside_the_scans_are_no_scans(self, good, infer):
        infer(good, good)
        names = sorted(p.name for p in good.iterdir())
        before = times(good)
        assert len(infer(good, good)) == 5
        assert times(good) == before
        rows = infer(good, good, overwrite=True)
        assert [row["status"] for row in rows] == ["ok"] * 5
        assert sorted(p.name for p in good.iterdir()) == names


def test_parts_of_a_list(good, infer, tmp_path):
    """As the tasks of a Slurm array have them."""
    names = [[row["file"][-8] for row in infer(good, tmp_path / f"{k}", part=[k, 3])] for k in range(3)]
    assert names == [["a", "d"], ["b", "e"], ["c"]]


class TestAtTheSameTime:
    @staticmethod
    def run(infer, calls):
        """Run calls in processes of their own, started together."""
        gate = FORK.Barrier(len(calls))

        def call(args, options):
            logging.disable()
            gate.wait(60)
            infer(*args, **options)

        processes = [FORK.Process(target=call, args=call_) for call_ in calls]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * len(calls)

    def test_two_calls_for_the_same_scans(self, scans, infer, read_summary, tmp_path):
        expected = infer(scans, tmp_path / "alone", "random")
        out = tmp_path / "out"
        self.run(infer, [((scans, out, "random"), {}), ((scans, out, "random"), {"num_workers": 1})])
        assert told(read_summary(out)) == told(expected)
        names = sorted(p.name for p in (tmp_path / "alone").iterdir())
        assert sorted(p.name for p in out.iterdir()) == names
        for name in (n for n in names if n != "summary.csv"):
            assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
        before = times(out)
        infer(scans, out, "random")
        assert times(out) == before

    def test_parts_lose_no_line(self, good, infer, read_summary, tmp_path):
        out = tmp_path / "out"
        self.run(infer, [((good, out, "random"), {"part": [k, 3]}) for k in range(3)])
        assert sorted(row["file"][-8] for row in read_summary(out)) == [*"abcde"]
        assert len(list(out.glob("*.nii.gz"))) == 5
        before = times(out)
        infer(good, out, "random")
        assert times(out) == before

    def test_two_settings_never_pass_for_one_another(self, good, infer, tmp_path):
        """Whoever came last: the next call with either setting leaves only its own results."""
        out = tmp_path / "out"
        self.run(infer, [((good, out, "random"), {"scale_factor": f}) for f in (2, 3)])
        infer(good, tmp_path / "alone", "random", scale_factor=2)
        infer(good, out, "random", scale_factor=2)
        for path in (tmp_path / "alone").glob("*.nii.gz"):
            assert (out / path.name).read_bytes() == path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("names", ["abcde", "a"], ids=["more scans", "fewer scans than processes"])
def test_torchrun(names, scans, infer, checkpoints, read_summary, tmp_path):
    """Two processes share the scans; a scan of one of them fails, and both end with exit code 1, when all is done."""
    expected = infer(scans, tmp_path / "alone", "random")
    for name in set("abcde") - set(names):
        (scans / f"{name}.nii.gz").unlink()
    if len(names) == 1:
        (scans / "bad.nii.gz").unlink()
    out, bundle = tmp_path / "out", ROOT / "bundles" / "brain_mri_sr_recnn"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        str([str(bundle / "configs/inference.json"), str(TORCHRUN)]),
    ]
    command += ["--bundle_root", str(bundle), "--dataset_dir", str(scans), "--output_dir", str(out)]
    command += ["--checkpoint", str(checkpoints["random"]), "--trained_range", "{}"]
    command += ["--network_def::num_layers", "2", "--network_def::num_filters", "2", "--preview::_disabled_", "True"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == (1 if len(names) > 1 else 0), run.stderr[-3000:]
    rows = read_summary(out)
    assert told(rows) == {f: row for f, row in told(expected).items() if Path(f).exists()}
    for name in names:
        result = f"{name}_sr.nii.gz"
        assert (out / result).read_bytes() == (tmp_path / "alone" / result).read_bytes()
    bars = set(re.findall(r"scans: \[\d+/(\d+)\]", run.stderr))
    assert bars == {"3" if len(names) > 1 else "1"}  # of the first process alone
    done = re.findall(r"(\d) of (\d) scans done", run.stdout)
    assert sorted(done) == ([("2", "3"), ("3", "3")] if len(names) > 1 else [("1", "1")])
