"""The discriminator against its layers written with torch.nn.functional, and a task that it must learn."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.networks import Discriminator

SMALL = {"num_filters": 3, "dense_features": 7}


class TestStructure:
    def test_is_figure_7(self):
        with torch.device("meta"):
            network = Discriminator(2)
        layers = [m for m in network.features if isinstance(m, nn.Conv2d)]
        assert [m.out_channels for m in layers] == [64, 64, 128, 128, 256, 256, 512, 512]
        assert [m.stride[0] for m in layers] == [1, 2] * 4
        assert {m.kernel_size for m in layers} == {(3, 3)}
        kinds = [type(m) for m in network.features]
        assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU] * 8
        assert [type(m) for m in network.head] == [nn.Linear, nn.LeakyReLU, nn.Linear]
        assert {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}

    @pytest.mark.parametrize(("patch_size", "inputs"), [(None, 512), (128, 512 * 64), ((96, 40), 512 * 6 * 3)])
    def test_number_of_parameters(self, size, patch_size, inputs):
        """Weights of the convolutions, two numbers per channel of the normalisations, and the dense layers."""
        widths = [1, 64, 64, 128, 128, 256, 256, 512, 512]
        convolutions = sum(9 * a * b for a, b in pairwise(widths))
        with torch.device("meta"):
            network = Discriminator(2, patch_size=patch_size)
            plain = Discriminator(2, patch_size=patch_size, batch_norm=False)
        dense = inputs * 1024 + 1024 + 1024 + 1
        assert size(network) == convolutions + 2 * sum(widths[1:]) + dense
        assert size(plain) == convolutions + sum(widths[1:]) + dense

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"in_channels": 0}, "must be >= 1, got 0, 3 and 7"),
            ({"num_filters": 0}, "must be >= 1, got 1, 0 and 7"),
            ({"dense_features": 0}, "must be >= 1, got 1, 3 and 0"),
            ({"patch_size": 0}, "patch_size must be 2 sizes >= 1, got 0"),
            ({"patch_size": (16, 16, 16)}, r"patch_size must be 2 sizes >= 1, got \(16, 16, 16\)"),
            ({"negative_slope": 1}, r"negative_slope must be in \[0, 1\), got 1"),
            ({"initialisation": "he"}, "'msra', 'xavier' or a positive standard deviation, got 'he'"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            Discriminator(**{"spatial_dims": 2, **SMALL, **kwargs})


class TestForward:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("batch_norm", [True, False])
    @pytest.mark.parametrize("fixed", [True, False])
    def test_is_the_layers(self, dims, batch_norm, fixed):
        shape = (20, 17, 33)[:dims]
        network = Discriminator(
            dims, 2, **SMALL, patch_size=shape if fixed else None, batch_norm=batch_norm, negative_slope=0.3
        ).double()
        for p in network.parameters():
            nn.init.normal_(p, std=0.3)
        nn.init.constant_(network.head[-1].bias, -50)
        parameters = iter(list(network.parameters()))
        convolve = {2: functional.conv2d, 3: functional.conv3d}[dims]

        def leaky(x):
            return torch.where(x > 0, x, 0.3 * x)

        x = f = torch.rand(3, 2, *shape, dtype=torch.float64)
        for i in range(8):
            weight = next(parameters)
            f = convolve(f, weight, None if batch_norm else next(parameters), padding=1, stride=1 + i % 2)
            if batch_norm:
                axes = (0, *range(2, dims + 2))
                mean, variance = f.mean(axes, keepdim=True), f.var(axes, keepdim=True, unbiased=False)
                scale, offset = (next(parameters).reshape(-1, *[1] * dims) for _ in range(2))
                f = (f - mean) / (variance + 1e-5).sqrt() * scale + offset
            f = leaky(f)
        f = f.reshape(3, -1) if fixed else f.mean(tuple(range(2, dims + 2)))
        expected = leaky(f @ next(parameters).T + next(parameters)) @ next(parameters).T + next(parameters)
        assert next(parameters, None) is None
        assert expected.max() < 0  # logits, no probabilities
        torch.testing.assert_close(network(x), expected)

    @pytest.mark.parametrize("shape", [(1, 1), (17, 40), (64, 64), (5, 9, 33)])
    def test_any_size(self, shape):
        network = Discriminator(len(shape), 2, **SMALL).eval()
        assert network(torch.rand(2, 2, *shape)).shape == (2, 1)

    def test_only_the_size_of_the_dense_layer(self):
        network = Discriminator(2, **SMALL, patch_size=32)
        assert network(torch.rand(2, 1, 32, 32)).shape == (2, 1)
        with pytest.raises(ValueError, match=r"expected patches of \(32, 32\), got \(32, 31\)"):
            network(torch.rand(2, 1, 32, 31))

    def test_without_batch_norm_items_are_judged_alone(self):
        x = torch.rand(3, 1, 20, 20)
        alone = Discriminator(2, **SMALL, batch_norm=False)
        torch.testing.assert_close(alone(x), torch.cat([alone(v[None]) for v in x]))
        together = Discriminator(2, **SMALL)
        assert (together(x) - torch.cat([together(v[None]) for v in x])).abs().max() > 1e-3

    def test_input_is_not_changed(self):
        x = torch.randn(2, 1, 20, 20)
        before = x.clone()
        Discriminator(2, **SMALL)(x)
        assert torch.equal(x, before)

    @pytest.mark.parametrize("spectral_norm", [True, False])
    def test_every_parameter_gets_a_gradient(self, spectral_norm):
        network = Discriminator(2, num_filters=4, dense_features=64, spectral_norm=spectral_norm)
        network(torch.rand(4, 1, 33, 32)).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


class TestSpectralNorm:
    @pytest.mark.parametrize("dims", [2, 3])
    def test_largest_singular_value_of_each_layer_is_1(self, dims):
        network = Discriminator(dims, **SMALL, spectral_norm=True)
        for _ in range(200):  # each pass in training mode is a power iteration
            network(torch.rand(2, 1, *[3] * dims))
        layers = [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d, nn.Linear))]
        assert len(layers) == 10
        for layer in layers:
            assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)

    def test_not_by_default(self):
        network = Discriminator(2, **SMALL)
        norms = [torch.linalg.matrix_norm(m.weight.flatten(1), 2) for m in network.features if isinstance(m, nn.Conv2d)]
        assert min(norms) > 1.2


@pytest.mark.parametrize("initialisation", ["msra", "xavier", 0.01])
@pytest.mark.parametrize("spectral_norm", [True, False])
def test_spread(initialisation, spectral_norm):
    network = Discriminator(2, spectral_norm=spectral_norm, initialisation=initialisation)
    layer = network.features[6]
    weight = layer.parametrizations.weight.original if spectral_norm else layer.weight
    std = {"msra": (2 / 576) ** 0.5, "xavier": (1 / 576) ** 0.5}.get(initialisation, initialisation)
    assert weight.std().item() == pytest.approx(std, rel=0.03)


@pytest.mark.parametrize("options", [{}, {"batch_norm": False, "spectral_norm": True}], ids=["batch", "spectral"])
def test_learns_to_tell_sharp_from_smooth(options):
    """White noise against smoothed noise of the same mean."""
    network = Discriminator(2, num_filters=4, dense_features=16, **options)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    def batch():
        sharp = torch.rand(16, 1, 24, 24)
        return sharp, functional.avg_pool2d(torch.rand(16, 1, 26, 26), 3, 1)

    for _ in range(80):
        real, fake = (network(x) for x in batch())
        loss = functional.softplus(-real).mean() + functional.softplus(fake).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        real, fake = (network(x) for x in batch())
    assert (real > 0).float().mean() > 0.9 and (fake < 0).float().mean() > 0.9
