"""The benchmark runs, and its parts measure what they say."""

from __future__ import annotations

import re
import time

import pytest
import torch
from torch import nn

from custom_components import benchmark


def test_timed_takes_the_best_call() -> None:
    pauses = iter((0.05, 0.0))
    assert benchmark.timed(lambda: time.sleep(next(pauses)), torch.device("cpu"), repeats=2)[1] < 0.05


def test_convolution_flops() -> None:
    network = nn.Sequential(nn.Conv3d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv3d(5, 1, 1))
    assert benchmark.convolution_flops(network, 10) == 2 * 10 * (2 * 5 * 27 + 5)


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
