"""Exported networks give what the network gives, at other sizes too, and TensorRT is prepared as far as a CPU goes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, onnx_export
from monai.networks import trt_compiler
from torch import nn

from custom_components import runtimes
from custom_components.errors import ScanError, reason
from custom_components.inferers import ExactInferer
from custom_components.networks import DCSRN, EDSR, RRLSRN, SRCNN, ReCNN, RRDBNet
from custom_components.runtimes import __main__ as command
from custom_components.runtimes import compare, tensorrt

ROOT = Path(__file__).parents[2]
# whose networks take the image and no more; that of the one left out is exported by `export_any_scale`
BUNDLES = sorted(path for path in (ROOT / "bundles").glob("*") if path.is_dir() and path.name != "brain_mri_sr_any")
OVERLAY = ROOT / "configs" / "inference" / "tensorrt.json"
SMALL = {"num_filters": 6}
NETWORKS = {
    "ReCNN": (3, 2, partial(ReCNN, num_layers=3, **SMALL)),
    "SRCNN": (3, 1, partial(SRCNN, edge_padding=True, num_filters=(6, 4))),
    "DCSRN": (3, 1, partial(DCSRN, num_layers=2, growth_rate=4, first_filters=4)),
    "EDSR": (3, 1, partial(EDSR, num_blocks=1, scale_factor=2, residual=True, **SMALL)),
    "RRLSRN": (2, 2, partial(RRLSRN, num_layers=2, scale_factor=4, **SMALL)),
    "RRDBNet": (2, 1, partial(RRDBNet, num_blocks=1, growth=4, scale_factor=2, residual=True, **SMALL)),
}
EXPORTS = {
    "ts": (lambda network, path, *_: runtimes.export_torchscript(network, path), runtimes.load_torchscript),
    "pt2": (runtimes.export_program, runtimes.load_program),
    "onnx": (runtimes.export_onnx, partial(runtimes.load_onnx, threads=1)),
}


def random_network(name):
    """With random weights everywhere, batch norm's statistics too, so that no layer is the identity."""
    spatial_dims, in_channels, build = NETWORKS[name]
    torch.manual_seed(0)
    network = build(spatial_dims, in_channels).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return network, spatial_dims, in_channels


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[pytest.mark.slow] if kind == "onnx" and name != "RRLSRN" else [])
        for name in NETWORKS
        for kind in EXPORTS
    ],
)
def test_an_export_takes_any_batch_and_size(name, kind, tmp_path):
    network, spatial_dims, in_channels = random_network(name)
    write, read = EXPORTS[kind]
    write(network, tmp_path / f"model.{kind}", spatial_dims, in_channels)
    assert [file.name for file in tmp_path.iterdir()] == [f"model.{kind}"]
    run = read(tmp_path / f"model.{kind}")
    for shape in ((1, 5, 14, 11), (3, 17, 1, 6)):
        x = images(shape[0], in_channels, *shape[1 : 1 + spatial_dims])
        with torch.inference_mode():
            torch.testing.assert_close(run(x), network(x), rtol=0, atol=2e-5)
    if kind == "onnx":
        session = onnxruntime.InferenceSession(os.fspath(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        inputs, outputs = session.get_inputs(), session.get_outputs()
        assert [(value.name, value.shape[:2]) for value in (*inputs, *outputs)] == [
            ("x", ["batch", in_channels]),
            ("pred", ["batch", 1]),
        ]


@pytest.mark.parametrize("kind", EXPORTS)
def test_what_cannot_be_exported(kind, tmp_path):
    network, *dims = random_network("ReCNN")
    write = EXPORTS[kind][0]
    with pytest.raises(ValueError, match="evaluation mode, got one in training mode"):
        write(network.train(), tmp_path / f"model.{kind}", *dims)
    (tmp_path / "file").write_text("")
    with pytest.raises(ScanError, match="expected to write the file"):
        write(network.eval(), tmp_path / "file" / f"model.{kind}", *dims)
    if kind != "ts":
        with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, got 1"):
            write(network, tmp_path / f"model.{kind}", 1)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def pretend(monkeypatch, *present, missing=()):
    """Make some packages look present and others missing."""
    find = importlib.util.find_spec
    found = {**dict.fromkeys(present, find("json")), **dict.fromkeys(missing)}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found[name] if name in found else find(name))


def test_missing_packages_are_named(monkeypatch, tmp_path):
    network, *dims = random_network("ReCNN")
    pretend(monkeypatch, missing=("onnxscript", "onnxruntime"))
    with pytest.raises(ScanError, match=r"^ONNX export: expected the packages onnx, onnxscript, got no onnxscript$"):
        runtimes.export_onnx(network, tmp_path / "model.onnx", *dims)
    with pytest.raises(ScanError, match=r"^ONNX: expected the packages onnxruntime, got no onnxruntime$"):
        runtimes.load_onnx(tmp_path / "model.onnx")


# Comparison


def test_measure_takes_turns_and_finds_the_difference():
    called = []

    def way(name, factor):
        def run(volume):
            called.append(name)
            return volume * factor

        return compare.Runtime(run)

    volume = torch.linspace(-1, 3, 24).reshape(1, 1, 2, 3, 4)
    found = compare.measure({"a": way("a", 1), "b": way("b", 1.5)}, volume, repeats=3, progress=False)
    assert called == ["a", "b"] * 4
    assert (found["a"].difference, found["b"].difference) == (0, pytest.approx(1.5 / 4))
    assert min(row.seconds for row in found.values()) > 0
    with pytest.raises(ValueError, match=r"b: expected a result of \(1, 1, 2, 3, 4\), got \(1, 1, 2, 3\)"):
        compare.measure({"a": way("a", 1), "b": compare.Runtime(lambda v: v[..., 0])}, volume, progress=False)
    with pytest.raises(ValueError, match="repeats must be >= 1, got 0"):
        compare.measure({"a": way("a", 1)}, volume, repeats=0, progress=False)


def rows_of(text):
    table = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    return {row[0]: row[1:] for row in table if not row[0].startswith(("-", "runtime"))}


@pytest.mark.parametrize(
    "bundle",
    [pytest.param(b, marks=[] if b.name == "brain_mri_sr_pnorm" else pytest.mark.slow) for b in BUNDLES],
    ids=lambda path: path.name,
)
def test_the_table_of_a_bundle(bundle, tmp_path, capsys):
    threads = torch.get_num_threads()
    words = f"--bundle {bundle} --folder {tmp_path} --size 9 11 10 --threads 1 --repeats 1 --output {tmp_path}/table.md"
    try:
        command.main(words.split())
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    table = rows_of(printed)
    exact = [
        "PyTorch, channels_last",
        "TorchScript, frozen",
        "torch.export",
        "ONNX Runtime",
        "ExactInferer, as shipped",
    ]
    rounded = "PyTorch, channels_last, bfloat16"
    assert table.keys() == {"PyTorch, float32", rounded, *exact}
    assert max(float(table[name][2]) for name in exact) < 1e-5
    assert 1e-4 < float(table[rounded][2]) < 0.05
    files = {"TorchScript, frozen": "model.ts", "torch.export": "model.pt2", "ONNX Runtime": "model.onnx"}
    for name, file in files.items():
        assert float(table[name][3]) == pytest.approx((tmp_path / bundle.name / file).stat().st_size / 1e6, abs=0.006)
    assert rows_of((tmp_path / "table.md").read_text()) == table


def test_wrong_options(tmp_path, capsys):
    with pytest.raises(ScanError, match=r"nowhere: expected a bundle with configs/inference\.json, got no such file"):
        command.main(["--bundle", str(tmp_path / "nowhere")])
    with pytest.raises(ScanError, match=r"brain_mri_sr_any: expected a network of an image alone.*export_any_scale"):
        command.main(["--bundle", str(ROOT / "bundles" / "brain_mri_sr_any"), "--folder", str(tmp_path)])
    for words in ("--size 0 4 4", "--repeats 0", "--threads 0"):
        with pytest.raises(SystemExit):
            command.main(["--bundle", str(tmp_path), *words.split()])
        assert "expected a number >= 1, got 0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_documented_flags_of_monai_give_an_onnx_file_of_free_sizes(bundle, tmp_path):
    """As `python -m monai.bundle onnx_export`: without an input shape, which MONAI takes from the metadata."""
    definition = json.loads((bundle / "configs/inference.json").read_text())
    dims, channels = definition["spatial_dims"], definition["network_def"].get("in_channels", 1)
    file = tmp_path / "model.onnx"
    onnx_export(
        "network_def",
        filepath=str(file),
        ckpt_file=str(bundle / "models/model.pt"),
        meta_file=str(bundle / "configs/metadata.json"),
        config_file=str(bundle / "configs/inference.json"),
        use_trace=True,
        converter_kwargs={
            "input_names": ["x"],
            "output_names": ["pred"],
            "dynamic_shapes": {"x": ["batch", None, *["d", "h", "w"][-dims:]]},
        },
    )
    network = ConfigParser(definition).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    session = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
    for shape in ((1, 9, 14, 11), (2, 7, 8, 10)):
        x = images(shape[0], channels, *shape[1 : 1 + dims])
        with torch.inference_mode():
            np.testing.assert_allclose(
                session.run(["pred"], {"x": x.numpy()})[0], network(x).numpy(), rtol=0, atol=1e-4
            )


# Tiles of bounded size


class Limited(nn.Module):
    """Stands for an engine: takes one image at a time, none above a size, as contiguous memory."""

    def __init__(self, network, size):
        super().__init__()
        self.network, self.size, self.sizes = network, size, []

    def forward(self, x):
        assert len(x) == 1
        assert max(x.shape[2:]) <= self.size
        assert x.is_contiguous()
        self.sizes.append(tuple(x.shape[2:]))
        return self.network(x)


@pytest.mark.parametrize(
    ("name", "size"), [("ReCNN", 12), ("SRCNN", 19), ("EDSR", 17), ("RRLSRN", 14), ("RRDBNet", 51)]
)
def test_tiles_give_what_one_pass_gives(name, size):
    network, spatial_dims, in_channels = random_network(name)
    engine = Limited(network, size)
    x = images(2, in_channels, *(21, 16, 13)[:spatial_dims]) if name != "RRDBNet" else images(1, in_channels, 70, 55)
    result = runtimes.TileInferer(network, size, spatial_dims)(x, engine)
    with torch.inference_mode():
        torch.testing.assert_close(result, network(x), rtol=0, atol=2e-5)
    assert len(engine.sizes) > len(x)


@pytest.mark.parametrize("all_axes", [False, True])
def test_tiles_of_the_slices_of_a_volume(all_axes):
    """With a wished shape, which the network does not make across the slices: as `ExactInferer` gives it."""
    network, *_ = random_network("RRLSRN")
    x, shape = images(1, 2, 20, 18, 15), (80, 72, 21)
    expected = ExactInferer(spatial_dims=2, all_axes=all_axes)(x, network, shape)
    result = runtimes.TileInferer(network, 16, 2, all_axes=all_axes)(x, Limited(network, 16), shape)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)


