"""Run a bundle as a user does: by its config in this process, or by the command line in another one."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from scipy.ndimage import gaussian_filter

from custom_components.networks import ReCNN

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_recnn"
INFERENCE = BUNDLE / "configs" / "inference.json"
TINY = {"num_layers": 2, "num_filters": 2}

# Importing torch and MONAI takes seconds. This program does it once and forks a process for each command line that it
# reads; the process then runs `python -m monai.bundle` from its first line to the interpreter's own exit code.
SERVER = """
import json, os, resource, runpy, signal, sys
import fire, ignite.handlers, matplotlib.figure, monai.bundle, nibabel, torch
monai.bundle.ComponentLocator().get_component_module_name("Compose")
import custom_components.engines, custom_components.handlers, custom_components.inferers, custom_components.transforms
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job would ignore
for number, name in enumerate((os.devnull, *request["streams"])):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), number)
if request["file_size"]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
sys.argv = ["monai.bundle", *request["arguments"]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


class Command:
    """A command line that runs; `wait` gives its exit code, `stdout` and `stderr` what it has written."""

    def __init__(self, server: subprocess.Popen[str], streams: list[Path]) -> None:
        self.server, self.streams = server, streams
        self.pid = int(server.stdout.readline())
        self.code: int | None = None

    def wait(self) -> int:
        if self.code is None:
            self.code = int(self.server.stdout.readline())
        return self.code

    @property
    def stdout(self) -> str:
        return self.streams[0].read_text()

    @property
    def stderr(self) -> str:
        return self.streams[1].read_text()

    @property
    def lines(self) -> list[str]:
        """Lines of the log, without those of MONAI's own about its arguments, which carry no logger's name."""
        return [line for line in self.stdout.splitlines() if line and not re.match(r"\S+ \S+ - INFO - ", line)]

    @property
    def errors(self) -> list[str]:
        """The lines that tell of an error, in the log or on stderr."""
        log = [line for line in self.stdout.splitlines() if " - ERROR - " in line]
        return log + [line for line in self.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def _server() -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, env=environment, **pipes) as server:
        yield server
        server.stdin.close()


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Weights of a tiny network: `zero` makes SR equal to the spline, `random` does not."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    networks = {"random": ReCNN(3, **TINY), "zero": ReCNN(3, **TINY)}
    for parameter in networks["zero"].parameters():
        torch.nn.init.zeros_(parameter)
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in networks}


@pytest.fixture
def start(_server, checkpoints, tmp_path) -> Callable[..., Command]:
    """Start `python -m monai.bundle run` on the inference config with a tiny network; options as keywords."""
    count = iter(range(1000))

    def start(scans, output, file_size=0, **options) -> Command:
        network = {f"network_def::{key}": value for key, value in TINY.items()}
        given = {
            "config_file": INFERENCE,
            "bundle_root": BUNDLE,
            "dataset_dir": scans,
            "output_dir": output,
            "checkpoint": checkpoints["zero"],
            **network,
            **options,
        }
        arguments = ["run"]
        for key, value in given.items():
            arguments += [f"--{key}", str(value)]
        streams = [tmp_path / f"{next(count)}.{name}" for name in ("stdout", "stderr")]
        request = {"arguments": arguments, "streams": [str(s) for s in streams], "file_size": file_size}
        print(json.dumps(request), file=_server.stdin, flush=True)
        return Command(_server, streams)

    return start


@pytest.fixture
def command(start) -> Callable[..., Command]:
    """Run it to its end."""

    def run(*args, **kwargs) -> Command:
        process = start(*args, **kwargs)
        process.wait()
        return process

    return run


