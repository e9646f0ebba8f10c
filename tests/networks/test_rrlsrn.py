import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.inferers import ExactInferer, receptive_field
from custom_components.networks import RRLSRN
from custom_components.networks.rrlsrn import linear_kernel

SMALL = {"num_layers": 3, "num_filters": 4}


def without_residual(network):
    for name, p in network.named_parameters():
        if "upsample_image" not in name:
            nn.init.zeros_(p)
    return network


class TestStructure:
    @pytest.mark.parametrize(("dims", "expected"), [(2, 444_817), (3, 1_333_825)])
    def test_number_of_parameters_of_the_paper_s_network(self, size, dims, expected):
        """In 2D 9 * 64 + 64; 12 (9 * 64^2 + 64); 16 * 64 + 1 and 16 of the transposed convolutions."""
        assert size(RRLSRN(dims)) == expected
        assert size(RRLSRN(dims, scale_factor=8)) == expected

    @pytest.mark.parametrize(("dims", "channels", "layers", "filters"), [(2, 2, 1, 5), (3, 1, 4, 3), (2, 3, 2, 8)])
    @pytest.mark.parametrize(("scale", "share", "levels"), [(2, True, 1), (2, False, 1), (4, False, 2), (8, False, 3)])
    def test_number_of_parameters(self, size, dims, channels, layers, filters, scale, share, levels):
        k, n = 3**dims, filters
        level = (k * channels + 1) * n + (layers - 1) * (k * n + 1) * n + 4**dims * n + 1 + 4**dims
        assert size(RRLSRN(dims, channels, layers, filters, scale, share)) == levels * level

    def test_defaults_are_the_13_layers_of_the_paper(self):
        layers = [m for m in RRLSRN(2).modules() if isinstance(m, nn.Conv2d)]
        assert len(layers) == 13
        assert {(m.out_channels, m.kernel_size) for m in layers} == {(64, (3, 3))}
        assert {m.negative_slope for m in RRLSRN(2).modules() if isinstance(m, nn.LeakyReLU)} == {0.2}

    @pytest.mark.parametrize(("dims", "shape"), [(2, (5, 8)), (2, (1, 7)), (3, (4, 3, 5)), (3, (1, 3, 2))])
    @pytest.mark.parametrize("scale", [2, 4, 8])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_shapes(self, dims, shape, scale, channels):
        network = RRLSRN(dims, channels, **SMALL, scale_factor=scale)
        assert network(torch.rand(2, channels, *shape)).shape == (2, 1, *(scale * n for n in shape))

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"in_channels": 0}, "must be >= 1, got 0, 3 and 4"),
            ({"num_layers": 0}, "must be >= 1, got 1, 0 and 4"),
            ({"num_filters": 0}, "must be >= 1, got 1, 3 and 0"),
            ({"scale_factor": 3}, r"scale_factor must be one of \(2, 4, 8\), got 3"),
            ({"scale_factor": 1}, r"scale_factor must be one of \(2, 4, 8\), got 1"),
            ({"negative_slope": 1.0}, r"negative_slope must be in \[0, 1\), got 1.0"),
            ({"negative_slope": -0.2}, r"negative_slope must be in \[0, 1\), got -0.2"),
            ({"initialisation": "he"}, "'msra', 'xavier' or a positive standard deviation, got 'he'"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            RRLSRN(**{"spatial_dims": 2, **SMALL, **kwargs})


class TestForward:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_is_the_equation(self, dims, channels):
        network = RRLSRN(dims, channels, **SMALL, negative_slope=0.3)
        for p in network.parameters():
            nn.init.normal_(p, std=0.3)
        conv = {2: functional.conv2d, 3: functional.conv3d}[dims]
        transposed = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[dims]
        *layers, w_f, b_f, w_x = network.parameters()
        y = torch.randn(2, channels, *(7, 6, 5)[:dims])
        f = y
        for weight, bias in zip(layers[::2], layers[1::2], strict=True):
            f = conv(f, weight, bias, padding=1)
            f = torch.where(f > 0, f, 0.3 * f)
        continued = y[:, :1]  # by its edge, four voxels on each side
        for axis in range(2, dims + 2):
            first, last = continued.narrow(axis, 0, 1), continued.narrow(axis, continued.shape[axis] - 1, 1)
            continued = torch.cat([first] * 4 + [continued] + [last] * 4, axis)
        image = transposed(continued, w_x, stride=2, padding=1)[(..., *[slice(8, -8)] * dims)]
        torch.testing.assert_close(network(y), image + transposed(f, w_f, b_f, stride=2, padding=1))

    @pytest.mark.parametrize("share", [True, False])
    @pytest.mark.parametrize("scale", [4, 8])
    def test_cascade_is_the_network_on_its_own_result(self, share, scale):
        network = RRLSRN(2, **SMALL, scale_factor=scale, share_weights=share)
        single, x = RRLSRN(2, **SMALL), torch.rand(2, 1, 5, 4)
        expected = x
        for i in range({4: 2, 8: 3}[scale]):
            level = network.levels[0 if share else i]
            single.load_state_dict({f"levels.0.{name}": value for name, value in level.state_dict().items()})
            expected = single(expected)
        torch.testing.assert_close(network(x), expected)

    def test_weights_trained_at_2_serve_8(self):
        first, other = RRLSRN(2, **SMALL), RRLSRN(2, **SMALL, scale_factor=8)
        other.load_state_dict(first.state_dict())
        x = torch.rand(1, 1, 4, 5)
        torch.testing.assert_close(other(x), first(first(first(x))))

    def test_references_are_interpolated_for_the_next_pass(self):
        single, double = RRLSRN(2, 2, **SMALL), RRLSRN(2, 2, **SMALL, scale_factor=4)
        double.load_state_dict(single.state_dict())
        x = torch.rand(1, 2, 6, 5)
        reference = functional.interpolate(x[:, 1:], size=(12, 10), mode="bilinear", align_corners=False)
        torch.testing.assert_close(double(x), single(torch.cat([single(x), reference], 1)))

    @pytest.mark.parametrize("scale", [2, 8])
    def test_wished_shape(self, scale):
        network, x = RRLSRN(2, **SMALL, scale_factor=scale), torch.rand(1, 1, 4, 5)
        made = (4 * scale, 5 * scale)
        assert torch.equal(network(x, made), network(x))
        with pytest.raises(ValueError, match=rf"must be \[{made[0]}, {made[1]}\], {scale} times .* got \[4, 5\]"):
            network(x, (4, 5))

    def test_input_is_not_changed(self):
        network, x = RRLSRN(2, **SMALL), torch.randn(1, 1, 6, 6)
        before = x.clone()
        network(x)
        assert torch.equal(x, before)

    def test_batch_equals_single_items(self):
        network, x = RRLSRN(3, **SMALL), torch.randn(3, 1, 5, 6, 7)
        torch.testing.assert_close(network(x), torch.cat([network(v[None]) for v in x]))

    @pytest.mark.parametrize(("scale", "share"), [(2, True), (4, True), (4, False)])
    def test_every_parameter_gets_a_gradient(self, scale, share):
        network = RRLSRN(2, **SMALL, scale_factor=scale, share_weights=share)
        network(torch.rand(2, 1, 5, 5)).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


class TestInitialisation:
    @pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
    @pytest.mark.parametrize("scale", [2, 4])
    def test_image_starts_as_linear_interpolation_up_to_the_border(self, dims, mode, scale):
        network = without_residual(RRLSRN(dims, 2, **SMALL, scale_factor=scale))
        x = torch.rand(1, 2, *(5, 4, 6)[:dims])
        expected = x[:, :1]
        for _ in range({2: 1, 4: 2}[scale]):
            expected = functional.interpolate(expected, scale_factor=2, mode=mode, align_corners=False)
        torch.testing.assert_close(network(x), expected)

    @pytest.mark.parametrize(("dims", "mode"), [(2, "bilinear"), (3, "trilinear")])
    def test_residual_starts_as_interpolated_mixture_of_features(self, dims, mode):
        level = RRLSRN(dims, **SMALL).levels[0]
        mixture = level.upsample_features.weight[(..., *[1] * dims)] / linear_kernel(dims)[(1,) * dims]
        f = torch.randn(1, 4, *(6, 5, 4)[:dims])
        mixed = torch.einsum("c o, b c ... -> b o ...", mixture, f)
        expected = functional.interpolate(mixed, scale_factor=2, mode=mode, align_corners=False)
        inner = (..., *[slice(1, -1)] * dims)  # features are zero outside
        torch.testing.assert_close(level.upsample_features(f)[inner], expected[inner])

    @pytest.mark.parametrize("initialisation", ["msra", "xavier", 0.01])
    def test_spread(self, initialisation):
        level = RRLSRN(2, initialisation=initialisation).levels[0]
        std = {"msra": (2 / 576) ** 0.5, "xavier": (1 / 576) ** 0.5}.get(initialisation, initialisation)
        layer = level.features[2]
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
        assert not layer.bias.any()
        mixture = level.upsample_features.weight[:, 0, 1, 1] * 16 / 9
        std = {"msra": (2 / 64) ** 0.5, "xavier": (1 / 64) ** 0.5}.get(initialisation, initialisation)
        assert mixture.std().item() == pytest.approx(std, rel=0.3)  # of 64 values


class TestTools:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("layers", [1, 5])
    def test_halo(self, dims, layers):
        """A transposed convolution looks one LR voxel further than the features."""
        assert receptive_field(RRLSRN(dims, num_layers=layers, num_filters=2), dims, 1) == (layers + 1,) * dims

    def test_exact_inferer_equals_one_pass(self):
        network, volume = RRLSRN(3, **SMALL).eval(), torch.rand(1, 1, 30, 14, 8)
        inferer = ExactInferer(memory_gib=ExactInferer().plan(volume.shape, network).memory / 2 / 2**30)
        assert len(inferer.plan(volume.shape, network).windows) > 1
        with torch.inference_mode():
            whole = network(volume)
        error = (inferer(volume, network) - whole).abs().max()
        assert error <= 1e-5 * (whole.max() - whole.min())

    @pytest.mark.parametrize(("dims", "scale", "share"), [(2, 2, True), (3, 2, True), (2, 4, True), (2, 8, False)])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_torchscript(self, dims, scale, share, channels):
        network = RRLSRN(dims, channels, **SMALL, scale_factor=scale, share_weights=share).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript itself
            scripted = torch.jit.script(network)
        for shape in ((6, 7, 5), (4, 3, 2)):
            x = torch.rand(2, channels, *shape[:dims])
            torch.testing.assert_close(scripted(x, [n * scale for n in shape[:dims]]), network(x))
