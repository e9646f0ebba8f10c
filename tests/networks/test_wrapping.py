"""Wrappers are taken off in any order, and what is no wrapper is left alone."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from custom_components.handlers import load_weights
from custom_components.handlers.training_state import weights
from custom_components.networks.wrapping import unwrapped


@pytest.fixture
def process_group():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(network):
    return torch.compile(network, backend="eager")  # only wrapped: nothing is compiled before it is called


class HasModule(nn.Module):
    """A network that is no wrapper, though a part of it has the name of a wrapper's."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 1)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        compiled,
        lambda network: compiled(nn.DataParallel(network)),
        lambda network: nn.DataParallel(compiled(network)),
        lambda network: nn.DataParallel(compiled(nn.DataParallel(network))),
    ],
    ids=["DataParallel", "compiled", "compiled DataParallel", "DataParallel of compiled", "three"],
)
class TestWrapped:
    def test_is_the_network(self, wrap):
        network = nn.Linear(2, 1)
        wrapped = wrap(network)
        assert wrapped is not network
        assert unwrapped(wrapped) is network

    def test_weights_are_those_of_the_bare_network(self, wrap, tmp_path):
        """Written and read by wrapped networks, both by the names of the bare one."""
        network, other = nn.Linear(2, 1), nn.Linear(2, 1)
        state = weights(wrap(network))
        assert list(state) == ["weight", "bias"]
        torch.save(network.state_dict(), tmp_path / "w.pt")
        load_weights(wrap(other), tmp_path / "w.pt")
        assert torch.equal(other.weight, network.weight) and torch.equal(other.bias, network.bias)


@pytest.mark.usefixtures("process_group")
def test_distributed():
    network = nn.Linear(2, 1)
    assert unwrapped(DistributedDataParallel(network)) is network
    assert unwrapped(compiled(DistributedDataParallel(network))) is network


@pytest.mark.parametrize("make", [lambda: nn.Linear(2, 1), lambda: nn.Sequential(nn.Linear(2, 1)), HasModule])
def test_bare_network_is_left_alone(make):
    network = make()
    assert unwrapped(network) is network


def test_what_is_no_network_is_left_alone():
    optimizer = torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)
    assert unwrapped(optimizer) is optimizer
    assert unwrapped(torch.relu) is torch.relu
