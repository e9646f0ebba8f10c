"""Streaming a volume gives the voxels of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from custom_components.inferers.trace import NotStreamableError, trace


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On volumes this small, handing work to threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Wrapped(nn.Module):
    """A forward made of a function over layers."""

    def __init__(self, forward: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.layers, self.scale)


def c3(inputs: int = 3, outputs: int = 3, size: int | tuple[int, ...] = 3, **options: int) -> nn.Conv3d:
    return nn.Conv3d(inputs, outputs, size, padding="same", **options)


def chain(*sizes: int | tuple[int, ...]) -> nn.Module:
    return nn.Sequential(*(layer for s in sizes for layer in (c3(2, 2, s), nn.ReLU(inplace=True))))


def nested(x: Tensor, m: nn.ModuleList, scale: Tensor) -> Tensor:
    h = m[0](x)
    return m[3](h + scale * m[2](torch.relu(m[1](h)))) - h


def early_and_late(x: Tensor, m: nn.ModuleList, scale: Tensor) -> Tensor:
    h = m[0](x).sigmoid()
    return torch.cat([m[1](h), h], dim=1) * 2 - 0.5


def rectified_in_place(x: Tensor, m: nn.ModuleList, scale: Tensor) -> Tensor:
    h = m[0](x)
    return F.relu(h, inplace=True) + h


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: chain(3, 3, 3, 3),
    "kernel 5 and 1": lambda: chain(5, 1, 3),
    "anisotropic kernels": lambda: chain((1, 3, 5), (3, 1, 1), (5, 3, 1)),
    "dilated": lambda: nn.Sequential(c3(2, 4, dilation=3), nn.LeakyReLU(0.1), c3(4, 1, dilation=2)),
    "groups": lambda: nn.Sequential(c3(2, 4, groups=2), nn.PReLU(4), c3(4, 2, groups=2, bias=False)),
    "residual": lambda: Wrapped(lambda x, m, s: m[1](F.relu(m[0](x))) + x[:, :1], c3(2), c3(3, 1)),
    "nested skips": lambda: Wrapped(nested, c3(2), c3(3, 3, 5), c3(), c3()),
    "concatenation": lambda: Wrapped(
        lambda x, m, s: m[2](torch.cat([x, m[0](x), F.gelu(m[1](m[0](x)))], 1)), c3(2), c3(), c3(8, 1)
    ),
    "a value used early and late": lambda: Wrapped(early_and_late, c3(2, 1, 7), c3(1, 1, 7)),
    "batch norm": lambda: nn.Sequential(c3(2), nn.BatchNorm3d(3), nn.SiLU(), nn.Dropout(0.5), c3()).eval(),
    "ends in a clamp": lambda: Wrapped(lambda x, m, s: torch.clamp(m[0](x), 0.2, 0.4), c3(2, 1)),
}


def random_network(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network


def streamed(network: nn.Module, volume: Tensor, axis: int, splits: tuple[int, ...], thickness: int) -> Tensor:
    program = trace(network, volume.ndim - 2, volume.shape[1])
    output = torch.full((1, program.nodes[-1].channels, *volume.shape[2:]), torch.nan, dtype=volume.dtype)
    cuts = [[(i * n // k, (i + 1) * n // k) for i in range(k)] for n, k in zip(volume.shape[2:], splits, strict=True)]
    for first in cuts[0]:
        for second in cuts[1]:
            for third in cuts[2] if len(cuts) == 3 else [()]:
                program.run(volume, output, axis, [first, second, third][: len(cuts)], thickness, volume.dtype)
    return output


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("axis", "splits"), [(0, (1, 1, 1)), (1, (2, 1, 3)), (2, (9, 2, 1))])
@pytest.mark.parametrize("thickness", [1, 4, 99])
def test_equals_whole_pass(name: str, axis: int, splits: tuple[int, ...], thickness: int) -> None:
    network = random_network(name)
    volume = torch.rand(1, 2, 9, 10, 13, dtype=torch.float64)
    with torch.inference_mode():
        expected = network(volume)
        result = streamed(network, volume.clone(), axis, splits, thickness)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("thickness", [1, 2, 7])
def test_axis_shorter_than_the_halo(size: int, thickness: int) -> None:
    network = random_network("nested skips")
    volume = torch.rand(1, 2, size, 4, 1, dtype=torch.float64)
    with torch.inference_mode():
        for axis in range(3):
            result = streamed(network, volume, axis, (1, 1, 1), thickness)
            torch.testing.assert_close(result, network(volume), rtol=0, atol=1e-12)


def test_two_dimensions() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 1, (3, 1), padding=(1, 0))).double()
    image = torch.rand(1, 1, 11, 17, dtype=torch.float64)
    with torch.inference_mode():
        for axis, splits in ((0, (1, 3)), (1, (4, 1))):
            torch.testing.assert_close(streamed(network, image, axis, splits, 2), network(image), rtol=0, atol=1e-12)


def test_input_is_not_changed() -> None:
    network = nn.Sequential(c3(2), nn.ReLU(inplace=True), nn.Identity(), c3())
    volume = torch.rand(1, 2, 6, 6, 6) - 0.5
    before = volume.clone()
    with torch.inference_mode():
        streamed(network, volume, 0, (1, 1, 1), 2)
    assert torch.equal(volume, before)


def test_steps_stay_thin_at_both_ends() -> None:
    seen: list[int] = []

    class Watched(nn.ReLU6):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape[2])
            return super().forward(x)

    network = nn.Sequential(*(layer for _ in range(8) for layer in (c3(2, 2), Watched())))
    Watched.__module__ = nn.ReLU6.__module__  # torch.fx keeps modules of torch.nn whole
    volume = torch.rand(1, 2, 21, 4, 4)
    with torch.inference_mode():
        streamed(network, volume, 0, (1, 1, 1), 2)
    del seen[: 2 * 8]  # the check against the network on a small volume
    assert max(seen) == 2
    assert sum(seen) == 8 * 21  # each slice of each layer once


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Conv3d(2, 2, 3), "keeps the size"),
        (nn.Conv3d(2, 2, 3, padding=1, padding_mode="reflect"), "zero padding"),
        (nn.Conv3d(2, 2, 3, stride=2, padding=1), "stride 1"),
        (nn.InstanceNorm3d(2), "InstanceNorm3d"),
        (nn.BatchNorm3d(2), "training mode"),
        (nn.Dropout(), "training mode"),
        (Wrapped(lambda x, m, s: x - x.mean()), "mean"),
        (Wrapped(lambda x, m, s: x[:, :, 1:]), "getitem"),
        (Wrapped(lambda x, m, s: x if x.sum() > 0 else -x), "cannot trace"),
        (nn.Sequential(nn.ReLU(inplace=True), c3(2, 2)), "in place"),
        (Wrapped(rectified_in_place, c3(2, 2)), "in place"),
    ],
)
def test_not_streamable(network: nn.Module, reason: str) -> None:
    with pytest.raises(NotStreamableError, match=reason), torch.inference_mode():
        trace(network, 3, 2)


def test_hooks_are_not_passed_over() -> None:
    network = nn.Sequential(c3(2, 2))
    network[0].register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(NotStreamableError, match="hooks"):
        trace(network, 3, 2)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace.* is deprecated:DeprecationWarning")
def test_script_modules_are_not_streamable() -> None:
    network = torch.jit.trace(nn.Sequential(c3(2, 2)), torch.zeros(1, 2, 4, 4, 4))
    with pytest.raises(NotStreamableError, match="ScriptModule"):
        trace(network, 3, 2)


def test_an_optional_argument_is_no_second_input() -> None:
    class Upsampling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = c3(1, 1)

        def forward(self, x: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
            y: Tensor = self.layer(x)
            return y

    with torch.inference_mode():
        assert len(trace(Upsampling(), 3, 1).nodes) == len(trace(nn.Sequential(c3(1, 1)), 3, 1).nodes)
