import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.inferers import ExactInferer, receptive_field
from custom_components.networks import SRCNN


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]


class TestStructure:
    @pytest.mark.parametrize(
        ("dims", "channels", "filters", "kernels"),
        [
            (3, 1, (64, 32), (9, 1, 5)),
            (2, 1, (64, 32), (9, 1, 5)),
            (3, 2, (4, 3), (3, 5, 1)),
            (2, 3, (5, 6), (1, 1, 7)),
        ],
    )
    def test_number_of_parameters(self, size, dims, channels, filters, kernels):
        (n1, n2), (k1, k2, k3) = filters, (k**dims for k in kernels)
        network = SRCNN(dims, channels, filters, kernels)
        expected = (k1 * channels + 1) * n1 + (k2 * n1 + 1) * n2 + k3 * n2 + 1
        assert size(network) == expected

    def test_defaults_are_the_9_1_5_network_of_the_papers(self):
        """In 3D 64 * 9^3 + 64, 32 * 64 + 32 and 32 * 5^3 + 1 parameters, and no residual."""
        network = SRCNN(3)
        assert [sum(p.numel() for p in layer.parameters()) for layer in convolutions(network)] == [46720, 2080, 4001]
        assert [layer.kernel_size for layer in convolutions(network)] == [(9,) * 3, (1,) * 3, (5,) * 3]
        for p in network.parameters():
            nn.init.zeros_(p)
        assert not network(torch.rand(1, 1, 5, 5, 5)).any()

    @pytest.mark.parametrize(
        ("dims", "channels", "shape"), [(2, 1, (5, 8)), (2, 3, (1, 7)), (3, 1, (5, 4, 7)), (3, 2, (1, 3, 2))]
    )
    @pytest.mark.parametrize("kernels", [(9, 1, 5), (3, 3, 3), (1, 5, 1)])
    def test_sizes_stay(self, dims, channels, shape, kernels):
        network = SRCNN(dims, channels, (4, 3), kernels, residual=True)
        assert network(torch.rand(2, channels, *shape)).shape == (2, 1, *shape)

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
            (
                {"num_filters": (8,)},
                r"expected 2 num_filters and 3 kernel_sizes, got \(8,\) and \(9, 1, 5\)",
            ),
            (
                {"kernel_sizes": (9, 5)},
                r"expected 2 num_filters and 3 kernel_sizes, got \(64, 32\) and \(9, 5\)",
            ),
            ({"in_channels": 0}, r"must be >= 1, got 0 and \(64, 32\)"),
            ({"num_filters": (8, 0)}, r"must be >= 1, got 1 and \(8, 0\)"),
            ({"num_filters": (-1, 8)}, r"must be >= 1, got 1 and \(-1, 8\)"),
            ({"kernel_sizes": (9, 2, 5)}, r"kernel_sizes must be odd and positive, got \(9, 2, 5\)"),
            ({"kernel_sizes": (9, 1, -5)}, r"kernel_sizes must be odd and positive, got \(9, 1, -5\)"),
            ({"initialisation": "he"}, "'msra', 'xavier' or a positive standard deviation, got 'he'"),
            ({"initialisation": 0.0}, "positive standard deviation, got 0.0"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            SRCNN(**{"spatial_dims": 2, **kwargs})


class TestForward:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("residual", [True, False])
    @pytest.mark.parametrize("kernels", [(9, 1, 5), (3, 5, 1)])
    def test_is_three_convolutions(self, dims, residual, kernels):
        network = SRCNN(dims, num_filters=(5, 4), kernel_sizes=kernels, residual=residual)
        conv = {2: functional.conv2d, 3: functional.conv3d}[dims]
        for layer in convolutions(network):
            nn.init.normal_(layer.bias)
        z = torch.randn(2, 1, *(9, 8, 7)[:dims])
        w1, b1, w2, b2, w3, b3 = network.parameters()
        f1 = conv(z, w1, b1, padding=kernels[0] // 2).clamp(min=0)
        f2 = conv(f1, w2, b2, padding=kernels[1] // 2).clamp(min=0)
        x = conv(f2, w3, b3, padding=kernels[2] // 2)
        torch.testing.assert_close(network(z), z + x if residual else x)

    def test_inside_it_is_the_network_without_padding(self):
        """The papers convolve without padding: 13 - 1 voxels fewer per axis, the same elsewhere."""
        network, z = SRCNN(3, num_filters=(4, 3)), torch.randn(1, 1, 15, 14, 16)
        w1, b1, w2, b2, w3, b3 = network.parameters()
        x = functional.conv3d(functional.conv3d(functional.conv3d(z, w1, b1).relu(), w2, b2).relu(), w3, b3)
        assert x.shape == (1, 1, 3, 2, 4)
        torch.testing.assert_close(network(z)[..., 6:-6, 6:-6, 6:-6], x)

    def test_only_the_first_channel_is_added(self):
        arguments = {"spatial_dims": 3, "in_channels": 3, "num_filters": (4, 3), "kernel_sizes": (3, 1, 3)}
        with_residual, without = SRCNN(**arguments, residual=True), SRCNN(**arguments)
        without.load_state_dict(with_residual.state_dict())
        x = torch.rand(1, 3, 4, 5, 6)
        torch.testing.assert_close(with_residual(x) - without(x), x[:, :1])

    def test_with_zero_weights_the_residual_network_gives_its_input(self):
        network, x = SRCNN(2, 2, (4, 3), residual=True), torch.rand(1, 2, 5, 6)
        for p in network.parameters():
            nn.init.zeros_(p)
        assert torch.equal(network(x), x[:, :1])

    def test_input_is_not_changed(self):
        """The rectifiers work in place, and must not do so on the input."""
        for residual in (True, False):
            network, x = SRCNN(2, num_filters=(4, 3), residual=residual), torch.randn(1, 1, 6, 6)
            before = x.clone()
            network(x)
            assert torch.equal(x, before)

    def test_batch_equals_single_items(self):
        network, x = SRCNN(3, num_filters=(4, 3)), torch.randn(3, 1, 5, 6, 7)
        torch.testing.assert_close(network(x), torch.cat([network(v[None]) for v in x]))

    def test_every_parameter_gets_a_gradient(self):
        network = SRCNN(3, num_filters=(4, 3))
        network(torch.rand(2, 1, 9, 9, 9)).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


class TestInitialisation:
    @pytest.mark.parametrize(
        ("initialisation", "std"),
        [("msra", (2 / 729) ** 0.5), ("xavier", (1 / 729) ** 0.5), (0.001, 0.001)],
    )
    def test_first_layer(self, initialisation, std):
        """46 656 weights of fan-in 9^3: std is known to 0.4 %."""
        layer = convolutions(SRCNN(3, initialisation=initialisation))[0]
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03)

    @pytest.mark.parametrize("initialisation", ["msra", "xavier", 0.001])
    def test_all_layers(self, initialisation):
        layers = convolutions(SRCNN(3, initialisation=initialisation))
        assert len(layers) == 3
        for layer in layers:
            fan_in = layer.weight[0].numel()
            std = {"msra": (2 / fan_in) ** 0.5, "xavier": (1 / fan_in) ** 0.5}.get(initialisation, initialisation)
            assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
            assert not layer.bias.any()


class TestTiling:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("residual", [True, False])
    def test_halo_is_6(self, dims, residual):
        assert receptive_field(SRCNN(dims, num_filters=(4, 3), residual=residual), dims, 1) == (6,) * dims

    @pytest.mark.parametrize("kernels", [(9, 1, 5), (3, 3, 3), (5, 7, 1)])
    def test_halo_is_that_of_the_docstring(self, kernels):
        network = SRCNN(2, in_channels=2, num_filters=(4, 3), kernel_sizes=kernels)
        assert receptive_field(network, 2, 2) == ((sum(kernels) - 2 - 1) // 2,) * 2

    @pytest.mark.parametrize("residual", [True, False])
    def test_exact_inferer_equals_one_pass(self, residual):
        network, volume = SRCNN(3, num_filters=(8, 4), residual=residual).eval(), torch.rand(1, 1, 30, 41, 28)
        inferer = ExactInferer(memory_gib=0.0004)
        plan = inferer.plan(volume.shape, network)
        assert len(plan.windows) > 1
        with torch.inference_mode():
            whole = network(volume)
        error = (inferer(volume, network) - whole).abs().max()
        assert error <= 1e-5 * (whole.max() - whole.min())


class TestTools:
    @pytest.mark.parametrize("residual", [True, False])
    def test_torchscript(self, residual):
        network = SRCNN(3, num_filters=(4, 3), residual=residual).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript itself
            scripted = torch.jit.script(network)
        for shape in ((1, 1, 6, 7, 5), (2, 1, 9, 4, 8)):
            x = torch.rand(shape)
            torch.testing.assert_close(scripted(x), network(x))

    def test_symbolic_trace_finds_the_layers(self):
        """`ExactInferer` streams what it finds in this graph."""
        network = SRCNN(3, num_filters=(4, 3))
        traced = torch.fx.symbolic_trace(network)
        modules = [type(network.get_submodule(n.target)) for n in traced.graph.nodes if n.op == "call_module"]
        assert modules == [nn.Conv3d, nn.ReLU] * 2 + [nn.Conv3d]
        x = torch.rand(1, 1, 5, 5, 5)
        torch.testing.assert_close(traced(x), network(x))

    def test_state_goes_from_one_network_to_another(self):
        first, second = SRCNN(2, num_filters=(4, 3)), SRCNN(2, num_filters=(4, 3))
        x = torch.rand(1, 1, 6, 6)
        assert not torch.equal(first(x), second(x))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_edge_padding_repeats_the_border_once(dims):
    """A volume with six more voxels of its edge, cropped, and exact tiles: all the same."""
    padded, plain = (SRCNN(dims, num_filters=(4, 3), edge_padding=edge).eval() for edge in (True, False))
    plain.load_state_dict(padded.state_dict())
    x = torch.rand(1, 1, *(17, 14, 15)[:dims])
    wide = torch.nn.functional.pad(x, [12] * 2 * dims, mode="replicate")
    inner = (..., *[slice(12, -12)] * dims)
    with torch.inference_mode():
        result = padded(x)
        torch.testing.assert_close(result, plain(wide)[inner], rtol=0, atol=1e-5)
        assert (result - plain(x)).abs().max() > 1e-3
        torch.testing.assert_close(ExactInferer(memory_gib=0.0005)(x, padded), result, rtol=0, atol=1e-6)
