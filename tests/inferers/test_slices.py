"""A 2D network over the slices of a volume: `ExactInferer(spatial_dims=2)` equals a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import tqdm.auto
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from scipy import ndimage
from torch import Tensor, nn

from custom_components.inferers import ExactInferer
from custom_components.inferers.planning import GIB
from custom_components.inferers.tiling import LiveBytes
from custom_components.networks import EDSR, RRLSRN, ReCNN


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On volumes this small, handing work to threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


def loop(network: Callable[[Tensor], Tensor], volume: Tensor, axis: int) -> Tensor:
    volume = torch.as_tensor(volume)
    with torch.inference_mode():
        results = [network(volume.select(axis + 2, i)) for i in range(volume.shape[axis + 2])]
    return torch.stack(results, axis + 2)


def zoomed(volume: Tensor, shape: Sequence[int]) -> Tensor:
    """Cubic splines of scipy between voxel centres over the same field of view, `(1, 1, X, Y, Z)`."""
    zoom = [m / n for m, n in zip(shape, volume.shape[2:], strict=True)]
    result = ndimage.zoom(volume[0, 0].double().numpy(), zoom, order=3, mode="nearest", grid_mode=True)
    return torch.from_numpy(result)[None, None]


def hr_grid(channels: int = 1) -> nn.Module:
    return ReCNN(2, channels, num_layers=3, num_filters=4).eval()


def lr_grid(scale: int = 2) -> nn.Module:
    return RRLSRN(2, num_layers=2, num_filters=4, scale_factor=scale).eval()


def across(volume: Tensor, axis: int) -> MetaTensor:
    return MetaTensor(volume, meta={"slice_axis": axis})


def slices(**kwargs: object) -> ExactInferer:
    return ExactInferer(spatial_dims=2, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("part", [None, 0.4])
def test_equals_a_loop_over_slices(axis: int, scale: int, part: float | None) -> None:
    """Of two scans; also where a part of the memory that a slice would take has to do."""
    network = hr_grid() if scale == 1 else lr_grid()
    volume = torch.rand(2, 1, 9, 15, 22)
    inferer, one_slice = slices(), volume.movedim(axis + 2, 4).shape
    if part is not None:
        plan = inferer.plan(one_slice, network)
        inferer = slices(memory_gib=part * plan.memory / GIB)
        assert inferer.plan(one_slice, network).memory < plan.memory
    result = inferer(across(volume, axis), network)
    assert result.shape == (2, 1, *(n if a == axis else scale * n for a, n in enumerate((9, 15, 22))))
    assert result.is_contiguous()
    torch.testing.assert_close(result, loop(network, volume, axis), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_equals_monai_s_on_the_hr_grid(axis: int) -> None:
    network, volume = hr_grid(2), torch.rand(1, 2, 5, 6, 4)
    with torch.inference_mode():
        expected = SliceInferer(axis, roi_size=(-1, -1), sw_batch_size=3)(volume, network)
    torch.testing.assert_close(slices()(across(volume, axis), network), expected)


def test_last_axis_where_nothing_tells() -> None:
    network, volume = hr_grid(), torch.rand(1, 1, 4, 5, 3)
    for given in (volume, MetaTensor(volume), MetaTensor(volume, meta={"slice_axis": None})):
        torch.testing.assert_close(slices()(given, network), loop(network, volume, 2))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_single_slice(axis: int) -> None:
    """Its axis is found, and of all axes it is the only one with slices."""
    network = lr_grid()
    volume = torch.rand(1, 1, *(1 if a == axis else n for a, n in enumerate((6, 5, 7))))
    expected = network(volume.squeeze(axis + 2)).unsqueeze(axis + 2).detach()
    for inferer in (slices(), slices(all_axes=True)):
        torch.testing.assert_close(inferer(volume, network), expected)
        torch.testing.assert_close(inferer(across(volume, axis), network, expected.shape[2:]), expected)


def test_images_are_not_cut() -> None:
    network, image = hr_grid(), torch.rand(2, 1, 9, 8)
    for inferer in (slices(), slices(all_axes=True)):
        torch.testing.assert_close(inferer(image, network), network(image).detach())


def test_no_slice_sees_another() -> None:
    network, volume = hr_grid(), torch.rand(1, 1, 6, 5, 7)
    changed = volume.clone()
    changed[:, :, :, 2] += 1
    inferer = slices()
    difference = (inferer(across(changed, 1), network) - inferer(across(volume, 1), network)).abs().amax((0, 1, 2, 4))
    assert (difference > 0).tolist() == [i == 2 for i in range(5)]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("scale", [2, 4])
def test_wished_shape_by_splines_across_the_slices(axis: int, scale: int) -> None:
    network, volume = lr_grid(scale), torch.rand(1, 1, 6, 5, 7)
    wished = [17 if a == axis else scale * n for a, n in enumerate((6, 5, 7))]
    result = slices()(across(volume, axis), network, wished)
    assert list(result.shape[2:]) == wished
    torch.testing.assert_close(result.double(), zoomed(loop(network, volume, axis), wished), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("scale", "wished"), [(2, (18, 5, 21)), (4, (12, 5, 14)), (1, (9, 8, 7))])
def test_a_wished_factor_that_the_network_does_not_have(scale: int, wished: tuple[int, ...]) -> None:
    network = hr_grid() if scale == 1 else lr_grid(scale)
    volume = torch.rand(1, 1, 6, 5, 7)
    result = slices()(across(volume, 1), network, wished)
    assert tuple(result.shape[2:]) == wished
    torch.testing.assert_close(result.double(), zoomed(loop(network, volume, 1), wished), atol=1e-5, rtol=0)


def test_wished_shape_that_is_made_needs_no_interpolation() -> None:
    network, volume = lr_grid(), across(torch.rand(1, 1, 6, 5, 7), 0)
    assert torch.equal(slices()(volume, network, (6, 10, 14)), slices()(volume, network))


def test_several_channels_out() -> None:
    network, volume = nn.Conv2d(2, 3, 3, padding=1), torch.rand(2, 2, 4, 5, 6)
    for axis in range(3):
        torch.testing.assert_close(slices()(across(volume, axis), network), loop(network, volume, axis))


@pytest.mark.parametrize("upsampling", [False, True])
@pytest.mark.parametrize("axis", [0, 2])  # where a slice is contiguous in memory, and where not
def test_memory_is_bounded_whatever_the_number_of_slices(axis: int, upsampling: bool) -> None:
    network = EDSR(2, num_blocks=1, num_filters=16).eval() if upsampling else hr_grid()
    budget = 3 * ExactInferer().plan((1, 1, 32, 32), network).memory / GIB
    for count in (10, 60):
        volume = torch.rand(2, 1, *(count if a == axis else 32 for a in range(3)))
        inferer = slices(memory_gib=budget)
        plan = inferer.plan((1, 1, 32, 32, count), network)
        with LiveBytes() as live:
            result = inferer(across(volume, axis), network)
        parameters = sum(p.nbytes for p in network.parameters())
        beside = live.peak - result.nbytes - volume.nbytes
        assert beside <= plan.memory + parameters + 2**16
        assert plan.memory <= budget * GIB < slices().plan((1, 1, 32, 32, 60), network).memory


def test_a_plan_is_that_of_slices_as_many_as_fit() -> None:
    network = hr_grid()
    of_slice = ExactInferer().plan((1, 1, 40, 50), network)
    plan = slices().plan((1, 1, 40, 50, 60), network)
    assert plan.sizes == (40, 50) and plan.windows == of_slice.windows and plan.batch == 60
    tight = slices(memory_gib=1.01 * of_slice.memory / GIB).plan((1, 1, 40, 50, 60), network)
    assert (tight.memory, tight.windows, tight.batch) == (of_slice.memory, of_slice.windows, 1)


def test_slices_at_once_are_the_voxels_of_slices_one_by_one() -> None:
    for network in (hr_grid(), lr_grid()):
        volume = across(torch.rand(1, 1, 20, 24, 9), 2)
        alone = slices(memory_gib=1.01 * ExactInferer().plan((1, 1, 20, 24), network).memory / GIB)
        assert alone.plan(volume.shape, network).batch == 1 < slices().plan(volume.shape, network).batch
        torch.testing.assert_close(slices()(volume, network), alone(volume, network), atol=1e-5, rtol=0)


def test_result_is_plain_and_usable_in_autograd() -> None:
    network, volume = hr_grid(), across(torch.rand(1, 1, 4, 5, 3), 1)
    for inferer in (slices(), slices(all_axes=True)):
        result = inferer(volume, network)
        assert type(result) is Tensor
        assert not result.requires_grad
        (result * torch.ones(1, requires_grad=True)).sum().backward()


def test_precision_is_the_network_s() -> None:
    network, volume = hr_grid().double(), torch.rand(1, 1, 4, 5, 3)
    result = slices()(volume, network)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, loop(network, volume.double(), 2))


def test_progress_counts_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[tuple[int, int, str]] = []

    class Bar(tqdm.auto.tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            bars.append((self.n, self.total, self.desc.rstrip(": ")))
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    volume = torch.rand(2, 1, 3, 7, 5)
    slices(progress=True)(across(volume, 1), hr_grid())
    slices(progress=True)(across(volume, 0), lr_grid())
    slices(progress=True, all_axes=True)(volume, hr_grid())
    slices()(volume, hr_grid())
    expected = [(n, n, "slices") for n in (14, 6, 6, 14, 10)]
    assert [bar for i, bar in enumerate(bars) if i % 2 == 0] == expected  # a bar is closed twice
    assert len(bars) == 10


class TestAllAxes:
    def test_is_the_mean_of_three_loops(self) -> None:
        network, volume = hr_grid(2), torch.rand(2, 2, 9, 8, 7)
        expected = torch.stack([loop(network, volume, axis) for axis in range(3)]).mean(0)
        for given in (volume, across(volume, 1)):  # no axis is the first among them
            torch.testing.assert_close(slices(all_axes=True)(given, network), expected, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("wished", [(12, 10, 14), (13, 16, 7)])
    def test_of_a_network_that_upsamples(self, wished: tuple[int, ...]) -> None:
        network, volume = lr_grid(), torch.rand(1, 1, 6, 5, 7)
        expected = sum(zoomed(loop(network, volume, axis), wished) for axis in range(3)) / 3
        result = slices(all_axes=True)(volume, network, wished)
        torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)

    def test_of_a_network_on_the_hr_grid_with_another_shape(self) -> None:
        network, volume = hr_grid(), torch.rand(1, 1, 6, 5, 7)
        expected = sum(zoomed(loop(network, volume, axis), (6, 8, 9)) for axis in range(3)) / 3
        result = slices(all_axes=True)(volume, network, (6, 8, 9))
        torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)

    def test_each_voxel_is_seen_in_three_planes(self) -> None:
        """The network adds up 3 x 3 neighbours: a point becomes three squares through it, a third of each."""

        class Box(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
                nn.init.ones_(self.layer.weight)

            def forward(self, x: Tensor) -> Tensor:
                result: Tensor = self.layer(x)
                return result

        volume = torch.zeros(1, 1, 5, 5, 5)
        volume[0, 0, 2, 2, 2] = 3
        result = slices(all_axes=True)(volume, Box())[0, 0]
        steps = (torch.arange(5) - 2).abs()
        x, y, z = torch.meshgrid(steps, steps, steps, indexing="ij")
        near = (x <= 1) & (y <= 1) & (z <= 1)
        planes = (x == 0).int() + (y == 0).int() + (z == 0).int()
        torch.testing.assert_close(result, (planes * near).float())

    def test_a_network_that_upsamples_needs_a_shape(self) -> None:
        def never(*_: object) -> None:
            raise AssertionError("expected the error before anything is computed, got a computed axis")

        inferer = slices(all_axes=True)
        inferer._compute = never  # type: ignore[method-assign, assignment]
        with pytest.raises(
            ValueError, match=r"needs a shape for a network that makes \(12, 10\) of \(6, 5\) voxels, got None"
        ):
            inferer(torch.rand(1, 1, 6, 5, 7), lr_grid())

    def test_two_results_are_in_memory(self) -> None:
        network, volume = hr_grid(), torch.rand(1, 1, 40, 40, 40)
        of_slice = ExactInferer().plan((1, 1, 40, 40), network).memory
        inferer = slices(all_axes=True, memory_gib=1.01 * of_slice / GIB)
        with LiveBytes() as live:
            result = inferer(volume, network)
        plan = inferer.plan(volume.shape, network)
        parameters = sum(p.nbytes for p in network.parameters())
        assert live.peak <= volume.nbytes + 2 * result.nbytes + plan.memory + parameters + 2**16
        assert 3 * result.nbytes > 2 * result.nbytes + plan.memory + parameters + 2**16  # a third would be seen

    @pytest.mark.parametrize("spatial_dims", [None, 3])
    def test_for_2d_networks_only(self, spatial_dims: int | None) -> None:
        with pytest.raises(ValueError, match=f"all_axes is for spatial_dims 2, got {spatial_dims}"):
            ExactInferer(spatial_dims=spatial_dims, all_axes=True)


@pytest.mark.parametrize(
    ("sizes", "shape", "match"),
    [
        ((1, 1, 5, 6, 0), None, r"without an empty axis, got \(1, 1, 5, 6, 0\)"),
        ((1, 1, 5, 6, 4), (10, 12), r"shape must have 3 axes, got \(10, 12\)"),
        ((1, 5, 6), None, r"\(B, C, \*spatial\)"),
    ],
)
def test_bad_input(sizes: tuple[int, ...], shape: tuple[int, ...] | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        slices()(torch.rand(sizes), lr_grid(), shape)


def test_too_little_memory_says_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"memory_gib must be >= 0\.\d+ for this network on \(40, 30\), got 1e-06"):
        slices(memory_gib=1e-6)(across(torch.rand(1, 1, 40, 2, 30), 1), ReCNN(2, num_layers=3, num_filters=64))
