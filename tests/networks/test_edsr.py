import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.inferers import ExactInferer, receptive_field
from custom_components.networks import EDSR

SMALL = {"num_blocks": 2, "num_filters": 4}


class TestStructure:
    @pytest.mark.parametrize(
        ("scale", "expected"), [(1, 38_360_065), (2, 40_720_385), (3, 43_670_785), (4, 43_080_705)]
    )
    def test_number_of_parameters_of_the_paper(self, size, scale, expected):
        """43 M in table 1 of Lim et al.: 43 089 923 at factor 4 with colour in and out, which is 2 * 2 * 9 * 256 + 2 more."""
        with torch.device("meta"):
            assert size(EDSR(2, scale_factor=scale)) == expected

    @pytest.mark.parametrize(
        ("dims", "channels", "blocks", "filters", "scale"),
        [(2, 1, 3, 8, 1), (3, 2, 2, 4, 1), (2, 3, 1, 5, 4), (3, 1, 2, 3, 3)],
    )
    def test_number_of_parameters(self, size, dims, channels, blocks, filters, scale):
        k, n = 3**dims, filters
        square = k * n**2 + n
        steps = {1: [], 3: [3], 4: [2, 2]}[scale]
        expected = (k * channels * n + n) + (2 * blocks + 1) * square + sum(square * s**dims for s in steps) + k * n + 1
        assert size(EDSR(dims, channels, blocks, filters, scale_factor=scale)) == expected

    @pytest.mark.parametrize(("dims", "shape"), [(2, (5, 8)), (2, (1, 7)), (3, (5, 4, 3)), (3, (1, 3, 2))])
    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    @pytest.mark.parametrize("residual", [True, False])
    def test_shapes(self, dims, shape, scale, residual):
        network = EDSR(dims, 2, **SMALL, scale_factor=scale, residual=residual)
        assert network(torch.rand(2, 2, *shape)).shape == (2, 1, *(scale * n for n in shape))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"in_channels": 0}, "must be >= 1, got 0, 2 and 4"),
            ({"num_blocks": 0}, "must be >= 1, got 1, 0 and 4"),
            ({"num_filters": 0}, "must be >= 1, got 1, 2 and 0"),
            ({"residual_scale": 0}, "residual_scale must be > 0, got 0"),
            ({"residual_scale": float("nan")}, "residual_scale must be > 0, got nan"),
            ({"scale_factor": 5}, r"scale_factor must be one of \(1, 2, 3, 4\), got 5"),
            ({"initialisation": "he"}, "'msra', 'xavier' or a positive standard deviation, got 'he'"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            EDSR(**{"spatial_dims": 2, **SMALL, **kwargs})


class TestForward:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("residual", [True, False])
    def test_on_the_hr_grid_is_the_equation(self, dims, residual):
        network = EDSR(dims, **SMALL, residual_scale=0.3, residual=residual)
        for p in network.parameters():
            nn.init.normal_(p, std=0.3)
        conv = {2: functional.conv2d, 3: functional.conv3d}[dims]
        p = list(network.parameters())
        z = torch.randn(2, 1, *(7, 6, 5)[:dims])
        head = f = conv(z, p[0], p[1], padding=1)
        for i in (2, 6):
            inner = conv(f, p[i], p[i + 1], padding=1).clamp(min=0)
            f = f + 0.3 * conv(inner, p[i + 2], p[i + 3], padding=1)
        f = head + conv(f, p[10], p[11], padding=1)
        x = conv(f, p[12], p[13], padding=1)
        assert len(p) == 14
        torch.testing.assert_close(network(z), z + x if residual else x)

    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_upsampling_is_pytorch_s_pixel_shuffle(self, scale):
        """Filters of one HR block follow each other, row by row."""
        network, y = EDSR(2, **SMALL, scale_factor=scale), torch.randn(2, 4, 5, 6)
        expected = y
        for stage in network.upsampler:
            layer = stage.conv_block
            nn.init.normal_(layer.weight)
            expected = functional.conv2d(expected, layer.weight, layer.bias, padding=1)
            expected = functional.pixel_shuffle(expected, 3 if scale == 3 else 2)
        torch.testing.assert_close(network.upsampler(y), expected)

    @pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
    @pytest.mark.parametrize("scale", [1, 2, 4])
    def test_residual_of_the_first_channel_alone(self, dims, mode, scale):
        network, x = EDSR(dims, 2, **SMALL, scale_factor=scale, residual=True), torch.rand(1, 2, *(4, 5, 3)[:dims])
        for p in network.parameters():
            nn.init.zeros_(p)
        expected = functional.interpolate(x[:, :1], scale_factor=scale, mode=mode)
        torch.testing.assert_close(network(x), expected)

    @pytest.mark.parametrize("scale", [1, 3])
    def test_wished_shape(self, scale):
        network, x = EDSR(2, **SMALL, scale_factor=scale), torch.rand(1, 1, 4, 5)
        made = (4 * scale, 5 * scale)
        assert torch.equal(network(x, made), network(x))
        assert torch.equal(network(x, torch.Size(made)), network(x))
        wished = (made[0], made[1] + 1)
        with pytest.raises(
            ValueError, match=rf"{scale} times that of the input \[4, 5\], got \[{wished[0]}, {wished[1]}\]"
        ):
            network(x, wished)
        with pytest.raises(ValueError, match=rf"shape must be \[{made[0]}, {made[1]}\], .* got \[{made[0]}\]"):
            network(x, made[:1])

    def test_input_is_not_changed(self):
        network, x = EDSR(2, **SMALL, residual=True), torch.randn(1, 1, 6, 6)
        before = x.clone()
        network(x)
        assert torch.equal(x, before)

    def test_batch_equals_single_items(self):
        network, x = EDSR(3, **SMALL, scale_factor=2), torch.randn(3, 1, 5, 6, 4)
        torch.testing.assert_close(network(x), torch.cat([network(v[None]) for v in x]))

    @pytest.mark.parametrize("scale", [1, 2, 3, 4])
    def test_every_parameter_gets_a_gradient(self, scale):
        network = EDSR(2, num_blocks=2, num_filters=8, scale_factor=scale)
        network(torch.rand(2, 1, 7, 7)).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


class TestInitialisation:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("scale", [2, 3, 4])
    def test_no_checkerboard_at_the_start(self, dims, scale):
        """The last sub-pixel convolution gives each HR block one value per channel."""
        network = EDSR(dims, **SMALL, scale_factor=scale)
        y = network.upsampler(torch.randn(1, 4, *(5, 4, 3)[:dims]))
        step = 3 if scale == 3 else 2
        thinned = y[(..., *[slice(None, None, step)] * dims)]
        torch.testing.assert_close(y, functional.interpolate(thinned, scale_factor=step, mode="nearest"))
        assert y.std() > 0.1

    @pytest.mark.parametrize("initialisation", ["msra", "xavier", 0.01])
    def test_spread(self, initialisation):
        network = EDSR(2, num_blocks=1, num_filters=64, scale_factor=2, initialisation=initialisation)
        layers = [network.body[0].body[0], network.body[-1], network.upsampler[0].conv_block]
        for layer in layers:
            std = {"msra": (2 / 576) ** 0.5, "xavier": (1 / 576) ** 0.5}.get(initialisation, initialisation)
            assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
            assert not layer.bias.any()


class TestTiling:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize(("blocks", "scale", "halo"), [(2, 1, 7), (3, 1, 9), (2, 2, 8), (2, 3, 8)])
    def test_halo(self, dims, blocks, scale, halo):
        """2 num_blocks + 2 convolutions and one sub-pixel convolution on the LR grid, and one convolution on the HR grid."""
        network = EDSR(dims, num_blocks=blocks, num_filters=2, scale_factor=scale, residual=True)
        assert receptive_field(network, dims, 1) == (halo,) * dims

    @pytest.mark.parametrize("scale", [1, 2])
    def test_exact_inferer_equals_one_pass(self, scale):
        network, volume = EDSR(3, **SMALL, scale_factor=scale).eval(), torch.rand(1, 1, 30, 25, 12)
        inferer = ExactInferer(memory_gib=ExactInferer().plan(volume.shape, network).memory / 2 / 2**30)
        plan = inferer.plan(volume.shape, network)
        assert plan.method == "stream" or len(plan.windows) > 1
        with torch.inference_mode():
            whole = network(volume)
        error = (inferer(volume, network) - whole).abs().max()
        assert error <= 1e-5 * (whole.max() - whole.min())


class TestTools:
    @pytest.mark.parametrize(("dims", "scale"), [(2, 1), (3, 1), (2, 4), (3, 2)])
    def test_torchscript(self, dims, scale):
        network = EDSR(dims, **SMALL, scale_factor=scale, residual=True).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript itself
            scripted = torch.jit.script(network)
        for shape in ((6, 7, 5), (4, 3, 8)):
            x = torch.rand(2, 1, *shape[:dims])
            torch.testing.assert_close(scripted(x, tuple(n * scale for n in shape[:dims])), network(x))
        with pytest.raises(torch.jit.Error, match=rf"{scale} times that of the input"):
            scripted(x, [1] * dims)

    def test_symbolic_trace_finds_the_layers(self):
        """As `ExactInferer` does, which streams networks of this kind."""
        network = EDSR(3, **SMALL)
        traced = torch.fx.symbolic_trace(network)
        layers = [n.target for n in traced.graph.nodes if n.op == "call_module"]
        assert sum(isinstance(network.get_submodule(name), nn.Conv3d) for name in layers) == 2 * 2 + 3
        x = torch.rand(1, 1, 5, 5, 5)
        torch.testing.assert_close(traced(x), network(x))
