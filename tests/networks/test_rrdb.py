"""RRDBNet against its equations written with torch.nn.functional, and the published number of parameters."""

import io
import warnings

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.inferers import ExactInferer, receptive_field
from custom_components.metrics import checkerboard
from custom_components.networks import RRDBNet
from custom_components.networks.rrdb import DenseBlock

SMALL = {"num_blocks": 2, "num_filters": 4, "growth": 3}
UPSAMPLINGS = ["subpixel", "nearest"]


class TestStructure:
    def test_number_of_parameters_of_esrgan(self, size):
        """16 697 987 at factor 4 with colour in and out, the first kernel of 3; two colours less at the end are 2 (9 * 64 + 1)."""
        with torch.device("meta"):
            network = RRDBNet(2, 3, scale_factor=4, upsampling="nearest", first_kernel_size=3)
        assert size(network) == 16_697_987 - 2 * (9 * 64 + 1)

    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    @pytest.mark.parametrize(
        ("dims", "channels", "blocks", "filters", "growth", "scale", "kernel"),
        [(2, 1, 3, 8, 4, 1, 9), (3, 2, 1, 4, 5, 2, 3), (2, 3, 2, 5, 2, 8, 5), (3, 1, 1, 2, 1, 4, 1)],
    )
    def test_number_of_parameters(self, size, upsampling, dims, channels, blocks, filters, growth, scale, kernel):
        k, n, g = 3**dims, filters, growth
        dense = sum(k * (n + i * g) * g + g for i in range(4)) + k * (n + 4 * g) * n + n
        doubling = (k * n**2 + n) * (2**dims if upsampling == "subpixel" else 1)
        ends = kernel**dims * channels * n + n + 2 * (k * n**2 + n) + k * n + 1
        expected = ends + blocks * 3 * dense + {1: 0, 2: 1, 4: 2, 8: 3}[scale] * doubling
        network = RRDBNet(
            dims, channels, blocks, filters, growth, 0.2, scale, upsampling=upsampling, first_kernel_size=kernel
        )
        assert size(network) == expected

    def test_defaults_are_the_thesis(self):
        with torch.device("meta"):
            network = RRDBNet(2)
        blocks = [m for m in network.modules() if isinstance(m, DenseBlock)]
        assert len(blocks) == 3 * 23
        assert network.head[0].kernel_size == (9, 9) and network.head[0].out_channels == 64
        assert {m.residual_scale for m in blocks} == {0.2}
        assert {m.negative_slope for m in network.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
        assert not any(isinstance(m, nn.modules.batchnorm._NormBase) for m in network.modules())

    @pytest.mark.parametrize(("dims", "shape"), [(2, (5, 8)), (2, (1, 7)), (3, (4, 3, 2))])
    @pytest.mark.parametrize("scale", [1, 2, 4, 8])
    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    @pytest.mark.parametrize("residual", [True, False])
    def test_shapes(self, dims, shape, scale, upsampling, residual):
        network = RRDBNet(dims, 2, 1, 3, 2, scale_factor=scale, upsampling=upsampling, residual=residual)
        with torch.inference_mode():
            assert network(torch.rand(2, 2, *shape)).shape == (2, 1, *(scale * n for n in shape))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"in_channels": 0}, "must be >= 1, got 0, 2, 4 and 3"),
            ({"num_blocks": 0}, "must be >= 1, got 1, 0, 4 and 3"),
            ({"num_filters": 0}, "must be >= 1, got 1, 2, 0 and 3"),
            ({"growth": 0}, "must be >= 1, got 1, 2, 4 and 0"),
            ({"residual_scale": 0}, "residual_scale must be > 0, got 0"),
            ({"dense_weights": float("nan")}, "dense_weights must be > 0, got nan"),
            ({"scale_factor": 3}, r"scale_factor must be one of \(1, 2, 4, 8\), got 3"),
            ({"upsampling": "linear"}, r"upsampling must be one of \('subpixel', 'nearest'\), got 'linear'"),
            ({"first_kernel_size": 4}, "first_kernel_size must be odd and >= 1, got 4"),
            ({"first_kernel_size": -1}, "first_kernel_size must be odd and >= 1, got -1"),
            ({"negative_slope": 1.0}, r"negative_slope must be in \[0, 1\), got 1.0"),
            ({"initialisation": "he"}, "'msra', 'xavier' or a positive standard deviation, got 'he'"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            RRDBNet(**{"spatial_dims": 2, **SMALL, **kwargs})


class TestForward:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("residual", [True, False])
    def test_on_the_hr_grid_is_the_equation(self, dims, residual):
        """By the parameters in their order: head, three dense blocks of five layers each, end of the body, tail."""
        network = RRDBNet(
            dims, 1, 1, 4, 3, residual_scale=0.3, first_kernel_size=5, residual=residual, negative_slope=0.4
        ).double()
        for p in network.parameters():
            nn.init.normal_(p, std=0.3)
        parameters = iter(list(network.parameters()))
        convolve = {2: functional.conv2d, 3: functional.conv3d}[dims]

        def conv(x, padding=1):
            return convolve(x, next(parameters), next(parameters), padding=padding)

        def leaky(x):
            return torch.where(x > 0, x, 0.4 * x)

        z = torch.randn(2, 1, *(7, 6, 5)[:dims], dtype=torch.float64)
        first = leaky(conv(z, 2))
        x = first
        for _ in range(3):
            known = [x]
            for _ in range(4):
                known.append(leaky(conv(torch.cat(known, 1))))
            x = x + 0.3 * conv(torch.cat(known, 1))
        x = conv(first + 0.3 * x)
        x = conv(leaky(conv(first + x)))
        assert next(parameters, None) is None
        torch.testing.assert_close(network(z), z + x if residual else x)

    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    def test_upsampling(self, upsampling):
        """Sub-pixel convolutions fill an HR block row by row, as PyTorch's `pixel_shuffle`."""
        network = RRDBNet(2, **SMALL, scale_factor=8, upsampling=upsampling)
        x = y = torch.randn(2, 4, 3, 5)
        assert len(network.upsampler) == 3
        for stage in network.upsampler:
            layer = stage[0].conv_block if upsampling == "subpixel" else stage[1]
            nn.init.normal_(layer.weight, std=0.2)
            if upsampling == "subpixel":
                y = functional.pixel_shuffle(functional.conv2d(y, layer.weight, layer.bias, padding=1), 2)
            else:
                y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
                y = functional.conv2d(y, layer.weight, layer.bias, padding=1)
            y = torch.where(y > 0, y, 0.2 * y)
        torch.testing.assert_close(network.upsampler(x), y)

    @pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
    @pytest.mark.parametrize("scale", [1, 2, 8])
    def test_residual_of_the_first_channel_alone(self, dims, mode, scale):
        network, x = RRDBNet(dims, 2, **SMALL, scale_factor=scale, residual=True), torch.rand(1, 2, *(4, 5, 3)[:dims])
        for p in network.parameters():
            nn.init.zeros_(p)
        expected = functional.interpolate(x[:, :1], scale_factor=scale, mode=mode)
        torch.testing.assert_close(network(x), expected)

    @pytest.mark.parametrize("scale", [1, 4])
    def test_wished_shape(self, scale):
        network, x = RRDBNet(2, **SMALL, scale_factor=scale), torch.rand(1, 1, 4, 5)
        made = (4 * scale, 5 * scale)
        assert torch.equal(network(x, made), network(x))
        with pytest.raises(ValueError, match=rf"must be \[{made[0]}, {made[1]}\], {scale} times .* got \[4, 6\]"):
            network(x, (4, 6))

    def test_input_is_not_changed(self):
        network, x = RRDBNet(2, **SMALL, residual=True), torch.randn(1, 1, 6, 6)
        before = x.clone()
        network(x)
        assert torch.equal(x, before)

    def test_batch_equals_single_items(self):
        network, x = RRDBNet(3, **SMALL, scale_factor=2), torch.randn(3, 1, 5, 6, 4)
        torch.testing.assert_close(network(x), torch.cat([network(v[None]) for v in x]))

    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    @pytest.mark.parametrize("scale", [1, 4])
    def test_every_parameter_gets_a_gradient(self, scale, upsampling):
        network = RRDBNet(2, num_blocks=2, num_filters=8, growth=4, scale_factor=scale, upsampling=upsampling)
        network(torch.rand(2, 1, 7, 7)).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


class TestInitialisation:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("scale", [2, 4])
    def test_sub_pixels_of_an_hr_block_start_alike(self, dims, scale):
        network = RRDBNet(dims, **SMALL, scale_factor=scale)
        y = network.upsampler(torch.randn(1, 4, *(5, 4, 3)[:dims]))
        thinned = y[(..., *[slice(None, None, 2)] * dims)]
        torch.testing.assert_close(y, functional.interpolate(thinned, scale_factor=2, mode="nearest"))
        assert y.std() > 0.1

    def test_no_checkerboard_at_the_start(self):
        """The tail's rectifier behind blocks of one value makes a little; without ICNR it is above 20 dB."""
        network, x = RRDBNet(2, 1, 1, 16, 8, scale_factor=2), torch.rand(4, 1, 32, 32)
        with torch.inference_mode():
            assert checkerboard(network(x), 2).mean() < 12
            nn.init.kaiming_normal_(network.upsampler[0][0].conv_block.weight)
            assert checkerboard(network(x), 2).mean() > 20

    @pytest.mark.parametrize("initialisation", ["msra", "xavier", 0.01])
    @pytest.mark.parametrize("factor", [0.1, 1])
    def test_spread(self, initialisation, factor):
        network = RRDBNet(
            2, num_blocks=1, num_filters=64, growth=64, initialisation=initialisation, dense_weights=factor
        )
        block = network.body[0].blocks[1]
        layers = [(network.body[-1], 1), (network.tail[0], 1), (block.layers[0][0], factor), (block.last, factor)]
        for layer, weaker in layers:
            fan_in = 9 * layer.in_channels
            std = {"msra": (2 / fan_in) ** 0.5, "xavier": (1 / fan_in) ** 0.5}.get(initialisation, initialisation)
            assert layer.weight.std().item() == pytest.approx(weaker * std, rel=0.03)
            assert not layer.bias.any()


class TestTiling:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize(
        ("blocks", "kernel", "scale", "upsampling", "halo"),
        [
            (1, 9, 1, "subpixel", 22),
            (2, 3, 1, "subpixel", 34),
            (1, 9, 2, "subpixel", 22),
            (1, 9, 2, "nearest", 22),
            (1, 9, 4, "subpixel", 22),
        ],
    )
    def test_halo(self, dims, blocks, kernel, scale, upsampling, halo):
        """On the LR grid the head's (k - 1) / 2, 15 for each block and 1; 2 at the end, and 1 before each doubling or after it.

        At 2: 4 + 15 + 1 + 1 and two HR voxels; with nearest neighbours 4 + 15 + 1 and three HR voxels, or two LR voxels.
        At 4: 4 + 15 + 1 + 1, then one voxel of half and two of a quarter of the size, or one LR voxel.
        """
        network = RRDBNet(
            dims, 1, blocks, 2, 1, scale_factor=scale, upsampling=upsampling, first_kernel_size=kernel, residual=True
        )
        assert receptive_field(network, dims, 1) == (halo,) * dims

    @pytest.mark.parametrize("scale", [1, 2])
    def test_exact_inferer_equals_one_pass(self, scale):
        """At scale 1 it can be streamed slice by slice, above in tiles."""
        network = RRDBNet(3, 1, 1, 2, 1, scale_factor=scale, first_kernel_size=3).eval()
        volume = torch.rand(1, 1, 60, 9, 7)
        inferer = ExactInferer(memory_gib=ExactInferer().plan(volume.shape, network).memory / 1.2 / 2**30)
        plan = inferer.plan(volume.shape, network)
        assert plan.method == "stream" if scale == 1 else len(plan.windows) > 1
        with torch.inference_mode():
            whole = network(volume)
        error = (inferer(volume, network) - whole).abs().max()
        assert error <= 1e-5 * (whole.max() - whole.min())


class TestTools:
    @pytest.mark.parametrize(
        ("dims", "scale", "upsampling"), [(2, 1, "nearest"), (2, 8, "nearest"), (3, 2, "subpixel")]
    )
    def test_torchscript(self, dims, scale, upsampling):
        network = RRDBNet(dims, **SMALL, scale_factor=scale, upsampling=upsampling, residual=True).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript itself
            scripted = torch.jit.script(network)
        for shape in ((6, 7, 5), (4, 3, 8)):
            x = torch.rand(2, 1, *shape[:dims])
            torch.testing.assert_close(scripted(x, tuple(n * scale for n in shape[:dims])), network(x))
        with pytest.raises(torch.jit.Error, match=rf"{scale} times that of the input"):
            scripted(x, [1] * dims)

    @pytest.mark.slow
    @pytest.mark.parametrize("upsampling", UPSAMPLINGS)
    def test_onnx(self, upsampling):
        network = RRDBNet(2, 1, 1, 4, 2, scale_factor=4, upsampling=upsampling, residual=True).eval()
        x, file = torch.rand(1, 1, 6, 7), io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (x,), dynamo=True).save(file)
        session = onnxruntime.InferenceSession(file.getvalue())
        (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), network(x), rtol=1e-4, atol=1e-5)

    def test_symbolic_trace_finds_the_layers(self):
        """As `ExactInferer` does, which streams networks of this kind."""
        network = RRDBNet(3, **SMALL)
        traced = torch.fx.symbolic_trace(network)
        layers = [n.target for n in traced.graph.nodes if n.op == "call_module"]
        assert sum(isinstance(network.get_submodule(name), nn.Conv3d) for name in layers) == 2 * 15 + 4
        x = torch.rand(1, 1, 5, 5, 5)
        torch.testing.assert_close(traced(x), network(x))
