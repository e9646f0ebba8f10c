"""`ExactInferer` equals one pass, within its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
import tqdm.auto
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from custom_components.inferers import ExactInferer
from custom_components.inferers.planning import GIB, find_plan
from custom_components.inferers.tiling import LiveBytes
from custom_components.networks import ReCNN


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On volumes this small, handing work to threads takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Residual(nn.Module):
    """Convolutions with rectifiers between, and the input added; `opaque` hides it from torch.fx."""

    def __init__(self, layers: int, filters: int, opaque: bool = False) -> None:
        super().__init__()
        widths = [1, *[filters] * (layers - 1), 1]
        self.body = nn.ModuleList(nn.Conv3d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.opaque = opaque

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.body):
            h = layer(torch.relu(h) if i else h)
        if self.opaque and bool(h.isinf().any()):
            raise ValueError("the result must be finite, got inf")
        return h + x


def whole(network: Callable[[Tensor], Tensor], volume: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(volume)


def assert_equal(result: Tensor, expected: Tensor) -> None:
    assert result.shape == expected.shape
    assert torch.isfinite(result).all()
    assert float((result - expected).abs().max()) <= 1e-5 * float(expected.max() - expected.min())


@pytest.mark.parametrize("memory_gib", [2.0, 0.004, 0.0008])
@pytest.mark.parametrize("opaque", [False, True])
def test_equals_whole_pass_within_its_memory(memory_gib: float, opaque: bool) -> None:
    torch.manual_seed(0)
    network = Residual(4, 8, opaque).eval()
    volume = torch.rand(2, 1, 33, 41, 28)
    inferer = ExactInferer(memory_gib)
    plan = inferer.plan(volume.shape, network)
    assert plan.method == ("tiles" if opaque else "stream")
    assert (len(plan.windows) > 1) == (memory_gib < 0.003 if not opaque else memory_gib < 1)
    with LiveBytes() as live:
        result = inferer(volume, network)
    # Beside the plan live the input and the weights (seen by LiveBytes through their views), the result, and small
    # change.
    parameters = sum(p.nbytes for p in network.parameters())
    assert live.peak <= plan.memory + volume.nbytes + result.nbytes + parameters + 2**16
    assert plan.memory <= memory_gib * GIB
    assert_equal(result, whole(network, volume))


def test_windows_have_no_seam() -> None:
    torch.manual_seed(0)
    network = Residual(5, 8).double()
    volume = torch.rand(1, 1, 24, 40, 40, dtype=torch.float64)
    inferer = ExactInferer(0.0004)
    plan = inferer.plan(volume.shape, network)
    assert sum(k > 1 for k in plan.splits) >= 1
    error = (inferer(volume, network) - whole(network, volume)).abs()
    for axis, borders in enumerate(zip(*plan.windows, strict=True)):
        for _, border in {b for b in borders if b[1] < plan.sizes[axis]}:
            assert float(error.narrow(axis + 2, border - 1, 2).max()) < 1e-12


def test_less_memory_is_more_work() -> None:
    network = Residual(6, 16)
    plans = [ExactInferer(m).plan((1, 1, 96, 96, 96), network) for m in (1.0, 0.007, 0.004)]
    assert plans[0].work == pytest.approx(1)
    assert plans[0].work < plans[1].work < plans[2].work < 2
    assert plans[0].memory > plans[1].memory > plans[2].memory


def test_512_cube_in_two_gib() -> None:
    network = ReCNN(spatial_dims=3, num_layers=20)
    plan = ExactInferer(memory_gib=2).plan((1, 1, 512, 512, 512), network)
    assert plan.method == "stream"
    assert plan.work < 1.1
    assert plan.memory <= 2 * GIB


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_recnn(spatial_dims: int) -> None:
    torch.manual_seed(0)
    network = ReCNN(spatial_dims=spatial_dims, in_channels=2, num_layers=10, num_filters=8)
    volume = torch.rand(2, 2, *(17, 23, 15)[:spatial_dims])
    assert ExactInferer().plan(volume.shape, network).method == "stream"
    assert_equal(ExactInferer()(volume, network), whole(network, volume))


def test_further_training_is_seen() -> None:
    for opaque in (False, True):
        network, inferer, volume = Residual(3, 4, opaque), ExactInferer(), torch.rand(1, 1, 8, 8, 8)
        inferer(volume, network)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(1.5)
        assert_equal(inferer(volume, network), whole(network, volume))
        network.body[1] = nn.Conv3d(4, 4, 7, padding=3)
        assert_equal(inferer(volume, network), whole(network, volume))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace.* is deprecated:DeprecationWarning")
def test_script_module_runs_on_tiles() -> None:
    volume = torch.rand(1, 1, 21, 20, 19)
    network = torch.jit.trace(Residual(3, 4).eval(), volume)
    inferer = ExactInferer(0.0002)
    plan = inferer.plan(volume.shape, network)
    assert plan.method == "tiles"
    assert len(plan.windows) > 1
    assert_equal(inferer(volume, network), whole(network, volume))


def test_upsampling_network_on_tiles() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.Upsample(scale_factor=(1, 2, 3)), nn.Conv3d(4, 1, 3, padding=1)
    )
    volume = torch.rand(2, 1, 14, 13, 12)
    inferer = ExactInferer(0.0001)
    assert len(inferer.plan(volume.shape, network).windows) > 1
    assert_equal(inferer(volume, network), whole(network, volume))


@pytest.mark.parametrize(("factor", "wished"), [((1, 2, 3), (9, 20, 22)), ((1, 1, 1), (16, 9, 11))])
def test_wished_shape_by_splines(factor: tuple[int, ...], wished: tuple[int, ...]) -> None:
    """Against scipy's cubic splines between voxel centres, finer and coarser than what the network makes."""
    torch.manual_seed(0)
    network, volume = (
        nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.Upsample(scale_factor=factor)),
        torch.rand(1, 1, 8, 9, 7),
    )
    made = whole(network, volume)[0, 0].double().numpy()
    zoom = [m / n for m, n in zip(wished, made.shape, strict=True)]
    expected = ndimage.zoom(made, zoom, order=3, mode="nearest", grid_mode=True)
    for spatial_dims in (None, 3):
        result = ExactInferer(spatial_dims=spatial_dims)(volume, network, wished)
        assert tuple(result.shape) == (1, 1, *wished)
        torch.testing.assert_close(result[0, 0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_wished_shape_that_is_made_needs_no_interpolation() -> None:
    network, volume = nn.Upsample(scale_factor=2), torch.rand(1, 1, 5, 6)
    assert torch.equal(ExactInferer()(volume, network, [10, 12]), network(volume))


def test_plain_function_runs_on_tiles() -> None:
    def blur(x: Tensor) -> Tensor:
        return F.avg_pool3d(x, 3, stride=1, padding=1)

    volume, inferer = torch.rand(1, 1, 20, 21, 22), ExactInferer(0.00005)
    assert len(inferer.plan(volume.shape, blur).windows) > 1
    assert_equal(inferer(volume, blur), blur(volume))


def test_wrapped_networks_are_streamed() -> None:
    network = Residual(3, 4)
    assert ExactInferer().plan((1, 1, 8, 8, 8), nn.DataParallel(network)).method == "stream"


def test_result_is_plain_and_usable_in_autograd() -> None:
    volume = MetaTensor(torch.rand(1, 1, 8, 8, 8))
    for opaque in (False, True):
        result = ExactInferer()(volume, Residual(2, 2, opaque))
        assert type(result) is Tensor
        assert not result.is_inference()
        assert not result.requires_grad


def test_low_precision_is_that_of_autocast() -> None:
    torch.manual_seed(0)
    network, volume = Residual(4, 8), torch.rand(1, 1, 12, 12, 12)
    exact = whole(network, volume)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = whole(network, volume)
        surrounded = ExactInferer()(volume, network)
    chosen = ExactInferer(amp_dtype="bfloat16")(volume, network)
    assert torch.equal(chosen, surrounded)
    assert chosen.dtype == torch.float32
    error = float((expected - exact).abs().max())
    assert 0 < float((chosen - exact).abs().max()) <= 2 * error
    assert torch.equal(ExactInferer()(volume, network), ExactInferer()(volume, network))


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("memory_gib", [2.0, 0.001])
def test_low_precision_keeps_to_its_memory(layers: int, memory_gib: float) -> None:
    torch.manual_seed(0)
    network, volume = Residual(layers, 8), torch.rand(1, 1, 40, 40, 40)
    plans = [
        find_plan(network, volume.shape, torch.device("cpu"), torch.float32, low, memory_gib)
        for low in (torch.bfloat16, None)
    ]
    with LiveBytes() as live:
        result = ExactInferer(memory_gib, amp_dtype="bfloat16")(volume, network)
    parameters = sum(p.nbytes for p in network.parameters())
    assert live.peak <= plans[0].memory + volume.nbytes + result.nbytes + parameters + 2**16
    assert plans[0].memory <= memory_gib * GIB
    if memory_gib == 2:  # one layer reads the volume, and is as in full precision
        assert (plans[0].memory < plans[1].memory) == (layers > 1)


def test_the_volume_is_read_in_full_precision() -> None:
    """Detail of 1e-3 on ground of 0.75: bfloat16 has steps of 4e-3 there, and would not see it."""
    torch.manual_seed(0)
    network, volume = Residual(1, 8), 0.75 + 1e-3 * torch.rand(1, 1, 10, 9, 8)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv3d))
    with torch.no_grad():
        first.weight.sub_(first.weight.mean((2, 3, 4), keepdim=True)).mul_(1e3)
    inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    exact = (whole(network, volume) - volume)[inside]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = (whole(network, volume) - volume)[inside]
    chosen = (ExactInferer(amp_dtype="bfloat16")(volume, network) - volume)[inside]
    assert (rounded - exact).abs().max() > 0.3 * exact.std()
    assert (chosen - exact).abs().max() < 0.03 * exact.abs().max()