@pytest.fixture
def infer(checkpoints, tmp_path, monkeypatch) -> Callable[..., list[dict[str, str]]]:
    """Run the inference config in this process, without pictures, and give the lines of its summary.

    A failed scan leaves its line; the exit code is a matter of the command line.
    """
    monkeypatch.setattr(sys, "path", sys.path[:])  # both are changed by a workflow
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    def run(scans, output=None, weights="zero", **overrides) -> list[dict[str, str]]:
        output = output or tmp_path / "out"
        workflow = ConfigWorkflow(
            str(INFERENCE),
            logging_file=False,
            workflow_type="infer",
            bundle_root=str(BUNDLE),
            dataset_dir=str(scans),
            output_dir=str(output),
            checkpoint=str(checkpoints[weights]),
            **{f"network_def::{key}": value for key, value in TINY.items()},
            **{"preview::_disabled_": True, "progress_bar::_disabled_": True, "inferer::progress": False},
            **{"trained_range": {}, **overrides},
        )
        workflow.initialize()
        with contextlib.suppress(SystemExit):
            workflow.run()
        return _read_summary(Path(output))

    return run


def _read_summary(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def read_summary() -> Callable[[Path], list[dict[str, str]]]:
    return _read_summary


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Voxels without an empty background."""

    def noise(shape=(9, 8, 7), low=100, high=900, dtype=np.int16) -> np.ndarray:
        return np.random.default_rng(0).integers(low, high, shape).astype(dtype)

    return noise


@pytest.fixture(scope="session")
def write_training_scans(tmp_path_factory) -> Callable[[tuple[int, int, int]], Path]:
    """Write scans of a shape: subjects for training, as the overlays for shipped weights select them, and one for validation."""

    def write(shape: tuple[int, int, int]) -> Path:
        folder = tmp_path_factory.mktemp("training_scans")
        adults = [{"subject": f"a{i}", "modality": "T2w" if i < 3 else "T1w"} for i in range(4)]
        training = [*adults, {"subject": "sta-25", "modality": "T2w", "population": "fetal"}]
        entries = {"training": training, "validation": [{"subject": "v"}]}
        for seed, entry in enumerate([*training, *entries["validation"]]):
            rng = np.random.default_rng(seed)
            volume = gaussian_filter(rng.random(shape), 2) + 0.15 * gaussian_filter(rng.random(shape), 0.7)
            volume = 1000 * (volume - volume.min()) / np.ptp(volume)
            entry["image"] = f"{entry['subject']}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), folder / entry["image"])
        (folder / "dataset.json").write_text(json.dumps(entries))
        return folder

    return write


@pytest.fixture(scope="session")
def training_scans(write_training_scans) -> Path:
    """What `prepare_training` trains on; a test file may put scans of another shape in its place."""
    return write_training_scans((46, 48, 44))


@pytest.fixture
def prepare_training(training_scans, tmp_path, monkeypatch) -> Callable[..., ConfigWorkflow]:
    """Build the training of a bundle in this process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what a workflow sets
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(ROOT)

    def make(bundle, *overlays, **options):
        files = [str(bundle / "configs" / "train.json"), *map(str, overlays)]
        given = {"bundle_root": str(bundle), "dataset_dir": str(training_scans), "output_dir": str(tmp_path / "out")}
        given |= {"device": "$torch.device('cpu')", "num_workers": 0, **options}
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **given)
        workflow.initialize()
        return workflow

    return make


@pytest.fixture
def infer_with(tmp_path, monkeypatch) -> Callable[..., tuple[list[dict[str, str]], Path]]:
    """Run the inference of a bundle with its shipped weights in this process: lines of the summary, and the folder."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    count = iter(range(1000))

    def run(bundle, scans, **options):
        output = tmp_path / f"result_{next(count)}"
        given = {"bundle_root": str(bundle), "dataset_dir": str(scans), "output_dir": str(output)}
        given |= {"device": "$torch.device('cpu')", "progress_bar::_disabled_": True, "inferer::progress": False}
        file = str(bundle / "configs" / "inference.json")
        workflow = ConfigWorkflow(file, logging_file=False, workflow_type="infer", **given, **options)
        workflow.initialize()
        with contextlib.suppress(SystemExit):
            workflow.run()
        return _read_summary(output), output

    return run