def test_a_size_that_leaves_nothing_between_the_halos():
    network, *_ = random_network("ReCNN")
    with pytest.raises(ValueError, match="size must be > 6, the halos of this network, got 6"):
        runtimes.TileInferer(network, 6, 3)(images(1, 2, 9, 9, 9), network)
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        runtimes.TileInferer(network, 0, 3)


# TensorRT


def test_tensorrt_is_refused_in_one_line(monkeypatch):
    network, *_ = random_network("ReCNN")
    pretend(monkeypatch, missing=("tensorrt", "polygraphy"))
    with pytest.raises(ScanError, match=r"^TensorRT: expected the packages .*, got no tensorrt and no polygraphy$"):
        runtimes.tensorrt_network(network, "model.pt", 3, 64)
    pretend(monkeypatch, "tensorrt", "polygraphy")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ScanError, match="expected a CUDA GPU, got none"):
        runtimes.tensorrt_network(network, "model.pt", 3, 64)
    for wrong, message in (
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"size": 1}, "size must be >= 2, got 1"),
        ({"precision": "int8"}, "precision must be one of .*, got 'int8'"),
    ):
        with pytest.raises(ValueError, match=message):
            runtimes.tensorrt_network(network, "model.pt", **{"spatial_dims": 3, "size": 64, **wrong})


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:.*dynamic axes will not be renamed", "ignore:unclosed file"
)
@pytest.mark.parametrize("name", [pytest.param("ReCNN", marks=pytest.mark.slow), "RRLSRN"])
def test_monai_makes_the_network_that_tensorrt_would_compile(name, monkeypatch, tmp_path):
    """Up to where TensorRT is needed: ONNX, here given to onnxruntime at other sizes; one network has an optional argument."""
    network, spatial_dims, in_channels = random_network(name)
    x = images(1, in_channels, *(11, 6, 13)[:spatial_dims])
    with torch.inference_mode():
        expected = network(x)
    monkeypatch.setattr(trt_compiler, "make_tensor", lambda tensor: tensor)  # it would go to the GPU
    made = {}

    def build(compiler, path):
        made.update(precision=compiler.precision, profiles=compiler.profiles)
        return onnx.load(path).SerializeToString()

    monkeypatch.setattr(trt_compiler.TrtCompiler, "_onnx_to_trt", build)
    (tmp_path / "model.pt").write_bytes(b"weights")
    old = tmp_path / "model.pt.fp16_64.plan"
    old.write_bytes(b"engine of older weights")
    os.utime(old, (0, 0))
    with monkeypatch.context() as gpu:  # for this call alone: torch itself looks for a GPU too
        pretend(gpu, "tensorrt", "polygraphy")
        gpu.setattr(torch.cuda, "is_available", lambda: True)
        gpu.setattr(trt_compiler, "trt_imported", True)
        gpu.setattr(trt_compiler, "polygraphy_imported", True)
        compiled = runtimes.tensorrt_network(network, tmp_path / "model.pt", spatial_dims, 64, in_channels, "fp16")
    assert compiled is network
    assert not old.exists()
    compiler = compiled._trt_compiler
    network.forward = compiler.old_forward  # as its own forward does for the export
    compiler._build_and_save(network, {**compiler.defaults, "x": images(1, in_channels, *(7, 9, 8)[:spatial_dims])})
    profile = [[1, in_channels, *[n] * spatial_dims] for n in (1, 64, 64)]
    assert made == {"precision": "fp16", "profiles": [{"x": profile}]}
    session = onnxruntime.InferenceSession(old.read_bytes(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected.numpy(), rtol=0, atol=2e-5)


def infer(bundle, scan, output, *overlays):
    root = output.parent / "bundle"
    if not root.exists():
        shutil.copytree(bundle, root)
    files = [str(root / "configs/inference.json"), *map(str, overlays)]
    options = {"bundle_root": str(root), "dataset_dir": str(scan), "output_dir": str(output)}
    options["device"] = "$torch.device('cpu')"
    run = ConfigWorkflow(config_file=files, logging_file=False, workflow_type="inference", **options)
    run.initialize()
    run.run()
    return run


@pytest.fixture
def scan(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what a bundle's `initialize` sets
    monkeypatch.setattr(sys, "path", list(sys.path))
    voxels = np.random.default_rng(0).random((16, 14, 12), dtype=np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 2, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_overlay_asks_for_tensorrt_in_one_line(bundle, monkeypatch):
    pretend(monkeypatch, missing=("tensorrt", "polygraphy"))
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs/inference.json"), str(OVERLAY)])
    parser["bundle_root"] = str(bundle)
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content("network")
    assert reason(caught.value).startswith("TensorRT: expected the packages tensorrt, polygraphy")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain_mri_sr_recnn", "brain_mri_sr_rrlsrn"])
def test_the_overlay_gives_what_the_bundle_gives(name, scan, monkeypatch, tmp_path):
    """With PyTorch in the engine's place."""
    pretend(monkeypatch, "tensorrt", "polygraphy")
    gpu = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setattr(tensorrt, "torch", gpu)  # for the overlay alone: torch itself looks for a GPU too
    compiled = []

    def stand_in(network, base_path, args):
        compiled.append((Path(base_path).name, args["precision"]))
        return network

    monkeypatch.setattr(tensorrt, "trt_compile", stand_in)
    smaller = tmp_path / "smaller.json"
    smaller.write_text('{"tensorrt_size": 24, "tensorrt_precision": "tf32"}')
    infer(ROOT / "bundles" / name, scan, tmp_path / "plain")
    run = infer(ROOT / "bundles" / name, scan, tmp_path / "tiles", OVERLAY, smaller)
    assert compiled == [("model.pt.tf32_24", "tf32")]
    assert isinstance(run.parser.get_parsed_content("inferer"), runtimes.TileInferer)
    assert "tf32" in run.parser.get_parsed_content("unfinished::made_by")  # so that another precision is done anew
    (plain, tiles) = (next((tmp_path / folder).rglob("*.nii.gz")) for folder in ("plain", "tiles"))
    np.testing.assert_allclose(nibabel.load(tiles).get_fdata(), nibabel.load(plain).get_fdata(), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(nibabel.load(tiles).affine, nibabel.load(plain).affine)