def test_progress_counts_every_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    class Bar(tqdm.auto.tqdm):  # type: ignore[type-arg]
        def close(self) -> None:
            bars.append((self.n, self.total))
            super().close()

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    volume = torch.rand(2, 1, 6, 4, 4)
    ExactInferer(progress=True)(volume, Residual(2, 2))
    ExactInferer(progress=True)(volume, Residual(2, 2, opaque=True))
    ExactInferer(progress=False)(volume, Residual(2, 2))
    assert list(dict.fromkeys(bars)) == [(12, 12), (2, 2)]  # slices, then tiles; a bar may be closed twice


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="memory_gib must be > 0, got 0"):
        ExactInferer(0)
    with pytest.raises(ValueError, match='"bfloat16", "float16" or None, got \'int8\''):
        ExactInferer(amp_dtype="int8")
    with pytest.raises(ValueError, match=r"\(B, C, \*spatial\)"):
        ExactInferer()(torch.rand(8, 8), nn.Identity())
    with pytest.raises(ValueError, match=r"shape must have 2 axes, got \(8, 8, 8\)"):
        ExactInferer()(torch.rand(1, 1, 8, 8), nn.Identity(), (8, 8, 8))
    with pytest.raises(ValueError, match=r"without an empty axis, got \(1, 1, 8, 0\)"):
        ExactInferer()(torch.rand(1, 1, 8, 0), nn.Identity())
    with pytest.raises(ValueError, match=r"\(B, C, X, Y, Z\) for a 3D network, got \(1, 1, 8, 8\)"):
        ExactInferer(spatial_dims=3)(torch.rand(1, 1, 8, 8), nn.Identity())
    with pytest.raises(ValueError, match="spatial_dims must be 2, 3 or None, got 4"):
        ExactInferer(spatial_dims=4)


@pytest.mark.parametrize("opaque", [False, True])
def test_too_little_memory_says_what_would_do(opaque: bool) -> None:
    network, shape = Residual(4, 16, opaque), (1, 1, 40, 40, 40)
    with pytest.raises(ValueError, match=r"memory_gib must be >= 0\.\d+ for this network on \(40, 40, 40\)") as caught:
        ExactInferer(1e-6).plan(shape, network)
    least = float(str(caught.value).split(">= ")[1].split()[0])
    assert ExactInferer(least).plan(shape, network).memory <= least * GIB
