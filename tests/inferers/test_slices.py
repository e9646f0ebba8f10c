"""`SlicesInferer` equals a plain loop over slices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import tqdm.auto
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from scipy import ndimage
from torch import Tensor, nn

from custom_components.inferers import SlicesInferer
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


def loop(network: nn.Module, volume: Tensor, axis: int) -> Tensor:
    with torch.inference_mode():
        results = [network(volume.select(axis + 2, i)) for i in range(volume.shape[axis + 2])]
    return torch.stack(results, axis + 2)


def hr_grid(channels: int = 1) -> nn.Module:
    return ReCNN(2, channels, num_layers=3, num_filters=4).eval()


def lr_grid(scale: int = 2) -> nn.Module:
    return RRLSRN(2, num_layers=2, num_filters=4, scale_factor=scale).eval()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("scale", [1, 2])
def test_equals_a_loop_over_slices(axis: int, batch_size: int, scale: int) -> None:
    network = hr_grid() if scale == 1 else lr_grid()
    volume = torch.rand(2, 1, 7, 6, 8)
    for spatial_dim in (axis, axis - 3):
        result = SlicesInferer(spatial_dim, batch_size)(volume, network)
        assert result.shape == (2, 1, *(n if a == axis else scale * n for a, n in enumerate((7, 6, 8))))
        torch.testing.assert_close(result, loop(network, volume, axis))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_equals_monai_s_on_the_hr_grid(axis: int) -> None:
    network, volume = hr_grid(2), torch.rand(1, 2, 5, 6, 4)
    with torch.inference_mode():
        expected = SliceInferer(axis, roi_size=(-1, -1), sw_batch_size=3)(volume, network)
    torch.testing.assert_close(SlicesInferer(axis, 3)(volume, network), expected)


def test_last_axis_by_default() -> None:
    network, volume = hr_grid(), torch.rand(1, 1, 4, 5, 3)
    torch.testing.assert_close(SlicesInferer()(volume, network), loop(network, volume, 2))


def test_no_slice_sees_another() -> None:
    network, volume = hr_grid(), torch.rand(1, 1, 6, 5, 7)
    changed = volume.clone()
    changed[:, :, :, 2] += 1
    inferer = SlicesInferer(1)
    difference = (inferer(changed, network) - inferer(volume, network)).abs().amax((0, 1, 2, 4))
    assert (difference > 0).tolist() == [i == 2 for i in range(5)]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("scale", [2, 4])
def test_wished_shape_by_splines_across_the_slices(axis: int, scale: int) -> None:
    """Against scipy's cubic splines between voxel centres."""
    network, volume = lr_grid(scale), torch.rand(1, 1, 6, 5, 7)
    wished = [17 if a == axis else scale * n for a, n in enumerate((6, 5, 7))]
    stack = loop(network, volume, axis)[0, 0].double().numpy()
    zoom = [17 / n if a == axis else 1 for a, n in enumerate(stack.shape)]
    expected = ndimage.zoom(stack, zoom, order=3, mode="nearest", grid_mode=True)
    result = SlicesInferer(axis, 2)(volume, network, tuple(wished))
    assert list(result.shape[2:]) == wished
    torch.testing.assert_close(result[0, 0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_wished_shape_that_is_made_needs_no_interpolation() -> None:
    network, volume = lr_grid(), torch.rand(1, 1, 6, 5, 7)
    inferer = SlicesInferer(0)
    assert torch.equal(inferer(volume, network, (6, 10, 14)), inferer(volume, network))


def test_several_channels_out() -> None:
    network, volume = nn.Conv2d(2, 3, 3, padding=1), torch.rand(2, 2, 4, 5, 6)
    for axis in range(3):
        torch.testing.assert_close(SlicesInferer(axis, 3)(volume, network), loop(network, volume, axis))


def test_memory_grows_with_the_batch_and_not_with_the_volume() -> None:
    network = EDSR(2, num_blocks=1, num_filters=16).eval()
    slice_bytes = 16 * 32 * 32 * 4
    for axis in (0, 2):  # across the slices memory is contiguous, or it is not
        for slices in (10, 60):
            volume = torch.rand(1, 1, *(slices if a == axis else 32 for a in range(3)))
            with LiveBytes() as live:
                result = SlicesInferer(axis, batch_size=2)(volume, network)
            beside = live.peak - result.nbytes - volume.nbytes - sum(p.nbytes for p in network.parameters())
            assert beside < 2 * 5 * slice_bytes
            assert 60 * slice_bytes > 4 * beside


def test_result_is_plain_and_usable_in_autograd() -> None:
    network, volume = hr_grid(), MetaTensor(torch.rand(1, 1, 4, 5, 3))
    result = SlicesInferer()(volume, network)
    assert type(result) is Tensor
    assert not result.requires_grad
    (result * torch.ones(1, requires_grad=True)).sum().backward()


def test_precision_is_the_network_s() -> None:
    network, volume = hr_grid().double(), torch.rand(1, 1, 4, 5, 3)
    result = SlicesInferer()(volume, network)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, loop(network, volume.double(), 2))


def test_progress_counts_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar(tqdm.auto.tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)
            bars.append((self, not self.disable))

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    SlicesInferer(1, 4, progress=True)(torch.rand(2, 1, 3, 7, 5), hr_grid())
    SlicesInferer(1, 4)(torch.rand(2, 1, 3, 7, 5), hr_grid())
    assert [(bar.n, bar.total, shown) for bar, shown in bars] == [(14, 14, True), (0, 14, False)]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"spatial_dim": 3}, r"spatial_dim must be in -3 .. 2, got 3"),
        ({"spatial_dim": -4}, r"spatial_dim must be in -3 .. 2, got -4"),
        ({"spatial_dim": "auto"}, r"spatial_dim must be in -3 .. 2, got auto"),
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
    ],
)
def test_bad_arguments(kwargs: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SlicesInferer(**kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sizes", "shape", "match"),
    [
        ((1, 1, 5, 6), None, r"inputs must be \(B, C, X, Y, Z\) without an empty axis, got \(1, 1, 5, 6\)"),
        ((1, 1, 5, 6, 0), None, r"without an empty axis, got \(1, 1, 5, 6, 0\)"),
        ((1, 1, 5, 6, 4), (10, 12), r"3 axes and at least 4 voxels on axis 2, got \(10, 12\)"),
        ((1, 1, 5, 6, 4), (10, 12, 3), r"3 axes and at least 4 voxels on axis 2, got \(10, 12, 3\)"),
        ((1, 1, 5, 6, 4), (10, 13, 4), r"shape must be \[10, 12\], 2 times that of the input \[5, 6\], got \[10, 13\]"),
    ],
)
def test_bad_input(sizes: tuple[int, ...], shape: tuple[int, ...] | None, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        SlicesInferer()(torch.rand(sizes), lr_grid(), shape)


def test_bad_networks() -> None:
    volume = torch.rand(1, 1, 5, 6, 4)
    with pytest.raises(ValueError, match=r"must make slices of \[10, 12\], got \[5, 6\]"):
        SlicesInferer()(volume, lambda x, shape: x, (10, 12, 4))
    with pytest.raises(ValueError, match=r"must map \(b, C, h, w\) to \(b, C', h', w'\), got shape \(4, 5, 6\)"):
        SlicesInferer()(volume, lambda x: x[:, 0])
    with pytest.raises(ValueError, match="got tuple"):
        SlicesInferer()(volume, lambda x: (x, x))
