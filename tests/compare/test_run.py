"""A comparison computes what is missing and nothing twice. The methods' processes are stood in for, but for one slow test."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import sys
import types
from math import isnan
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy import ndimage

from custom_components.acquisition import interpolation_operator
from custom_components.acquisition.grid import target_shape
from custom_components.compare import run
from custom_components.compare.config import read_study
from custom_components.compare.results import read_results
from custom_components.errors import ScanError
from custom_components.networks import ReCNN
from custom_components.transforms import LoadScan, SaveScan

BUNDLE = "bundles/brain_mri_sr_recnn"
METRICS = ("psnr", "ssim", "rmse", "psnr_head", "ssim_head", "rmse_head")


class Processes:
    """Stands in for `run.start`: interpolates each LR scan and adds `offset`, and does as it is told for a folder.

    `does[folder]`: `killed` or `interrupted` after the first scan, `refuses` before it, `fails` on the first, or gives a wrong
    `shape`.
    """

    def __init__(self) -> None:
        self.started: list[tuple[str, tuple[str, ...]]] = []
        self.inputs: dict[str, bytes] = {}
        self.does: dict[str, str] = {}
        self.offset = 0.0

    def __call__(self, arguments, log, keep_open, wait) -> int:
        os.fstat(keep_open)
        assert arguments[0] == "run"
        given = dict(zip(arguments[1::2], arguments[2::2], strict=True))
        configs = ast.literal_eval(given["--config_file"])
        assert configs[0] == str(Path(given["--bundle_root"]) / "configs" / "inference.json")
        config = json.loads(Path(configs[-1]).read_text())
        folder = Path(config["output_dir"])
        name = f"{folder.parent.name}/{folder.name}"
        self.started.append((name, tuple(Path(p).name.removesuffix(".nii.gz") for p in config["dataset_dir"])))
        does, lines = self.does.get(name, ""), []
        if does == "refuses":
            log.write_text("loading\nerror: expected better weights\nbye\n")
            return 1
        for number, path in enumerate(config["dataset_dir"]):
            self.inputs[f"{name}/{Path(path).name}"] = Path(path).read_bytes()
            error = "expected a better scan" if does == "fails" and number == 0 else ""
            if not error:
                self.write(LoadScan()(path), folder, config["scale_factor"], 1 if does == "shape" else 0)
            lines.append({"file": path, "status": "failed" if error else "ok", "seconds": "2.5", "error": error})
            lines[-1]["peak_memory_gib"] = "0.75"
            with (folder / "summary.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, lines[0])
                writer.writeheader()
                writer.writerows(lines)
            wait()
            if does == "interrupted":
                raise KeyboardInterrupt
            if does == "killed":
                log.write_text("")
                return -9
        log.write_text("done\n")
        return int(does == "fails")

    def write(self, lr, folder, factor, fewer) -> None:
        shape = target_shape(lr.shape[1:], [1.0] * 3, scale_factor=factor)
        hr = interpolation_operator(lr.shape[1:], shape)(lr.as_tensor()[None])[0] + self.offset
        SaveScan(folder, dtype="float32")(MetaTensor(hr[..., fewer:], meta=dict(lr.meta)))


@pytest.fixture
def reports(monkeypatch):
    """Reports that were asked for: number of rows each."""
    reports: list[int] = []
    module = types.ModuleType("custom_components.compare.report")
    module.write_report = lambda output_dir, results, study: reports.append(len(results))
    monkeypatch.setitem(sys.modules, "custom_components.compare.report", module)
    return reports


@pytest.fixture
def processes(monkeypatch, reports):
    processes = Processes()
    monkeypatch.setattr(run, "start", processes)
    return processes


@pytest.fixture
def scan(tmp_path):
    """Write a HR scan."""

    def scan(name, seed=0, shape=(13, 12, 11)):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
        voxels = (1000 * (noise - noise.min()) / np.ptp(noise)).astype(np.int16)
        path = tmp_path / "hr" / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(voxels, np.diag([-1, 1, 1.2, 1])), path)
        return path

    return scan


@pytest.fixture
def study(tmp_path, scan):
    """Read a study of two scans and two methods, `spline` and `mine` with the weights `mine.pt`."""
    scan("a", 0)
    scan("b", 1)
    (tmp_path / "mine.pt").write_text("first")

    def study(**changes):
        mine = {"bundle": BUNDLE, "options": {"checkpoint": str(tmp_path / "mine.pt")}}
        given = {
            "dataset_dir": str(tmp_path / "hr"),
            "split": "all",
            "output_dir": str(tmp_path / "out"),
            "methods": {"spline": {"bundle": BUNDLE, "overlays": ["configs/baselines/bspline.json"]}, "mine": mine},
        }
        return read_study(**{**given, **changes})

    return study


def keys(results):
    return [(r.scale_factor, r.scan, r.method) for r in results]


def errors(results):
    return {f"{r.scale_factor}/{r.method}/{r.scan}": r.error for r in results if r.error}


class TestComparison:
    def test_rows_files_and_the_same_lr_for_each(self, study, processes, reports, tmp_path):
        own = study(scale_factors=[2, [1, 1, 3]])
        results = run.compare(own)
        assert keys(results) == [(f, s, m) for f in ("2", "1x1x3") for s in ("a", "b") for m in ("spline", "mine")]
        assert processes.started == [(f"x{f}/{m}", ("a", "b")) for f in ("2", "1x1x3") for m in ("spline", "mine")]
        for factor in ("2", "1x1x3"):
            for name in ("a", "b"):
                one, other = (processes.inputs[f"x{factor}/{m}/{name}.nii.gz"] for m in ("spline", "mine"))
                assert one == other == own.lowres_path(factor, name).read_bytes()
        truth = nib.load(own.truth_path("1x1x3", "a"))
        assert truth.shape == (13, 12, 9)
        image = np.asarray(nib.load(own.result_path("1x1x3", "mine", "a")).dataobj)
        mse = np.mean((np.clip(image, 0, None) - np.asarray(truth.dataobj)) ** 2, dtype=np.float64)
        row = next(r for r in results if keys([r]) == [("1x1x3", "a", "mine")])
        assert row.psnr == pytest.approx(-10 * np.log10(mse))
        assert (row.seconds, row.peak_memory_gib, row.error) == (2.5, 0.75, "")
        assert read_results(tmp_path / "out" / "results.csv") == results
        assert reports == [8]

    def test_nothing_is_computed_twice(self, study, processes, reports):
        first = run.compare(study())
        before = len(processes.started)
        assert run.compare(study()) == first
        assert len(processes.started) == before
        assert reports == [4, 4]

    def test_a_new_scan_factor_or_method_alone_is_computed(self, study, processes, scan):
        first = run.compare(study())
        scan("c", 2)
        more = run.compare(study(scale_factors=[2, 3]))
        assert processes.started[2:4] == [("x2/spline", ("c",)), ("x2/mine", ("c",))]
        assert processes.started[4:] == [("x3/spline", ("a", "b", "c")), ("x3/mine", ("a", "b", "c"))]
        assert [r for r in more if r.scale_factor == "2" and r.scan != "c"] == first
        assert run.compare(study(scale_factors=[2]))[:4] == first
        assert len(processes.started) == 6

    def test_a_result_without_a_row_is_only_scored(self, study, processes, tmp_path):
        first = run.compare(study())
        table = tmp_path / "out" / "results.csv"
        lines = table.read_text().splitlines(keepends=True)
        table.write_text("".join(lines[:2]))
        assert run.compare(study()) == first  # with seconds and memory
        table.unlink()
        assert run.compare(study()) == first
        assert len(processes.started) == 2

    def test_a_result_that_is_gone_is_computed_again(self, study, processes):
        own = study()
        first = run.compare(own)
        own.result_path("2", "mine", "b").unlink()
        assert run.compare(study()) == first
        assert processes.started[2:] == [("x2/mine", ("b",))]
        own.result_path("2", "mine", "a").unlink()
        run.compare(study())
        (own.output_dir / "results.csv").unlink()
        assert run.compare(study()) == first  # the summary tells of `a` alone, the notes of both

    def test_rows_are_kept_as_soon_as_they_are_scored(self, study, processes, monkeypatch, tmp_path):
        own, score, scored = study(), run.score_file, []

        def stop(*args):
            if len(scored) == 3:
                raise KeyboardInterrupt
            scored.append(args[1:])
            return score(*args)

        monkeypatch.setattr(run, "score_file", stop)
        with pytest.raises(KeyboardInterrupt):
            run.compare(own)
        assert len(read_results(tmp_path / "out" / "results.csv")) == 3
        monkeypatch.setattr(run, "score_file", lambda *args: scored.append(args[1:]) or score(*args))
        results = run.compare(study())
        assert len(scored) == 4 == len(set(scored))
        assert len(processes.started) == 2
        assert all(r.seconds == 2.5 for r in results)

    def test_stopped_while_a_method_runs(self, study, processes):
        processes.does["x2/spline"] = "interrupted"
        with pytest.raises(KeyboardInterrupt):
            run.compare(study())
        processes.does.clear()
        results = run.compare(study())
        assert processes.started[1:] == [("x2/spline", ("b",)), ("x2/mine", ("a", "b"))]
        assert all(r.seconds == 2.5 for r in results)  # of the run before too, whose summary the next one replaced


class TestChanges:
    """What has changed since is computed anew, and nothing else."""

    def test_checkpoint(self, study, processes, tmp_path):
        first = run.compare(study())
        (tmp_path / "mine.pt").write_text("second")
        processes.offset = 0.1
        results = run.compare(study())
        assert processes.started[2:] == [("x2/mine", ("a", "b"))]
        assert results[0] == first[0] and results[2] == first[2]
        assert results[1].rmse > first[1].rmse + 0.05

    def test_checkpoint_of_another_name_with_the_same_weights(self, study, processes, tmp_path):
        run.compare(study())
        (tmp_path / "mine.pt").rename(tmp_path / "moved.pt")
        run.compare(study(**{"methods::mine::options::checkpoint": str(tmp_path / "moved.pt")}))
        assert len(processes.started) == 2

    def test_option_and_overlay(self, study, processes, tmp_path):
        run.compare(study())
        (tmp_path / "o.json").write_text('{"memory_gib": 1.0}')
        run.compare(study(**{"methods::mine::overlays": [str(tmp_path / "o.json")]}))
        (tmp_path / "o.json").write_text('{"memory_gib": 1.5}')
        run.compare(study(**{"methods::mine::overlays": [str(tmp_path / "o.json")]}))
        run.compare(
            study(**{"methods::mine::overlays": [str(tmp_path / "o.json")], "methods::mine::options::amp_dtype": "x"})
        )
        assert processes.started[2:] == [("x2/mine", ("a", "b"))] * 3

    def test_options_of_one_scale_factor(self, study, processes, tmp_path):
        run.compare(study(scale_factors=[2, 3]))
        own = study(**{"scale_factors": [2, 3], "methods::mine::by_scale::3": {"memory_gib": 1.0}})
        run.compare(own)
        assert processes.started[4:] == [("x3/mine", ("a", "b"))]
        configs = {f: json.loads((own.folder(f, "mine") / "run.json").read_text()) for f in ("2", "3")}
        assert "memory_gib" not in configs["2"] and configs["3"]["memory_gib"] == 1.0
        assert [configs[f]["scale_factor"] for f in ("2", "3")] == [2.0, 3.0]
        assert configs["2"]["output_dtype"] == "float32"

    def test_hr_scan(self, study, processes, scan):
        own = study()
        first = run.compare(own)
        before = own.lowres_path("2", "b").read_bytes()
        scan("b", 7)
        results = run.compare(study())
        assert processes.started[2:] == [("x2/spline", ("b",)), ("x2/mine", ("b",))]
        assert own.lowres_path("2", "b").read_bytes() != before
        assert results[:2] == first[:2] and results[2].psnr != first[2].psnr

    @pytest.mark.parametrize("changes", [{"noise_std": 0.05}, {"protocol": "box"}])
    def test_noise_and_protocol(self, study, processes, changes):
        first = run.compare(study())
        results = run.compare(study(**changes))
        assert len(processes.started) == 4
        assert all(a.psnr != b.psnr for a, b in zip(first, results, strict=True))

    def test_other_noise(self, study, processes):
        first = run.compare(study(noise_std=0.05))
        assert all(a.psnr > b.psnr for a, b in zip(first, run.compare(study(noise_std=0.1)), strict=True))

    def test_scan_that_was_only_touched(self, study, processes, tmp_path):
        run.compare(study())
        os.utime(tmp_path / "hr" / "a.nii.gz", (1, 1))
        run.compare(study())
        assert len(processes.started) == 2

    def test_no_row_of_what_a_method_was_before_is_left_meanwhile(self, study, processes, monkeypatch, tmp_path):
        run.compare(study())
        (tmp_path / "mine.pt").write_text("second")
        monkeypatch.setattr(run.Comparison, "run", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.compare(study())
        assert {r.method for r in read_results(tmp_path / "out" / "results.csv")} == {"spline"}


class TestFailures:
    """A failure leaves a row with its reason; the others go on; the next call tries again."""

    @pytest.mark.parametrize(
        ("does", "wanted"),
        [
            ("killed", {"2/spline/b": "ended by signal 9"}),
            ("refuses", dict.fromkeys(("2/spline/a", "2/spline/b"), "ended with exit code 1: expected better weights")),
            ("fails", {"2/spline/a": "expected a better scan"}),
        ],
    )
    def test_process(self, study, processes, does, wanted):
        processes.does["x2/spline"] = does
        results = run.compare(study())
        assert errors(results) == wanted
        for r in results:
            assert all(isnan(getattr(r, m)) for m in METRICS) == bool(r.error)
        processes.does.clear()
        assert errors(run.compare(study())) == {}
        assert processes.started[2:] == [("x2/spline", tuple(key[-1] for key in wanted))]

    def test_wrong_shape(self, study, processes):
        processes.does["x2/mine"] = "shape"
        results = run.compare(study())
        assert set(errors(results)) == {"2/mine/a", "2/mine/b"}
        assert "expected the truth's (12, 12, 10) voxels, got (12, 12, 9)" in results[1].error
        processes.does.clear()
        assert errors(run.compare(study())) == {}

    def test_damaged_result(self, study, processes, tmp_path):
        own = study()
        run.compare(own)
        own.result_path("2", "mine", "a").write_bytes(b"no image")
        (tmp_path / "out" / "results.csv").unlink()
        assert list(errors(run.compare(study()))) == ["2/mine/a"]

    def test_hr_scan_that_cannot_be_used(self, study, processes, scan, tmp_path):
        (tmp_path / "hr" / "0.nii.gz").write_bytes(b"no image")
        results = run.compare(study())
        assert set(errors(results)) == {"2/spline/0", "2/mine/0"}
        assert all("0.nii.gz: expected" in e for e in errors(results).values())
        assert processes.started == [("x2/spline", ("a", "b")), ("x2/mine", ("a", "b"))]
        scan("0", 5)
        assert errors(run.compare(study())) == {}

    def test_checkpoint_that_goes_meanwhile(self, study, processes, monkeypatch, tmp_path):
        own, score = study(), run.score_file
        monkeypatch.setattr(run, "score_file", lambda *a: (tmp_path / "mine.pt").unlink(missing_ok=True) or score(*a))
        results = run.compare(own)
        assert set(errors(results)) == {"2/mine/a", "2/mine/b"}
        assert re.search(r"expected the checkpoint .*mine\.pt, got: no such file", results[1].error)

    def test_two_at_a_time(self, study, processes):
        own = study()
        with run.only_one(own.output_dir), pytest.raises(ScanError, match="expected one comparison at a time"):
            run.compare(own)
        assert processes.started == []


class TestDefinition:
    """A method that cannot be run is refused before anything is computed."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"chekpoint": "x"},
                r"method 'mine' at scale factor 2: .* got 'chekpoint' \(did you mean 'checkpoint'\?\)",
            ),
            ({"network_def::a::b": 1}, "expected an id of the bundle's config, got 'network_def::a::b'"),
            ({"scale_factor": 3}, r"which are the study's, got \['scale_factor'\]"),
            ({"checkpoint": "$@bundle_root + '/no.pt'"}, r"expected the checkpoint .*/no\.pt, got: no such file"),
            ({"checkpoint": "$@nowhere"}, "expected a config that can be read, got: .*nowhere"),
        ],
    )
    def test_bad_options(self, study, processes, options, message, tmp_path):
        own = study(**{"methods::mine::options": options})
        with pytest.raises(ValueError, match=message):
            run.compare(own)
        assert processes.started == [] and not (tmp_path / "out").exists()

    def test_bad_overlay(self, study, tmp_path):
        (tmp_path / "o.json").write_text("{")
        with pytest.raises(ScanError, match="method 'mine' at scale factor 2: expected configs of a bundle, got"):
            run.definition(study(**{"methods::mine::overlays": [str(tmp_path / "o.json")]}), "2", "mine")

    def test_weights(self, study, tmp_path):
        assert run.definition(study(), "2", "spline")["weights"] is None  # its handlers load none
        own = run.definition(study(), "2", "mine")
        assert own["weights"] == run.sha256(tmp_path / "mine.pt")
        assert str(tmp_path) not in json.dumps(own)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("a\nerror: this one\nlast\n", "this one"),
        ("2025 - x - ERROR - one\n2025 - x - ERROR - two\nlast", "two"),
        (" 10%|#\r 20%|##\rTypeError: no\n\n", "TypeError: no"),
        ("", "no output"),
    ],
)
def test_last_error(log, line):
    assert run.last_error(log) == line


