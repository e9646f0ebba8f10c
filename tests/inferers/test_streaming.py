"""Streaming a volume gives the voxels of one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from monai.networks.blocks import SubpixelUpsample
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from custom_components.inferers.planning import find_plan
from custom_components.inferers.receptive_field import footprint
from custom_components.inferers.streaming import Program
from custom_components.inferers.tiling import LiveBytes
from custom_components.inferers.trace import NotStreamableError, trace
from custom_components.networks import EDSR, RRLSRN


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


def preactivated(x: Tensor, m: nn.ModuleList, scale: Tensor) -> Tensor:
    h = m[0](x)
    for layer in list(m)[1:]:
        h = h + layer(F.relu(h))
    return h + m[0](x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "chain": lambda: chain(3, 3, 3, 3),
    "kernel 5 and 1": lambda: chain(5, 1, 3),
    "anisotropic kernels": lambda: chain((1, 3, 5), (3, 1, 1), (5, 3, 1)),
    "dilated": lambda: nn.Sequential(c3(2, 4, dilation=3), nn.LeakyReLU(0.1), c3(4, 1, dilation=2)),
    "groups": lambda: nn.Sequential(c3(2, 4, groups=2), nn.PReLU(4), c3(4, 2, groups=2, bias=False)),
    "residual": lambda: Wrapped(lambda x, m, s: m[1](F.relu(m[0](x))) + x[:, :1], c3(2), c3(3, 1)),
    "residual layers": lambda: Wrapped(preactivated, c3(2), c3(), c3(3, 3, 5), c3()),
    "sums of few and many channels": lambda: Wrapped(
        lambda x, m, s: (x[:, :1] + m[0](x)) * (m[1](x) + x), c3(2, 2, 5), c3(2, 1, 7)
    ),
    "sums with others' readers": lambda: Wrapped(
        lambda x, m, s: torch.add(h := m[0](x), g := m[1](h)) * g + torch.add(h, m[2](g), alpha=2), c3(2), c3(), c3()
    ),
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
    sizes = [n * f for n, f in zip(volume.shape[2:], program.factor, strict=True)]
    output = torch.full((1, program.channels, *sizes), torch.nan, dtype=volume.dtype)
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


def residual_layers() -> nn.Module:
    torch.manual_seed(0)
    return Wrapped(lambda x, m, s: preactivated(x, m, s) + x[:, :1], c3(2), c3(), c3())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_sums_in_place_are_the_sums(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype | None) -> None:
    """Also of the scan, which is in float32, and a result in low precision: to the bit."""
    volume, axes, results = torch.rand(1, 2, 9, 8, 7), [(0, 9), (0, 8), (0, 7)], []
    with torch.inference_mode():
        program, kinds = trace(residual_layers(), 3, 2), []
        for in_place in (True, False):
            if not in_place:
                monkeypatch.setattr(Program, "accumulator", lambda self, node: None)
            kinds.append([program.accumulator(node) for node in program.nodes if node.total])
            results.append(torch.empty(1, 3, 9, 8, 7))
            program.run(volume, results[-1], 0, axes, 2, torch.float32, dtype)
    assert torch.equal(*results)
    assert kinds == [[1, 1, 1, None], [None] * 4]


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


def transposed(padding: int | tuple[int, ...], **options: int | tuple[int, ...]) -> nn.ConvTranspose3d:
    return nn.ConvTranspose3d(2, 2, **{"kernel_size": 4, "stride": 2, "padding": padding, **options})


def with_edges(layer: nn.Module, *edges: int) -> nn.Module:
    return Wrapped(lambda x, m, s: m[0](F.pad(x, edges, mode="replicate")), layer)


def linear_twice(x: Tensor, m: nn.ModuleList, scale: Tensor) -> Tensor:
    return F.interpolate(
        m[0](F.interpolate(x, scale_factor=(1, 2, 3), mode="trilinear")), scale_factor=2.0, mode="trilinear"
    )


# Alone, so that the reach can be held against the receptive field, and within a network.
UPSAMPLING: dict[str, Callable[[], nn.Module]] = {
    "kernel 4": lambda: transposed(1),
    "kernel as stride": lambda: transposed(0, kernel_size=3, stride=3, bias=False),
    "kernel per axis": lambda: transposed((0, 2, 1), kernel_size=(2, 6, 3), stride=(2, 2, 1)),
    "kernel 5 by 3": lambda: transposed(1, kernel_size=5, stride=3),
    "one sided": lambda: transposed(0, kernel_size=1, output_padding=1),
    "dilated": lambda: transposed(2, kernel_size=3, dilation=2, output_padding=1),
    "groups": lambda: transposed(1, groups=2),
    "continued by its edge": lambda: with_edges(transposed(3), 1, 1, 1, 1, 1, 1),
    "continued per side": lambda: with_edges(transposed((1, 4, 2)), 1, 0, 1, 2, 0, 0),
    "pixel shuffle": lambda: SubpixelUpsample(3, 2, 2, scale_factor=2, apply_pad_pool=False),
    "interpolation": lambda: Wrapped(lambda x, m, s: F.interpolate(x, scale_factor=3, mode="trilinear")),
}


@pytest.mark.parametrize(
    "make", [*UPSAMPLING.values(), lambda: Wrapped(linear_twice, c3(2, 2))], ids=[*UPSAMPLING, "twice"]
)
def test_upsampling_equals_whole_pass(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    alone = make()
    network = Wrapped(lambda x, m, s: m[2](torch.relu(m[1](m[0](x)))), c3(2, 2), alone, c3(2, 2)).double()
    for shape in ((6, 5, 7), (1, 3, 2)):
        volume = torch.rand(1, 2, *shape, dtype=torch.float64)
        with torch.inference_mode():
            expected = network(volume)
            for axis, splits in enumerate([(1, 2, 2), (1, 1, 2), (1, 3, 1)]):
                for thickness in (1, 3, 99):
                    result = streamed(network, volume, axis, splits, thickness)
                    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", UPSAMPLING)
def test_reach_and_factor_are_those_of_the_receptive_field(name: str) -> None:
    network = UPSAMPLING[name]()
    seen = footprint(network, 3, 2)
    with torch.inference_mode():
        program = trace(network, 3, 2)
    assert program.factor == seen.factor
    assert tuple(-(-lag // f) for lag, f in zip(program.lags[-1], program.factor, strict=True)) == seen.halo


SUPER_RESOLUTION: dict[str, Callable[[int], nn.Module]] = {
    **{f"RRLSRN x{f}": lambda d, f=f: RRLSRN(d, 1, 3, 4, scale_factor=f) for f in (2, 4, 8)},
    "RRLSRN of two channels": lambda d: RRLSRN(d, 2, 2, 4, scale_factor=4),
    "RRLSRN of own weights": lambda d: RRLSRN(d, 1, 2, 4, scale_factor=4, share_weights=False),
    **{f"EDSR x{f}": lambda d, f=f: EDSR(d, 1, 1, 4, scale_factor=f, residual=True) for f in (1, 2, 3, 4)},
    "EDSR of two channels": lambda d: EDSR(d, 2, 1, 4, scale_factor=2),
}


def super_resolution(name: str, spatial_dims: int, spread: float = 0.2) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    network = SUPER_RESOLUTION[name](spatial_dims)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=spread)
    return network, next(network.parameters()).shape[1]


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_super_resolution_equals_whole_pass(name: str, spatial_dims: int) -> None:
    network, channels = super_resolution(name, spatial_dims)
    network.double()
    with torch.inference_mode():
        for shape in ((5, 3, 4), (1, 2, 1)):
            volume = torch.rand(1, channels, *shape[:spatial_dims], dtype=torch.float64)
            expected = network(volume)
            extent = float(expected.max() - expected.min())
            for axis, splits, thickness in (
                (0, (1, 1, 2), 1),
                (0, (1, 2, 1), 3),
                (1, (2, 1, 1), 99),
                (1, (1, 1, 1), 2),
            ):
                result = streamed(network, volume, axis, splits[:spatial_dims], thickness)
                assert float((result - expected).abs().max()) <= 1e-12 * extent


def convolution_flops(
    x: Sequence[int], weight: Sequence[int], *_: object, out_shape: Sequence[int], **__: object
) -> int:
    return 2 * math.prod(weight) * math.prod(out_shape[2:])


@pytest.mark.parametrize("name", SUPER_RESOLUTION)
@pytest.mark.parametrize("memory_gib", [1.0, 0.003])
def test_plan_of_super_resolution_keeps_to_its_memory_and_work(name: str, memory_gib: float) -> None:
    network, channels = super_resolution(name, 3)
    volume = torch.rand(1, channels, *((6, 8, 7) if "8" in name else (20, 17, 23)))
    plan = find_plan(network, volume.shape, torch.device("cpu"), torch.float32, None, memory_gib)
    assert plan.method == "stream"
    assert isinstance(plan.network, Program)
    output = torch.full((1, 1, *plan.output_sizes), torch.nan)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as whole:
            expected = network(volume)
        counted = {torch.ops.aten.mkldnn_convolution: convolution_flops}
        with FlopCounterMode(display=False, custom_mapping=counted) as spent, LiveBytes() as live:
            for window in plan.windows:
                plan.network.run(volume, output, plan.axis, window, plan.thickness, torch.float32)
    assert float((output - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())
    # The counter sees the voxels that RRLSRN adds at the edge of its image too.
    assert plan.network.operations(plan.sizes) == pytest.approx(whole.get_total_flops(), rel=0.02)
    # A window that is at the border on one side only gets padding on both, which is cut away.
    assert plan.work == pytest.approx(spent.get_total_flops() / whole.get_total_flops(), rel=0.15)
    parameters = sum(p.nbytes for p in network.parameters())
    assert live.peak <= plan.memory + volume.nbytes + output.nbytes + parameters + 2**16


def test_slices_are_computed_together_within_the_memory() -> None:
    network, _ = super_resolution("RRLSRN x2", 2)
    slices = torch.rand(40, 1, 30, 28)
    plans = [
        find_plan(network, (count, *slices.shape[1:]), torch.device("cpu"), torch.float32, None, memory_gib)
        for count, memory_gib in ((1, 1.0), (40, 1.0), (40, 1e-4))
    ]
    assert [plan.batch for plan in plans] == [1, 40, 1]
    assert plans[0].thickness == plans[1].thickness == 30
    together = plans[1]
    assert isinstance(together.network, Program)
    output = torch.full((40, 1, *together.output_sizes), torch.nan)
    with torch.inference_mode():
        expected = torch.cat([network(item) for item in slices.split(1)])
        with LiveBytes() as live:
            for window in together.windows:
                together.network.run(slices, output, together.axis, window, together.thickness, torch.float32)
    assert float((output - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())
    assert live.peak <= together.memory + slices.nbytes + output.nbytes + 2**16


def test_choices_by_channels_are_made_anew() -> None:
    network = Wrapped(lambda x, m, s: m[0](x) if x.shape[1] % 2 == 1 else m[1](x[:, :1]), c3(1, 1), c3(1, 1))
    with torch.inference_mode():
        for channels in (1, 2, 1):
            volume = torch.rand(1, channels, 5, 5, 5)
            torch.testing.assert_close(streamed(network, volume, 0, (1, 1, 1), 2), network(volume))


def test_shuffled_slices() -> None:
    network = nn.Sequential(nn.Conv2d(1, 9, 3, padding=1), nn.PixelShuffle(3), nn.Conv2d(1, 1, 3, padding=1)).double()
    image = torch.rand(1, 1, 7, 5, dtype=torch.float64)
    with torch.inference_mode():
        for axis in (0, 1):
            torch.testing.assert_close(streamed(network, image, axis, (1, 1), 2), network(image), rtol=0, atol=1e-12)


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
        (Wrapped(lambda x, m, s: x if x.shape[2] > x.shape[1] else -x), "cannot trace"),
        (nn.ConvTranspose3d(2, 2, 4, stride=2), "ConvTranspose3d"),
        (
            Wrapped(lambda x, m, s: F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True)),
            "interpolate",
        ),
        (Wrapped(lambda x, m, s: F.interpolate(x, size=(10, 8, 6), mode="trilinear")), "interpolate"),
        (Wrapped(lambda x, m, s: F.interpolate(x, scale_factor=1.5, mode="trilinear")), "interpolate"),
        (Wrapped(lambda x, m, s: F.interpolate(x, scale_factor=2.0)), "interpolate"),
        (Wrapped(lambda x, m, s: m[0](F.pad(x, [1] * 6, mode="reflect")), transposed(3)), "pad"),
        (Wrapped(lambda x, m, s: -F.pad(x, [1] * 6, mode="replicate")), "reads a padded value"),
        (Wrapped(lambda x, m, s: F.pad(x, [1] * 6, mode="replicate")), "not one tensor"),
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


def test_a_forward_put_in_place_of_the_own_one_is_not_passed_over() -> None:
    network = nn.Sequential(c3(2, 2))
    network[0].forward = lambda x: x * 2  # type: ignore[method-assign]
    with pytest.raises(NotStreamableError, match="a forward of its own"):
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
