import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from custom_components.networks import ReCNN


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]


class TestStructure:
    @pytest.mark.parametrize(
        ("dims", "channels", "layers", "filters", "kernel"),
        [(3, 1, 10, 64, 3), (3, 1, 20, 64, 3), (2, 2, 3, 8, 5), (3, 3, 2, 4, 1)],
    )
    def test_number_of_parameters(self, size, dims, channels, layers, filters, kernel):
        k = kernel**dims
        weights = k * (channels * filters + (layers - 2) * filters**2 + filters)
        biases = (layers - 1) * filters + 1
        network = ReCNN(dims, channels, layers, filters, kernel)
        assert size(network) == weights + biases

    def test_defaults_are_the_20_layers_of_the_paper(self):
        layers = convolutions(ReCNN(3))
        assert len(layers) == 20
        assert {m.out_channels for m in layers[:-1]} == {64}
        assert {m.kernel_size for m in layers} == {(3, 3, 3)}

    @pytest.mark.parametrize(
        ("dims", "channels", "shape"), [(2, 1, (5, 8)), (2, 3, (1, 7)), (3, 1, (5, 4, 7)), (3, 2, (1, 3, 2))]
    )
    @pytest.mark.parametrize("kernel", [1, 3, 5])
    def test_sizes_stay(self, dims, channels, shape, kernel):
        network = ReCNN(dims, channels, num_layers=3, num_filters=4, kernel_size=kernel)
        assert network(torch.rand(2, channels, *shape)).shape == (2, 1, *shape)

    @pytest.mark.parametrize(
        ("kwargs", "match"),
        [
            ({"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1"),
            ({"num_layers": 1}, "num_layers must be >= 2, got 1"),
            ({"in_channels": 0}, "must be >= 1, got 0 and 64"),
            ({"num_filters": 0}, "must be >= 1, got 1 and 0"),
            ({"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
            ({"kernel_size": -1}, "kernel_size must be odd and positive, got -1"),
            (
                {"initialisation": "he"},
                "initialisation must be 'msra', 'xavier' or a positive standard deviation, got 'he'",
            ),
            ({"initialisation": 0.0}, "positive standard deviation, got 0.0"),
            ({"initialisation": -0.1}, "positive standard deviation, got -0.1"),
            ({"initialisation": True}, "positive standard deviation, got True"),
            ({"initialisation": None}, "positive standard deviation, got None"),
        ],
    )
    def test_errors(self, kwargs, match):
        with pytest.raises(ValueError, match=match):
            ReCNN(**{"spatial_dims": 2, "num_layers": 2, **kwargs})


class TestForward:
    @pytest.mark.parametrize("dims", [2, 3])
    @pytest.mark.parametrize("residual", [True, False])
    def test_is_equation_6(self, dims, residual):
        network = ReCNN(dims, num_layers=4, num_filters=5, residual=residual)
        conv = {2: functional.conv2d, 3: functional.conv3d}[dims]
        for layer in convolutions(network):
            nn.init.normal_(layer.bias)
        z = torch.randn(2, 1, *(7, 6, 5)[:dims])
        f = z
        parameters = list(network.parameters())
        for i in range(0, 8, 2):
            f = conv(f, parameters[i], parameters[i + 1], padding=1)
            if i < 6:
                f = f.clamp(min=0)
        torch.testing.assert_close(network(z), z + f if residual else f)

    def test_zero_weights(self):
        x = torch.rand(1, 2, 5, 6)
        for residual, expected in ((True, x[:, :1]), (False, torch.zeros(1, 1, 5, 6))):
            network = ReCNN(2, 2, num_layers=3, num_filters=4, residual=residual)
            for p in network.parameters():
                nn.init.zeros_(p)
            assert torch.equal(network(x), expected)

    def test_only_the_first_channel_is_added(self):
        arguments = {"spatial_dims": 3, "in_channels": 3, "num_layers": 3, "num_filters": 4}
        with_residual, without = ReCNN(**arguments), ReCNN(**arguments, residual=False)
        without.load_state_dict(with_residual.state_dict())
        x = torch.rand(1, 3, 4, 5, 6)
        torch.testing.assert_close(with_residual(x) - without(x), x[:, :1])

    def test_input_is_not_changed(self):
        """The rectifiers work in place, and must not do so on the input."""
        network, x = ReCNN(2, num_layers=3, num_filters=4), torch.randn(1, 1, 6, 6)
        before = x.clone()
        network(x)
        assert torch.equal(x, before)

    def test_batch_equals_single_items(self):
        network, x = ReCNN(3, num_layers=3, num_filters=4), torch.randn(3, 1, 5, 6, 7)
        torch.testing.assert_close(network(x), torch.cat([network(v[None]) for v in x]))

    @pytest.mark.parametrize(("layers", "kernel"), [(2, 3), (5, 3), (3, 5), (4, 1)])
    def test_receptive_field(self, layers, kernel):
        """A change of one voxel reaches (k - 1) L / 2 voxels to each side, and no further."""
        network = ReCNN(2, num_layers=layers, num_filters=3, kernel_size=kernel).double()
        for layer in convolutions(network):
            nn.init.uniform_(layer.weight, 0.1, 1)  # positive: no rectifier hides the change
        x = torch.rand(1, 1, 31, 31, dtype=torch.float64)
        changed = x.clone()
        changed[0, 0, 15, 15] += 1
        where = (network(changed) != network(x))[0, 0].nonzero()
        reach = (kernel - 1) * layers // 2
        assert where.min(0).values.tolist() == [15 - reach] * 2
        assert where.max(0).values.tolist() == [15 + reach] * 2
        assert len(where) == ((kernel - 1) * layers + 1) ** 2

    def test_every_parameter_gets_a_gradient(self):
        network = ReCNN(3, num_layers=3, num_filters=4)
        network(torch.rand(2, 1, 5, 5, 5)).square().mean().backward()
        assert all(p.grad.abs().sum() > 0 for p in network.parameters())


class TestInitialisation:
    """Statistics over the 36 864 weights of a layer of 64 filters with fan-in 576: std is then known to 0.4 %."""

    @staticmethod
    def layer(initialisation):
        return convolutions(ReCNN(2, num_layers=3, initialisation=initialisation))[1].weight.detach()

    @pytest.mark.parametrize(
        ("initialisation", "std"),
        [("msra", (2 / 576) ** 0.5), ("xavier", (1 / 576) ** 0.5), (0.01, 0.01), (0.001, 0.001), (1, 1.0)],
    )
    def test_standard_deviation(self, initialisation, std):
        weight = self.layer(initialisation)
        assert float(weight.std()) == pytest.approx(std, rel=0.03)
        assert abs(float(weight.mean())) < 0.03 * std

    def test_xavier_is_uniform_within_its_bounds(self):
        weight, bound = self.layer("xavier"), (3 / 576) ** 0.5
        assert 0.99 * bound < float(weight.abs().max()) <= bound
        assert float((weight.abs() < bound / 2).float().mean()) == pytest.approx(0.5, abs=0.02)

    @pytest.mark.parametrize("initialisation", ["msra", 0.01])
    def test_normal_has_tails(self, initialisation):
        weight = self.layer(initialisation)
        outside = float((weight.abs() > 2 * weight.std()).float().mean())
        assert outside == pytest.approx(0.0455, abs=0.005)

    def test_fan_in_counts_all_three_dimensions(self):
        weight = convolutions(ReCNN(3, num_layers=3, num_filters=16))[1].weight.detach()
        assert float(weight.std()) == pytest.approx((2 / (16 * 27)) ** 0.5, rel=0.05)

    @pytest.mark.parametrize("initialisation", ["msra", "xavier", 0.01])
    def test_biases_are_zero(self, initialisation):
        layers = convolutions(ReCNN(2, num_layers=4, initialisation=initialisation))
        assert len(layers) == 4
        assert not any(layer.bias.any() for layer in layers)

    def test_seed_decides(self):
        weights = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            weights.append(ReCNN(2, num_layers=2).body[0].weight)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])


class TestTools:
    @pytest.mark.parametrize("residual", [True, False])
    def test_torchscript(self, residual):
        network = ReCNN(3, num_layers=3, num_filters=4, residual=residual).eval()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # torch's, about TorchScript itself; bundles export to it
            scripted = torch.jit.script(network)
        for shape in ((1, 1, 6, 7, 5), (2, 1, 9, 4, 8)):
            x = torch.rand(shape)
            torch.testing.assert_close(scripted(x), network(x))

    def test_symbolic_trace_finds_the_layers(self):
        """The receptive field is read from this graph."""
        network = ReCNN(3, num_layers=4, num_filters=4)
        traced = torch.fx.symbolic_trace(network)
        modules = [type(network.get_submodule(n.target)) for n in traced.graph.nodes if n.op == "call_module"]
        assert modules == [nn.Conv3d, nn.ReLU] * 3 + [nn.Conv3d]
        x = torch.rand(1, 1, 5, 5, 5)
        torch.testing.assert_close(traced(x), network(x))

    def test_state_goes_from_one_network_to_another(self):
        first, second = ReCNN(2, num_layers=3, num_filters=4), ReCNN(2, num_layers=3, num_filters=4)
        x = torch.rand(1, 1, 6, 6)
        assert not torch.equal(first(x), second(x))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))
