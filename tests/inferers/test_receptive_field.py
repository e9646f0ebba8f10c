"""The halo is found from the network's structure."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from custom_components.inferers import receptive_field
from custom_components.inferers.receptive_field import footprint


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On volumes this small, handing work to threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conv(dims: int, size: int | tuple[int, ...], dilation: int = 1, channels: int = 2) -> nn.Module:
    kind = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return kind(channels, channels, size, padding="same", dilation=dilation)


class Skip(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


@pytest.mark.parametrize(
    ("network", "dims", "expected"),
    [
        (conv(3, 3), 3, (1, 1, 1)),
        (conv(3, (1, 3, 7)), 3, (0, 1, 3)),
        (conv(2, 5, dilation=3), 2, (6, 6)),
        (nn.Sequential(conv(2, 3), nn.ReLU(), conv(2, (5, 1)), nn.Sigmoid(), conv(2, 3, 2)), 2, (5, 3)),
        (nn.Sequential(*(conv(2, 3) for _ in range(40))), 2, (40, 40)),
        (Skip(nn.Sequential(conv(3, 3), nn.ReLU(), conv(3, 3))), 3, (2, 2, 2)),
        (nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(2, 1, 7)), 2, (3, 3)),
        (nn.Identity(), 2, (0, 0)),
    ],
)
def test_halo(network: nn.Module, dims: int, expected: tuple[int, ...]) -> None:
    assert receptive_field(network, dims, 2) == expected


def test_weights_do_not_hide_a_path() -> None:
    network = nn.Sequential(conv(2, 3), nn.ReLU(), conv(2, 3))
    for parameter in network.parameters():
        nn.init.constant_(parameter, -1.0)  # every rectifier is shut
    nn.init.zeros_(network[2].weight)
    assert receptive_field(network, 2, 2) == (2, 2)


def test_network_is_not_changed() -> None:
    network = conv(2, 3).double().train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    receptive_field(network, 2, 2)
    assert network.training
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float64 for k, v in network.state_dict().items())


def test_twenty_layers_are_quick() -> None:
    layers = [layer for _ in range(20) for layer in (conv(3, 3, channels=64), nn.ReLU())]
    started = time.perf_counter()
    assert receptive_field(nn.Sequential(*layers), 3, 64) == (20, 20, 20)
    assert time.perf_counter() - started < 2


def test_upsampling_factor_and_halo_in_input_voxels() -> None:
    network = nn.Sequential(conv(2, 3), nn.Upsample(scale_factor=(1, 3), mode="nearest"), conv(2, 3))
    seen = footprint(network, 2, 2)
    assert seen.factor == (1, 3)
    assert seen.halo == (2, 2)  # one LR voxel by each convolution, the second one being on the HR grid across


@pytest.mark.filterwarnings("ignore:.torch.jit.trace.* is deprecated:DeprecationWarning")
def test_script_module() -> None:
    network = torch.jit.trace(nn.Sequential(conv(2, 3), nn.ReLU(), conv(2, (3, 5))), torch.zeros(1, 2, 8, 8))
    assert receptive_field(network, 2, 2) == (2, 3)


def test_infinite_receptive_field() -> None:
    with pytest.raises(ValueError, match="must be finite, at most 512"):
        receptive_field(nn.Sequential(conv(2, 3), nn.InstanceNorm2d(2)), 2, 2)


def test_strides_are_refused() -> None:
    network = nn.Sequential(nn.MaxPool2d(2), nn.Upsample(scale_factor=2, mode="nearest"))

    class Padded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return network(nn.functional.pad(x, (1, 1, 1, 1)))[..., 1:-1, 1:-1]

    with pytest.raises(ValueError, match="must treat all voxels alike"):
        receptive_field(Padded(), 2, 2)


def test_output_of_another_size() -> None:
    with pytest.raises(ValueError, match="integer multiple of the input's"):
        receptive_field(nn.Conv2d(2, 2, 3, padding=2), 2, 2)
