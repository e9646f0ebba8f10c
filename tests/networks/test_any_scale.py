"""`AnyScaleSR` against its own formula written out, scipy's spline, and itself with the condition in its weights."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch import nn
from torch.nn import functional

from custom_components.acquisition import cell_average_matrix
from custom_components.networks import AnyScaleSR, acquisition_condition

FWHM = 2 * math.sqrt(2 * math.log(2))  # of a Gaussian of sigma 1
LR = (4, 5, 3)
TARGETS = {
    "same": (4, 5, 3),
    "x2": (8, 10, 6),
    "x4": (16, 20, 12),
    "x5": (20, 25, 15),
    "one axis": (4, 5, 12),
    "x1 x3 x4": (4, 15, 12),
    "x1.5 x2 x5": (6, 10, 15),
    "not whole": (5, 13, 10),
}
each_target = pytest.mark.parametrize("shape", TARGETS.values(), ids=TARGETS)


def made(degree=3, layers=2, filters=4, kernels=3):
    """A network whose every parameter matters: those that start at 0 too."""
    network = AnyScaleSR(filters, layers, degree, num_features=16, num_kernels=kernels)
    for module in [network.detail, network.noise, network.error, *network.layers]:
        for name, parameter in module.named_parameters():
            if not name.startswith("convolution.weight"):
                nn.init.normal_(parameter, std=0.1)
    return network


def conditions(count):
    return torch.randn(count, 14)


def splines(x, shape, order=3):
    ratio = [m / n for n, m in zip(x.shape[2:], shape, strict=True)]
    grids = [zoom(v.double().numpy(), ratio, order=order, mode="nearest", grid_mode=True) for v in x[:, 0]]
    return torch.from_numpy(np.stack(grids)).float()


def mixed(weights, layer, told, kernels):
    """Kernels of a layer for each condition, `(B, out, in, 3, 3, 3)`: the sum of all, each but the first times its share."""
    stack = torch.stack([weights[f"{layer}.weight"], *(weights[f"{layer}.variants.{i}"] for i in range(kernels - 1))])
    shares = torch.ones(len(told), 1)
    if kernels > 1:
        shares = torch.cat([shares, told @ weights[f"{layer}.shares.weight"].T], 1)
    return torch.einsum("bk,koixyz->boixyz", shares, stack)


def each(x, kernels, bias):
    return torch.cat([functional.conv3d(one[None], k, bias, padding=1) for one, k in zip(x, kernels, strict=True)])


def features_of_conditions(network, condition):
    """Less those of the reference: x2 from voxels of 2 mm, a Gaussian of 1 mm, no noise, all told."""
    w, known = network.state_dict(), torch.cat([condition, torch.tensor([[1, 1, FWHM / 2, 1] * 3 + [0, 1]])])
    c = (known @ w["condition.0.weight"].T + w["condition.0.bias"]).clamp(min=0)
    c = (c @ w["condition.2.weight"].T + w["condition.2.bias"]).clamp(min=0)
    return c[:-1] - c[-1:]


def written_out(network, x, condition):
    """Features `(B, C, *lr)` of the formula: what is added is scaled and shifted; a sum of all layers and the head twice."""
    w, c = network.state_dict(), features_of_conditions(network, condition)
    count = 1 + len(network.detail.variants)
    head = functional.conv3d(x, w["head.weight"], w["head.bias"], padding=1)
    y = head
    for i in range(len(network.layers)):
        scale_shift = c @ w[f"layers.{i}.modulation.weight"].T + w[f"layers.{i}.modulation.bias"]
        gain, shift = scale_shift[..., None, None, None].split(y.shape[1], 1)
        name = f"layers.{i}.convolution"
        added = each(y.clamp(min=0), mixed(w, name, c, count), w[f"{name}.bias"])
        y = y + added + added * gain + shift
    return y + head


def general_path(network, features, shape, condition):
    """All coefficients of each LR voxel, read by the full matrix of each axis, in float64."""
    told, count = features_of_conditions(network, condition), 1 + len(network.detail.variants)
    kernels = mixed(network.state_dict(), "detail", told, count)
    coefficients = each(features, kernels, network.detail.bias).double()
    lr, k = features.shape[2:], network.degree + 1
    coefficients = coefficients.reshape(len(features), k, k, k, *lr)
    a, b, c = (cell_average_matrix(n, m, k - 1).reshape(m, n, k) for n, m in zip(lr, shape, strict=True))
    return torch.einsum("zijkuvw,xui,yvj,twk->zxyt", coefficients, a, b, c).float()


def detail(network, x, shape, condition):
    return network(x, shape, condition)[:, 0] - splines(x, shape)


class TestCondition:
    def test_what_it_holds(self):
        """Per axis log2 of factor and size, width and whether it is known; then noise in 3 % and whether it is known."""
        condition = acquisition_condition((2, 1, 3.3), (2.0, 0.5, 3.96), (0.8, 0.9, None), 0.015)
        expected = [1, 1, 0.8, 1, 0, -1, 0, 0, math.log2(3.3), math.log2(3.96), 0, 0, 0.5, 1]
        assert condition.dtype == torch.float32
        np.testing.assert_allclose(condition, expected, rtol=1e-6, atol=1e-7)

    def test_what_was_estimated_is_told_as_less_certain(self):
        condition = acquisition_condition((2, 1, 3), (1, 1, 1), (0.8, 0.9, None), certainty=(0.5, 0.5, 1.0))
        assert condition[2:12:4].tolist() == pytest.approx([0.8, 0, 0])
        assert condition[3:12:4].tolist() == [0.5, 0, 0]

    def test_nothing_known_but_the_grids(self):
        assert acquisition_condition((2, 2, 2), (1, 1, 1)).tolist() == [1, 0, 0, 0] * 3 + [0, 0]

    def test_no_noise_is_another_thing_than_not_known(self):
        known, unknown = (acquisition_condition((2, 2, 2), (1, 1, 1), noise_std=std)[12:] for std in (0.0, None))
        assert (known.tolist(), unknown.tolist()) == ([0, 1], [0, 0])

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            (((2, 2), (1, 1, 1)), "3 values per axis, got 2 factors, 3 sizes, 3 widths, 3 certainties"),
            (((2, 2, 2), (1, 1)), "3 values per axis, got 3 factors, 2 sizes, 3 widths, 3 certainties"),
            (((2, 2, 2), (1, 1, 1), (None,)), "3 values per axis, got 3 factors, 3 sizes, 1 widths, 3 certainties"),
            (((2, 0.5, 2), (1, 1, 1)), r"factors >= 1 and sizes > 0, got \[2, 0\.5, 2\] and \[1, 1, 1\]"),
            (((2, 2, 2), (1, 0, 1)), r"factors >= 1 and sizes > 0, got \[2, 2, 2\] and \[1, 0, 1\]"),
            (((2, 2, 2), (1, math.nan, 1)), r"factors >= 1 and sizes > 0, got .* and \[1, nan, 1\]"),
            (((2, 2, 2), (1, math.inf, 1)), r"factors >= 1 and sizes > 0, got .* and \[1, inf, 1\]"),
        ],
    )
    def test_errors(self, arguments, match):
        with pytest.raises(ValueError, match=match):
            acquisition_condition(*arguments)


class TestForward:
    @each_target
    @pytest.mark.parametrize("kernels", [1, 3])
    def test_is_the_formula_by_the_general_path(self, shape, kernels):
        """Whole factors take another way than others, with the decoder in the weights: the same to 1e-5."""
        network, x, condition = made(kernels=kernels), torch.rand(2, 1, *LR), conditions(2)
        with torch.no_grad():
            got = network(x, shape, condition)
            features = written_out(network, x, condition)
            noise = functional.conv3d(features, network.noise.weight, network.noise.bias, padding=1)
            raw = functional.conv3d(features.abs(), network.error.weight, network.error.bias, padding=1)
            error = 0.03 * raw.exp().add(1).log() + 3e-4
            image = splines(x, shape) + general_path(network, features, shape, condition)
        expected = [image, splines(noise, shape), splines(error, shape, order=1)]
        assert got.shape == (2, 3, *shape)
        for channel, truth in zip(got.unbind(1), expected, strict=True):
            torch.testing.assert_close(channel, truth, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("degree", [0, 1, 2])
    def test_other_degrees(self, degree):
        network, x, condition = made(degree), torch.rand(1, 1, *LR), conditions(1)
        with torch.no_grad():
            features = written_out(network, x, condition)
            for shape in TARGETS.values():
                expected = general_path(network, features, shape, condition)
                torch.testing.assert_close(detail(network, x, shape, condition), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("coarse", "times"),
        [((8, 10, 6), 2), ((12, 5, 3), (1, 4, 3)), ((7, 13, 5), 2)],
        ids=["x2", "axes", "not whole"],
    )
    def test_grids_agree(self, coarse, times):
        """The mean of the detail over the 2-blocks of x4 is the detail of x2, for one condition."""
        network, x, condition = made(), torch.rand(1, 1, *LR), conditions(1)
        steps = (times,) * 3 if isinstance(times, int) else times
        fine = tuple(n * k for n, k in zip(coarse, steps, strict=True))
        with torch.no_grad():
            blocks = functional.avg_pool3d(detail(network, x, fine, condition), steps)
            torch.testing.assert_close(blocks, detail(network, x, coarse, condition), rtol=0, atol=1e-5)

    @each_target
    def test_a_new_network_is_the_spline_and_an_expected_error(self, shape):
        x = torch.rand(2, 1, *LR)
        result, noise, error = AnyScaleSR(4, 1)(x, shape, conditions(2)).unbind(1)
        torch.testing.assert_close(result, splines(x, shape), rtol=0, atol=1e-5)
        assert not noise.any()
        torch.testing.assert_close(error, torch.full_like(error, 0.0303))

    def test_batch_of_unlike_conditions_equals_single_items(self):
        network, x, condition = made(), torch.rand(3, 1, *LR), conditions(3)
        single = torch.cat([network(v[None], (8, 7, 9), c[None]) for v, c in zip(x, condition, strict=True)])
        torch.testing.assert_close(network(x, (8, 7, 9), condition), single)
        assert (network(x[:1], (8, 7, 9), condition[1:2]) - single[:1]).abs().max() > 1e-3

    def test_the_reference_has_the_first_kernels_alone(self):
        """What is trained for other acquisitions leaves it as it was."""
        network, x, shape = made(), torch.rand(1, 1, *LR), (8, 10, 6)
        reference = acquisition_condition([2] * 3, [2] * 3, [FWHM / 2] * 3, 0.0)[None]
        before = network(x, shape, reference)
        others = [p for name, p in network.named_parameters() if "variants" in name or "shares" in name]
        others += [layer.modulation.weight for layer in network.layers] + list(network.condition.parameters())
        for parameter in others:
            nn.init.normal_(parameter)
        torch.testing.assert_close(network(x, shape, reference), before)
        assert (network(x, shape, conditions(1)) - before).abs().max() > 1

    def test_a_new_network_has_the_same_kernels_for_all_conditions(self):
        """Variants start at zero: what was trained without them goes on as it was."""
        torch.manual_seed(0)
        network = AnyScaleSR(4, 1, num_kernels=3)
        nn.init.normal_(network.detail.weight)
        plain = AnyScaleSR(4, 1)
        plain.load_state_dict(network.state_dict(), strict=False)
        x, condition = torch.rand(2, 1, *LR), conditions(2)
        torch.testing.assert_close(network(x, (8, 7, 9), condition), plain(x, (8, 7, 9), condition))

    def test_under_autocast_the_result_is_float32(self):
        network, x, condition = made(), torch.rand(1, 1, *LR), conditions(1)
        for shape in TARGETS.values():
            with torch.no_grad():
                expected = network(x, shape, condition)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    got = network(x, shape, condition)
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected, rtol=0, atol=0.05 * float(expected.abs().max()))

    @pytest.mark.parametrize("shape", [(4, 4, 3), (8, 10), (8, 10, 6, 2), (0, 5, 3)])
    def test_a_target_that_is_no_finer_grid(self, shape):
        with pytest.raises(ValueError, match=r"expected a shape of at least \(4, 5, 3\) voxels, got \("):
            made()(torch.rand(1, 1, *LR), shape, conditions(1))

    @pytest.mark.parametrize("name", ["num_filters", "num_layers", "num_features", "num_kernels", "degree"])
    def test_bad_arguments(self, name):
        bad = -1 if name == "degree" else 0
        with pytest.raises(ValueError, match=rf">= 1 and degree >= 0, got .*{bad}"):
            AnyScaleSR(**{"num_filters": 4, "num_layers": 1, name: bad})


class TestGradients:
    @pytest.mark.parametrize("shape", [(8, 10, 6), (5, 13, 10)], ids=["whole", "not whole"])
    def test_the_expected_error_reaches_its_own_head_alone(self, shape):
        network = made()
        network(torch.rand(1, 1, *LR), shape, conditions(1))[:, 2].sum().backward()
        touched = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        assert touched == {"error.weight", "error.bias"}

    @pytest.mark.parametrize("shape", [(8, 10, 6), (5, 13, 10)], ids=["whole", "not whole"])
    def test_result_and_noise_reach_all_others(self, shape):
        network = made()
        network(torch.rand(2, 1, *LR), shape, conditions(2))[:, :2].square().sum().backward()
        untouched = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
        assert untouched == {"error.weight", "error.bias"}

    def test_a_whole_factor_trains_the_polynomials_that_it_can_see(self):
        """Though x2 has 8 values per LR voxel and 64 coefficients; but for one that has no part in them."""
        network = made()
        network(torch.rand(1, 1, *LR), (8, 10, 6), conditions(1))[:, 0].square().sum().backward()
        per_coefficient = network.detail.weight.grad.flatten(1).abs().sum(1).reshape(4, 4, 4)
        used = torch.tensor([True, True, False, True])  # the quadratic polynomial has the mean 0 over each half
        assert torch.equal(per_coefficient > 1e-4, used[:, None, None] & used[:, None] & used)


class TestFolded:
    @each_target
    @pytest.mark.parametrize("maps", [True, False])
    def test_equals_forward(self, shape, maps):
        network, x, condition = made(), torch.rand(1, 1, *LR), conditions(1)
        with torch.no_grad():
            expected = network(x, shape, condition)
            values = network.folded(condition[0], LR, shape, maps)(x)
            count = math.prod(network.divisions(LR, shape))
            assert values.shape == (1, count + 2 * maps, *LR)
            decoded = network.decode(values[:, :count], shape)[:, 0]
        torch.testing.assert_close(decoded + splines(x, shape), expected[:, 0], rtol=0, atol=1e-5)
        if maps:
            torch.testing.assert_close(splines(values[:, -2:-1], shape), expected[:, 1], rtol=0, atol=1e-5)
            torch.testing.assert_close(splines(values[:, -1:], shape, order=1), expected[:, 2], rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("shape", "expected"),
        [((8, 10, 6), (2, 2, 2)), ((4, 15, 12), (1, 3, 4)), ((6, 25, 3), (4, 4, 1)), ((5, 6, 4), (4, 4, 4))],
    )
    def test_divisions(self, shape, expected):
        assert made().divisions(LR, shape) == expected

    def test_leaves_the_network_alone(self):
        """It is called for the validation of a training: nothing of the network may be frozen, changed or put to another mode."""
        network, x, condition = made(), torch.rand(1, 1, *LR), conditions(1)
        before = copy.deepcopy(network.state_dict())
        folded = network.folded(condition[0], LR, (8, 10, 6))
        assert not any(p.requires_grad for p in folded.parameters())
        assert all(p.requires_grad for p in network.parameters())
        assert network.head.training and not folded.training
        for parameter in folded.parameters():
            parameter.zero_()
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
        network(x, (8, 10, 6), condition).square().sum().backward()
        assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_is_convolutions_and_pointwise_functions_alone(self):
        """What `ExactInferer` streams."""
        folded = made().folded(conditions(1)[0], LR, (8, 10, 6))
        traced = torch.fx.symbolic_trace(folded)
        modules = [type(folded.get_submodule(n.target)) for n in traced.graph.nodes if n.op == "call_module"]
        assert modules == [nn.Conv3d, *[nn.ReLU, nn.Conv3d] * 2, nn.Conv3d, nn.Conv3d]
        without = torch.fx.symbolic_trace(made().folded(conditions(1)[0], LR, (8, 10, 6), maps=False))
        assert [n.op for n in without.graph.nodes].count("call_module") == len(modules) - 1


class TestState:
    def test_names_that_published_weights_have(self):
        layers = ["condition.0", "condition.2", "head", "detail", "noise", "error"]
        layers += [f"layers.{i}.{name}" for i in range(2) for name in ("convolution", "modulation")]
        names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
        assert set(made(kernels=1).state_dict()) == names
        mixtures = ["detail", *(f"layers.{i}.convolution" for i in range(2))]
        parts = ("shares.weight", "variants.0", "variants.1")
        assert set(made().state_dict()) == names | {f"{layer}.{part}" for layer in mixtures for part in parts}

    def test_round_trip(self, tmp_path):
        first, second = made(), made()
        x, condition = torch.rand(1, 1, *LR), conditions(1)
        for shape in TARGETS.values():
            assert not torch.allclose(first(x, shape, condition), second(x, shape, condition))
        torch.save(first.state_dict(), tmp_path / "model.pt")
        second.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        for shape in TARGETS.values():
            assert torch.equal(first(x, shape, condition), second(x, shape, condition))

    def test_number_of_parameters(self, size):
        """48 filters, 8 layers, degree 3: one weight per tap, 64 + 1 + 1 maps, and what reads the condition."""
        convolutions = (27 + 1) * 48 + 8 * (48 * 27 + 1) * 48 + (48 * 27 + 1) * 66
        one = convolutions + 15 * 64 + 65 * 64 + 8 * 65 * 96
        assert size(AnyScaleSR()) == one
        kernels = 8 * 48 * 48 * 27 + 48 * 27 * 64
        assert size(AnyScaleSR(num_kernels=3)) == one + 2 * kernels + 9 * 64 * 2
