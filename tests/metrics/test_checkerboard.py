"""The measure of checkerboards against its formula with NumPy's FFT, on patterns put in by hand and on networks that have them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.nn import functional

from custom_components.acquisition import acquisition_operator
from custom_components.handlers import ScanMetric
from custom_components.metrics import Checkerboard, checkerboard
from custom_components.networks import EDSR, RRDBNet


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def smooth_noise(batch, *shape):
    """Images `(batch, 1, *shape)` in [0, 1], smoothed by a Gaussian of 0.7 voxels."""
    return torch.from_numpy(gaussian_filter(torch.rand(batch, 1, *shape).numpy(), (0, 0, *[0.7] * len(shape))))


def with_pattern(image, scale, strength, axes):
    """Every `scale`-th voxel along each of the axes brighter."""
    image = image.clone()
    image[(..., *[slice(None, None, scale) if a in axes else slice(None) for a in range(image.ndim - 2)])] *= (
        1 + strength
    )
    return image


def oracle(image, factors):
    """By the whole spectrum of one image, for even sizes that are whole periods after the Laplacian."""
    inner = tuple(slice(1, -1) if s > 1 else slice(None) for s in factors)
    laplacian = sum(
        2 * image - np.roll(image, 1, axis) - np.roll(image, -1, axis) for axis, s in enumerate(factors) if s > 1
    )[inner]
    for axis, n in enumerate(laplacian.shape):
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)
        laplacian = laplacian * hann.reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    power = np.abs(np.fft.fftn(laplacian)) ** 2
    ratios = []
    for k in product(*(range(s) for s in factors)):
        if any(k):
            centre = [n * i // s for i, n, s in zip(k, power.shape, factors, strict=True)]
            reach = [4 if s > 1 else min(4, (n - 1) // 2) for n, s in zip(power.shape, factors, strict=True)]
            around = [
                power[tuple((c + o) % n for c, o, n in zip(centre, offset, power.shape, strict=True))]
                for offset in product(*(range(-r, r + 1) for r in reach))
                if max(map(abs, offset)) > 2
            ]
            ratios.append(power[tuple(centre)] / (np.median(around) / np.log(2)))
    return 10 * np.log10(np.mean(ratios))


class TestFormula:
    @pytest.mark.parametrize(
        ("shape", "factors"),
        [((34,), (2,)), ((50, 34), (2, 2)), ((32, 50), (3, 2)), ((20, 34), (1, 4)), ((18, 3, 18), (2, 1, 2))],
    )
    def test_numpy(self, shape, factors):
        image = smooth_noise(2, *shape)
        expected = [oracle(channel.numpy().astype(np.float64), factors) for channel in image[:, 0]]
        values = checkerboard(image, factors)
        assert values.shape == (2, 1) and values.dtype == torch.float32
        np.testing.assert_allclose(values[:, 0], expected, atol=1e-4)
        if set(factors) == {2}:
            assert torch.equal(checkerboard(image, 2), values)

    def test_incomplete_periods_are_cut(self):
        image = smooth_noise(1, 53, 51)
        torch.testing.assert_close(checkerboard(image, 4), checkerboard(image[..., :50, :50], 4))

    def test_channels_and_items_are_apart(self):
        image = smooth_noise(6, 34, 34).reshape(2, 3, 34, 34)
        expected = [[float(checkerboard(channel[None, None], 2)) for channel in item] for item in image]
        torch.testing.assert_close(checkerboard(image, 2), torch.tensor(expected))

    @pytest.mark.parametrize("image", [torch.zeros(1, 1, 20, 20), torch.full((1, 1, 20, 20), 0.3)])
    def test_constant_image(self, image):
        assert checkerboard(image, 2).item() == 0

    def test_scale_and_offset_have_no_part(self):
        image = smooth_noise(1, 34, 34).double()
        torch.testing.assert_close(checkerboard(1000 * image - 70, 2), checkerboard(image, 2))

    def test_largest_value(self):
        """Of nothing but a pattern: the power beside it is rounding."""
        assert checkerboard(with_pattern(torch.ones(1, 1, 40, 40), 2, 0.1, (0, 1)), 2).item() > 100


class TestPatterns:
    @pytest.mark.parametrize("shape", [(64, 64), (34, 34, 34)])
    @pytest.mark.parametrize("noise", [smooth_noise, lambda batch, *shape: torch.randn(batch, 1, *shape)])
    def test_none(self, shape, noise):
        values = checkerboard(noise(16, *shape), 2)
        assert values.max() < 10 and -6 < values.mean() < 3

    @pytest.mark.parametrize(("strength", "least"), [(0.02, 5), (0.1, 17), (0.5, 25)])
    @pytest.mark.parametrize("axes", [(0, 1), (0,), (1,)])
    def test_brighter_voxels(self, strength, least, axes):
        image = smooth_noise(8, 66, 66)
        assert checkerboard(with_pattern(image, 2, strength, axes), 2).mean() > least

    @pytest.mark.parametrize(("scale", "size"), [(3, 74), (4, 66), (8, 66)])
    def test_other_periods(self, scale, size):
        image = smooth_noise(4, size, size)
        assert checkerboard(with_pattern(image, scale, 0.3, (0, 1)), scale).min() > checkerboard(image, scale).max() + 5

    def test_grows_with_the_pattern(self):
        image = smooth_noise(4, 66, 66)
        values = torch.stack([checkerboard(with_pattern(image, 2, a, (0, 1)), 2) for a in (0, 0.03, 0.1, 0.3)])
        assert (values.diff(dim=0) > 0).all()

    def test_at_its_own_period_alone(self):
        """A pattern of period 2 is none of period 3; of period 4 it is part."""
        image = with_pattern(smooth_noise(8, 66, 66), 2, 0.3, (0, 1))
        values = {s: checkerboard(image, s).mean().item() for s in (2, 3, 4)}
        assert values[3] < 5 and values[2] > 25 and values[4] > 15

    def test_only_along_the_upsampled_axes(self):
        image = with_pattern(smooth_noise(8, 66, 66), 2, 0.3, (0,))
        assert checkerboard(image, (2, 1)).mean() > 25
        assert checkerboard(image, (1, 2)).mean() < 5

    @pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
    def test_interpolation_is_below_what_surrounds_it(self, mode):
        """Their kernels have zeros at k / s."""
        image = functional.interpolate(torch.rand(8, 1, 32, 32), scale_factor=2, mode=mode)
        assert checkerboard(image, 2).mean() < -8


class TestNetworks:
    """At their random start, on images of noise."""

    @staticmethod
    def of(network, scale):
        with torch.inference_mode():
            return checkerboard(network(torch.rand(4, 1, 32, 32)), scale)

    @pytest.mark.parametrize("seed", range(3))
    def test_transposed_convolution_of_size_3_and_stride_2(self, seed):
        """Its HR voxels are sums of one, two or four weights; one of size 4 with equal weights overlaps evenly."""
        torch.manual_seed(seed)
        body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
        uneven = nn.Sequential(*body, nn.ConvTranspose2d(16, 1, 3, stride=2, padding=1, output_padding=1))
        even = nn.Sequential(*body, nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1))
        weight = even[-1].weight
        nn.init.constant_(uneven[-1].weight, 0.1)
        with torch.no_grad():
            weight.copy_(weight.mean((2, 3), keepdim=True).expand_as(weight))
        assert self.of(uneven, 2).min() > 20
        assert self.of(even, 2).max() < 0

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("scale", [2, 4])
    def test_icnr_sub_pixel_convolution_has_none(self, seed, scale):
        torch.manual_seed(seed)
        network = EDSR(2, num_blocks=1, num_filters=16, scale_factor=scale)
        assert self.of(network, scale).mean() < 3
        for stage in network.upsampler:
            nn.init.kaiming_normal_(stage.conv_block.weight)
        assert self.of(network, scale).mean() > 15

    def test_generator_of_esrgan(self):
        for upsampling in ("subpixel", "nearest"):
            network = RRDBNet(2, 1, 1, 16, 8, scale_factor=2, upsampling=upsampling)
            assert self.of(network, 2).mean() < 12


def head_like(count, size, seed=0):
    """Tissues of six grey levels with soft edges and a little noise, `(count, 1, size, size)` in [0, 1]."""
    random = np.random.default_rng(seed)
    tissues = gaussian_filter(random.random((count, size, size)), (0, 4, 4))
    low, high = (extreme(tissues, axis=(1, 2), keepdims=True) for extreme in (np.min, np.max))
    images = gaussian_filter(np.round(6 * (tissues - low) / (high - low)) / 6, (0, 0.7, 0.7))
    noise = gaussian_filter(random.standard_normal(images.shape), (0, 0.7, 0.7))
    return torch.from_numpy(images + 0.02 * noise)[:, None].float().clamp(0, 1)


def halved(images, factor=2):
    shape = images.shape[2:]
    return acquisition_operator(shape, [n // factor for n in shape], "bicubic")(images)


def shipped(name, factor):
    """A generator of the ESRGAN bundle with its weights."""
    bundle = Path(__file__).parents[2] / "bundles" / "fetal_mri_sr_esrgan"
    config = json.loads((bundle / "configs" / "train.json").read_text())["network_def"]
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    network = RRDBNet(**arguments | {"spatial_dims": 2, "scale_factor": factor}).eval()
    network.load_state_dict(torch.load(bundle / "models" / name, weights_only=True))
    return network


class TestTrainedNetworks:
    """On slices made here; real ones and the HR images themselves are at 0 dB."""

    TRANSPOSED = 25  # dB, which a transposed convolution of size 3 and stride 2 exceeds
    NONE = 8  # dB; some of the slices themselves have 5

    def test_the_slices_themselves_have_none(self):
        for factor in (2, 4):
            assert checkerboard(head_like(8, 128), factor).max() < self.NONE

    @pytest.mark.parametrize("seed", range(2))
    def test_transposed_convolution_at_its_start_and_after_a_short_fit(self, seed):
        torch.manual_seed(seed)
        body = [nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, padding=1), nn.LeakyReLU(0.2)]
        doubling = nn.ConvTranspose2d(16, 16, 3, stride=2, padding=1, output_padding=1)
        network = nn.Sequential(*body, doubling, nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 3, padding=1))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        hr, test = head_like(32, 64), halved(head_like(8, 128, seed=1))
        with torch.inference_mode():
            assert checkerboard(network(test), 2).mean() > self.TRANSPOSED
        for step in range(25):
            batch = hr[step % 8 * 4 :][:4]
            optimizer.zero_grad()
            (network(halved(batch)) - batch).abs().mean().backward()
            optimizer.step()
        with torch.inference_mode():
            assert checkerboard(network(test), 2).mean() > self.TRANSPOSED

    @pytest.mark.parametrize(("name", "factor"), [("model", 2), ("gan_x2", 2), ("psnr_x4", 4), ("gan_x4", 4)])
    def test_shipped_generators(self, name, factor):
        """As little as the slices themselves, and nothing on a constant."""
        network, hr = shipped(f"{name}.pt", factor), head_like(4, 128)
        with torch.inference_mode():
            result = network(halved(hr, factor))
            flat = network(torch.full((1, 1, 48, 48), 0.5))
        edge = 16 * factor
        assert flat[..., edge:-edge, edge:-edge].std() < 5e-4
        assert checkerboard(result, factor).mean() < self.NONE
        if name.startswith("gan"):  # what it adds to these made slices is not theirs
            return
        linear = functional.interpolate(halved(hr, factor), scale_factor=factor, mode="bilinear")
        assert (result - hr).square().mean() < (linear - hr).square().mean()


class TestMetric:
    def test_mean_over_scans_of_different_sizes(self):
        metric = Checkerboard((2, 2, 1))
        images = [smooth_noise(1, *shape) for shape in ((20, 24, 5), (30, 18, 9))]
        values = [metric(image).item() for image in images]
        assert values == [checkerboard(image, (2, 2, 1)).item() for image in images]
        assert metric.aggregate().item() == pytest.approx(np.mean(values), rel=1e-5)

    def test_truth_is_not_looked_at(self):
        image = smooth_noise(1, 34, 34)
        assert Checkerboard(2)(image, torch.rand(1, 1, 3)).item() == checkerboard(image, 2).item()

    def test_in_a_scan_metric(self):
        metric = ScanMetric(Checkerboard(2))
        image = smooth_noise(1, 20, 20, 20)
        metric.update((image, image))
        assert metric.compute() == pytest.approx(checkerboard(image, 2).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("scale", "match"),
    [
        (1, "integers >= 1, one of them above 1, got 1"),
        (0, "integers >= 1, one of them above 1, got 0"),
        (2.5, "integers >= 1, one of them above 1, got 2.5"),
        ((1, 1), r"one of them above 1, got \(1, 1\)"),
        ((2, -1), r"one of them above 1, got \(2, -1\)"),
    ],
)
def test_bad_scale_factors(scale, match):
    with pytest.raises(ValueError, match=match):
        Checkerboard(scale)
    with pytest.raises(ValueError, match=match):
        checkerboard(torch.rand(1, 1, 64, 64), scale)


def test_bad_shapes():
    with pytest.raises(ValueError, match="expected 2 scale factors, one for each spatial axis, got 3"):
        checkerboard(torch.rand(1, 1, 64, 64), (2, 2, 2))
    with pytest.raises(ValueError, match=r"at least \(18, 1\) voxels per axis, got \(17, 1\)"):
        checkerboard(torch.rand(1, 1, 17, 1), (2, 1))
    with pytest.raises(ValueError, match=r"at least \(34, 34\) voxels per axis, got \(34, 33\)"):
        checkerboard(torch.rand(1, 1, 34, 33), 4)
    assert checkerboard(torch.rand(1, 1, 18, 1), (2, 1)).isfinite().all()