def test_sha256_of_a_folder_tells_of_each_file(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = run.sha256(tmp_path)
    (tmp_path / "b").write_text("3")
    assert run.sha256(tmp_path) != before


@pytest.mark.slow
def test_a_process_gives_what_a_user_gets(study, reports, tmp_path):
    """The real process: the same file as the command of the README, and a foreign checkpoint among good methods."""
    torch.manual_seed(0)
    network = ReCNN(3, num_layers=2, num_filters=2)
    torch.save(network.state_dict(), tmp_path / "tiny.pt")
    tiny = {"network_def::num_layers": 2, "network_def::num_filters": 2}
    good = {"bundle": BUNDLE, "options": {**tiny, "checkpoint": str(tmp_path / "tiny.pt")}}
    bad = {"bundle": BUNDLE, "options": {"checkpoint": str(tmp_path / "tiny.pt")}}
    own = study(methods={"bad": bad, "good": good}, scale_factors=[[1, 2, 1.5]], reference="good")
    results = run.compare(own)
    assert set(errors(results)) == {"1x2x1.5/bad/a", "1x2x1.5/bad/b"}
    assert all("tiny.pt: expected the weights of ReCNN" in e for e in errors(results).values())
    command = ["run", "--config_file", str(Path(BUNDLE) / "configs" / "inference.json"), "--bundle_root", BUNDLE]
    command += ["--dataset_dir", str(own.lowres_path("1x2x1.5", "a")), "--output_dir", str(tmp_path / "user")]
    command += ["--scale_factor", "[1,2,1.5]", "--output_dtype", "float32", "--checkpoint", str(tmp_path / "tiny.pt")]
    command += [word for key, value in tiny.items() for word in (f"--{key}", str(value))]
    with run.only_one(tmp_path / "user") as lock:
        assert run.start(command, tmp_path / "log.txt", lock, lambda: None) == 0, (tmp_path / "log.txt").read_text()
    result = own.result_path("1x2x1.5", "good", "a")
    assert (tmp_path / "user" / "a_sr.nii.gz").read_bytes() == result.read_bytes()
    assert sorted(p.name for p in result.parent.iterdir()) == [
        *("a_sr.nii.gz", "b_sr.nii.gz", "log.txt", "method.json", "run.json", "summary.csv")
    ]
    row = next(r for r in results if not r.error)
    assert 0 < row.seconds < 60 and 0.05 < row.peak_memory_gib < 8
