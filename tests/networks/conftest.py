"""One random state for each test of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def size() -> Callable[[nn.Module], int]:
    """Number of parameters of a network."""
    return lambda network: sum(p.numel() for p in network.parameters())
