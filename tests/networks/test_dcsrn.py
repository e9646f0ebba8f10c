import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.inferers import ExactInferer, receptive_field
from custom_components.networks import DCSRN

SMALL = {"num_layers": 3, "growth_rate": 3, "first_filters": 4}


def trained(network):
    """The network with statistics and weights of its norms as after training, in evaluation mode."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network.eval()


class TestStructure:
    @pytest.mark.parametrize(("norm", "expected"), [("batch", 223_729), (None, 223_057)])
    def test_number_of_parameters_of_the_paper_s_network(self, size, norm, expected):
        """27 * 48 + 48; 27 * 24 * (48 + 72 + 96 + 120) + 4 * 24; 27 * 144 + 1; and 2 * (48 + 72 + 96 + 120) of the norms."""
        assert size(DCSRN(3, norm=norm)) == expected

    @pytest.mark.parametrize(
        ("dims", "channels", "layers", "growth", "first"), [(2, 1, 4, 24, 48), (3, 2, 1, 5, 7), (2, 3, 6, 4, 2)]
    )
    @pytest.mark.parametrize("norm", ["batch", None])
    def test_number_of_parameters(self, size, dims, channels, layers, growth, first, norm):
        k, seen = 3**dims, layers * first + growth * layers * (layers - 1) // 2
        expected = (k * channels + 1) * first + k * growth * seen + layers * growth
        expected += k * (first + layers * growth) + 1 + (2 * seen if norm else 0)
        assert size(DCSRN(dims, channels, layers, growth, first, norm)) == expected

    @pytest.mark.parametrize(("dims", "shape"), [(2, (5, 8)), (2, (1, 7)), (3, (5, 4, 7)), (3, (1, 3, 2))])
    @pytest.mark.parametrize("norm", ["batch", None])
    def test_sizes_stay(self, dims, shape, norm):
        assert DCSRN(dims, 2, **SMALL, norm=norm)(torch.rand(2, 2, *shape)).shape == (2, 1, *shape)

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"in_channels": 0}, "must be >= 1, got 0, 3, 3 and 4"),
            ({"num_layers": 0}, "must be >= 1, got 1, 0, 3 and 4"),
            ({"growth_rate": 0}, "must be >= 1, got 1, 3, 0 and 4"),
            ({"first_filters": 0}, "must be >= 1, got 1, 3, 3 and 0"),
            ({"norm": "instance"}, "norm must be 'batch' or None, got 'instance'"),
            ({"initialisation": 0.0}, "positive standard deviation, got 0.0"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            DCSRN(**{"spatial_dims": 2, **SMALL, **kwargs})


class TestForward:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("norm", ["batch", None])
    @pytest.mark.parametrize("residual", [True, False])
    def test_is_the_equation(self, dims, norm, residual):
        network = trained(DCSRN(dims, **SMALL, norm=norm, residual=residual))
        conv = {2: functional.conv2d, 3: functional.conv3d}[dims]
        state = network.state_dict()
        z = torch.randn(2, 1, *(7, 6, 5)[:dims])
        f = conv(z, state["first.weight"], state["first.bias"], padding=1)
        for i in range(3):
            g = f
            if norm:
                mean, var, weight, bias = (
                    state[f"layers.{i}.0.{name}"].view(-1, *[1] * dims)
                    for name in ("running_mean", "running_var", "weight", "bias")
                )
                g = (g - mean) / (var + 1e-5).sqrt() * weight + bias
            g = torch.where(g > 0, g, g.clamp(max=0).exp() - 1)
            name = f"layers.{i}.{2 if norm else 1}"
            f = torch.cat([f, conv(g, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)], 1)
        x = conv(f, state["last.weight"], state["last.bias"], padding=1)
        torch.testing.assert_close(network(z), z + x if residual else x)

    def test_only_the_first_channel_is_added(self):
        network, x = DCSRN(2, 2, **SMALL, residual=True), torch.rand(1, 2, 5, 6)
        for p in network.parameters():
            nn.init.zeros_(p)
        assert torch.equal(network(x), x[:, :1])

    def test_norm_sees_the_batch_in_training_mode_only(self):
        network, x = DCSRN(2, **SMALL), torch.randn(3, 1, 6, 6)
        alone = torch.cat([network(v[None]) for v in x])
        assert (network(x) - alone).abs().max() > 0.01
        network.eval()
        torch.testing.assert_close(network(x), torch.cat([network(v[None]) for v in x]))

    @pytest.mark.parametrize("norm", ["batch", None])
    def test_every_parameter_gets_a_gradient(self, norm):
        network = DCSRN(3, **SMALL, norm=norm)
        network(torch.rand(2, 1, 5, 5, 5)).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())

    @pytest.mark.parametrize("initialisation", ["msra", "xavier", 0.01])
    def test_initialisation(self, initialisation):
        layer = DCSRN(3, initialisation=initialisation).layers[3][2]
        fan_in = 27 * 120
        std = {"msra": (2 / fan_in) ** 0.5, "xavier": (1 / fan_in) ** 0.5}.get(initialisation, initialisation)
        assert layer.weight.std().item() == pytest.approx(std, rel=0.03)
        assert not layer.bias.any()


class TestTools:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize(("norm", "layers"), [("batch", 4), (None, 4), ("batch", 1)])
    def test_halo_is_that_of_the_docstring(self, dims, norm, layers):
        network = DCSRN(dims, num_layers=layers, growth_rate=2, first_filters=3, norm=norm).eval()
        assert receptive_field(network, dims, 1) == ((2 * layers + 5 - 1) // 2,) * dims

    @pytest.mark.parametrize("norm", ["batch", None])
    def test_exact_inferer_streams_it(self, norm):
        network, volume = trained(DCSRN(3, **SMALL, norm=norm)), torch.rand(1, 1, 30, 25, 12)
        inferer = ExactInferer(memory_gib=0.0008)
        assert inferer.plan(volume.shape, network).method == "stream"
        with torch.inference_mode():
            whole = network(volume)
        error = (inferer(volume, network) - whole).abs().max()
        assert error <= 1e-5 * (whole.max() - whole.min())

    @pytest.mark.parametrize("norm", ["batch", None])
    @pytest.mark.parametrize("residual", [True, False])
    def test_torchscript(self, norm, residual):
        network = trained(DCSRN(3, **SMALL, norm=norm, residual=residual))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch's, about TorchScript itself
            scripted = torch.jit.script(network)
        for shape in ((1, 1, 6, 7, 5), (2, 1, 9, 4, 8)):
            x = torch.rand(shape)
            torch.testing.assert_close(scripted(x), network(x))
