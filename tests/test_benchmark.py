"""The benchmark runs, and its parts measure what they say."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from custom_components import benchmark


def test_timed_takes_the_best_call() -> None:
    pauses = iter((0.05, 0.0))
    assert benchmark.timed(lambda: time.sleep(next(pauses)), torch.device("cpu"), repeats=2)[1] < 0.05


def test_convolution_flops() -> None:
    network = nn.Sequential(nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.ConvTranspose3d(5, 1, 4, stride=2, padding=1))
    voxels = 3 * 4 * 5
    assert benchmark.convolution_flops(network, (1, 2, 3, 4, 5)) == 2 * voxels * (2 * 5 * 27 + 5 * 64)
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_convolution_share_is_a_share() -> None:
    volume, layer = torch.rand(1, 4, 24, 24, 24), nn.Conv3d(4, 4, 3)
    cpu = torch.device("cpu")
    with torch.inference_mode():
        alone = benchmark.convolution_share(lambda: [layer(volume) for _ in range(5)], cpu)
        diluted = benchmark.convolution_share(lambda: (layer(volume), time.sleep(0.2)), cpu)
    assert diluted < alone <= 1
    assert benchmark.convolution_share(lambda: time.sleep(0.01), cpu) == 0


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    options = "--shape 10 12 9 --layers 3 --filters 4 --threads 1 --acquisition-size 16"
    try:
        benchmark.main(options.split())
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    exact = re.search(r"^ExactInferer +\S+ +\S+ +\S+ +(\S+)", printed, flags=re.MULTILINE)
    assert exact is not None
    assert float(exact[1]) <= 1e-5
    assert re.search(r"convolutions take \d+ %", printed)
    acquired = re.search(r"largest difference (\S+) of the range", printed)
    assert acquired is not None
    assert float(acquired[1]) < 1e-4


def bundle(folder: Path, target: str, inputs: dict[str, str], spatial_dims: int = 3) -> str:
    network = {
        "_target_": f"custom_components.networks.{target}",
        "spatial_dims": spatial_dims,
        "num_layers": 2,
        "num_filters": 16,
    }
    inferer = {"_target_": "custom_components.inferers.ExactInferer", "progress": True, "memory_gib": "@memory_gib"}
    config = {"memory_gib": 2, "network_def": network, "inferer": {**inferer, "spatial_dims": spatial_dims}, **inputs}
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    return str(folder)


def test_table_of_bundles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interpolated = bundle(tmp_path / "on_hr_grid", "ReCNN", {})
    upsampling = bundle(tmp_path / "on_lr_grid", "RRLSRN", {"network_input": "lowres"})
    slices = bundle(tmp_path / "slices", "RRLSRN", {"network_input": "lowres"}, spatial_dims=2)
    (tmp_path / "wide.json").write_text(json.dumps({"network_def::num_filters": 32}))
    wide = f"{interpolated}+{tmp_path / 'wide.json'}"
    threads = torch.get_num_threads()
    options = "--shape 96 96 80 --scale_factor 2 --threads 1 --repeats 2"
    try:
        benchmark.main([*options.split(), "--bundles", interpolated, wide, upsampling, slices])
    finally:
        torch.set_num_threads(threads)
    rows = [re.split(r" {2,}", row.strip()) for row in capsys.readouterr().out.splitlines()]
    table = {row[0]: [float(cell) for cell in row[1:6]] for row in rows if len(row) == 7 and row[0] != "network"}
    assert list(table) == ["on_hr_grid", "on_hr_grid + wide", "on_lr_grid", "slices"]
    assert table["on_hr_grid"][1] == 1
    lr, hr = 48 * 48 * 40, 96 * 96 * 80
    layers, slices_layers = 27 * (16 + 16 * 16) + 16 * 64 + 64, 9 * (16 + 16 * 16) + 16 * 16 + 16
    expected = [2 * hr * 27 * 2 * 16, 2 * hr * 27 * 2 * 32, 2 * lr * layers, 2 * lr * slices_layers]
    assert [row[2] for row in table.values()] == pytest.approx([e / 1e9 for e in expected], abs=0.06)
