"""The estimator of an acquisition: what its parts treat alike, blocks, memory, cost, and that it can learn a blur."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from custom_components.networks import AcquisitionEstimator, AnyScaleSR, acquisition_condition
from custom_components.pretrained import with_weights

WEIGHTS = Path(__file__).parents[2] / "bundles" / "brain_mri_sr_any" / "models" / "estimator.pt"


def scans(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def twice(x):
    """Factors of 2."""
    return torch.full((len(x), 3), 2.0)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return AcquisitionEstimator(4, block=3).eval()


class TestSymmetry:
    def test_widths_go_with_their_axes_and_the_noise_stays(self, network):
        x, factors = scans(2, 1, 17, 21, 25), torch.tensor([[1.5, 2, 4], [1, 3, 2]])
        here = network(x, factors)
        assert here.shape == (2, 4) and len(set(here[0].tolist())) == 4
        for order in ([1, 0, 2], [2, 0, 1], [0, 2, 1]):
            there = network(x.permute(0, 1, *(axis + 2 for axis in order)), factors[:, order])
            torch.testing.assert_close(there[:, :3], here[:, order])
            torch.testing.assert_close(there[:, 3], here[:, 3])

    def test_the_factors_count(self, network):
        x = scans(1, 1, 13, 13, 13)
        said = [network(x, torch.tensor([factors])) for factors in ([2.0, 2, 2], [4.0, 2, 2], [2.0, 2, 4])]
        assert all((one - other).abs().max() > 1e-3 for one, other in zip(said, said[1:] + said[:1], strict=True))

    def test_the_other_two_axes_are_alike_to_each_filter(self, network):
        for layer in network.features[::2]:
            x = scans(1, layer.in_channels, 9, 9, 9)
            torch.testing.assert_close(layer(x).mT, layer(x.mT))
            assert not torch.allclose(layer(x).transpose(2, 3), layer(x.transpose(2, 3)), atol=1e-3)

    def test_the_mean_of_a_scan_is_not_seen(self, network):
        x = scans(1, 1, 13, 13, 13)
        torch.testing.assert_close(network(x + 0.4, twice(x)), network(x, twice(x)), atol=1e-5, rtol=1e-4)

    def test_batch_is_its_items(self, network):
        x = scans(3, 1, 13, 17, 13)
        items = torch.cat([network(item, twice(item)) for item in x.split(1)])
        torch.testing.assert_close(network(x, twice(x)), items)


class TestWholeScans:
    @pytest.mark.parametrize("shape", [(9, 9, 9), (40, 21, 30), (23, 12, 51)])
    def test_blocks_are_one_pass(self, shape):
        torch.manual_seed(0)
        small, large = AcquisitionEstimator(4, block=2), AcquisitionEstimator(4, block=100)
        small.load_state_dict(large.state_dict())
        x = scans(1, 1, *shape)
        torch.testing.assert_close(small(x, twice(x)), large(x, twice(x)))

    def test_no_block_is_larger_than_asked_for(self, network):
        sizes = []
        network.features[0].register_forward_hook(lambda _, args, __: sizes.append(max(args[0].shape[2:])))
        network(scans(1, 1, 70, 30, 20), torch.full((1, 3), 2.0))
        assert max(sizes) == 4 * (3 - 1) + 9
        assert len(sizes) == 3 * 6 * 2 * 1  # per axis: 16, 6 and 3 locations in blocks of 3

    @pytest.mark.parametrize("shape", [(1, 30, 30), (5, 8, 2), (9, 9, 8)])
    def test_thin_scans_are_continued(self, network, shape):
        x = scans(1, 1, *shape)
        more = x.numpy()
        for axis, size in enumerate(shape):
            if size < 9:
                last = more.take([size - 1], axis + 2)
                more = torch.cat([torch.as_tensor(more), *[torch.as_tensor(last)] * (9 - size)], axis + 2).numpy()
        torch.testing.assert_close(network(x, twice(x)), network(torch.as_tensor(more), twice(x)))

    def test_background_says_little(self):
        """A scan in an empty frame is judged as the scan, once the weights say that no detail is no evidence."""
        torch.manual_seed(0)
        network = AcquisitionEstimator(4)
        with torch.no_grad():
            network.weight.weight.fill_(20.0)
            network.weight.bias.fill_(-12.0)
        x = scans(1, 1, 33, 33, 33)
        framed = torch.zeros(1, 1, 65, 65, 65)
        framed[..., 16:49, 16:49, 16:49] = x
        empty = torch.zeros(1, 1, 33, 33, 33)
        there, alone, nothing = (network(y, twice(y)) for y in (framed, x, empty))
        assert (there - alone).abs().max() < 0.3 * (nothing - alone).abs().max()

    def test_an_empty_scan_gives_numbers(self, network):
        x = torch.zeros(1, 1, 12, 12, 12, requires_grad=True)
        said = network(x, twice(x))
        said.sum().backward()
        assert torch.isfinite(said).all() and torch.isfinite(x.grad).all()


class TestCost:
    def test_at_most_2_percent_of_the_network_that_it_serves(self):
        size = 25
        x = torch.rand(1, 1, size, size, size)

        def multiplications(network, *args):
            total = []

            def count(layer, _, output):
                total.append(output[0].numel() * layer.weight[0].numel())

            layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d)]
            handles = [layer.register_forward_hook(count) for layer in layers]
            with torch.inference_mode():
                network(*args)
            for handle in handles:
                handle.remove()
            return sum(total)

        condition = acquisition_condition((2, 2, 2), (1, 1, 1))[None]
        served = multiplications(AnyScaleSR(48, 8), x, (2 * size,) * 3, condition)
        assert 0 < multiplications(AcquisitionEstimator(), x, twice(x)) < 0.02 * served


def test_it_learns_how_strong_a_blur_is():
    """Noise of unit grain, blurred along the first axis by a Gaussian of a known width: 60 steps tell sharp from blurred."""
    torch.manual_seed(0)
    network = AcquisitionEstimator(4)
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    sharp = scans(40, 1, 17, 17, 17).numpy()
    widths = torch.linspace(0.5, 2, 40)
    blurred = [gaussian_filter1d(x, float(w) / 2.3548, axis=1) for x, w in zip(sharp, widths, strict=True)]
    x = torch.as_tensor(np.stack(blurred))
    for _ in range(60):
        optimizer.zero_grad()
        loss = (network(x[::2], twice(x[::2]))[:, 0] - widths[::2]).square().mean()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        error = (network(x[1::2], twice(x[1::2]))[:, 0] - widths[1::2]).square().mean().sqrt()
    assert error < widths.std() / 2


@pytest.mark.parametrize("kwargs", [{"num_filters": 0}, {"block": 0}])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match="num_filters and block must be >= 1, got"):
        AcquisitionEstimator(**kwargs)


@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        ((1, 9, 9, 9), (1, 3)),
        ((1, 2, 9, 9, 9), (1, 3)),
        ((1, 1, 9, 0, 9), (1, 3)),
        ((2, 1, 9, 9, 9), (1, 3)),
        ((1, 1, 9, 9, 9), (3,)),
    ],
)
def test_bad_shapes(network, shape, factors):
    with pytest.raises(ValueError, match=r"expected scans \(B, 1, X, Y, Z\) and factors \(B, 3\), got"):
        network(torch.zeros(shape), torch.ones(factors))


def test_the_shipped_weights_see_blur_and_noise():
    """Every other voxel of plateaus with edges, blurred little or much, and with noise of 3 % on them."""
    assert WEIGHTS.stat().st_size < 300_000
    network = with_weights(AcquisitionEstimator(), WEIGHTS).eval()
    image = gaussian_filter(np.random.default_rng(0).random((82, 82, 82)), 2.5)
    image = gaussian_filter(0.05 + 0.22 * np.digitize(image, np.quantile(image, [0.3, 0.5, 0.7, 0.85])), 0.7)
    sharp, blurred = (torch.as_tensor(gaussian_filter(image, s)[None, None, ::2, ::2, ::2]).float() for s in (0.5, 1.3))
    noisy = blurred + 0.03 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        (little,), (much,), (loud,) = (network(x, twice(x)) for x in (sharp, blurred, noisy))
    assert (much[:3] > little[:3] + 0.05).all()
    assert much[3] < 0.15 and loud[3] > 0.35
