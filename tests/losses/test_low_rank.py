"""The low-rank prior against matrices of known rank, equations 2 to 4 in NumPy, and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from custom_components.losses import LowRankLoss, low_rank_loss

SHAPES = [(3, 2, 7, 5), (2, 1, 4, 9), (2, 2, 5, 3, 4)]


def with_singular_values(values, shape=(6, 5), seed=0):
    """A matrix `(1, 1, *shape)` in float64 of the given singular values."""
    generator = np.random.default_rng(seed)
    u = np.linalg.qr(generator.standard_normal((shape[0],) * 2))[0][:, : len(values)]
    z = np.linalg.qr(generator.standard_normal((shape[1],) * 2))[0][:, : len(values)]
    return torch.from_numpy((u * np.asarray(values, dtype=np.float64)) @ z.T)[None, None]


def image(shape, scale=1.0):
    return scale * torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradient(loss, x):
    x = x.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(x), x)
    return result


def equations_2_and_3(matrix, delta):
    s = np.linalg.svd(matrix, compute_uv=False)
    return min(matrix.shape) - np.exp(-(s**2) / (2 * delta**2)).sum()


def equation_4(matrix, delta):
    u, s, zt = np.linalg.svd(matrix, full_matrices=False)
    return -u @ np.diag(-s / delta**2 * np.exp(-(s**2) / (2 * delta**2))) @ zt


class TestValue:
    @pytest.mark.parametrize("rank", [0, 1, 3, 5])
    def test_is_the_rank_where_singular_values_are_clear(self, rank):
        x = with_singular_values([5.0, 2.0, 1.0, 0.5, 0.2][:rank])
        assert LowRankLoss()(x).item() == pytest.approx(rank, abs=1e-12)

    def test_closed_form_at_delta(self):
        """A singular value of delta counts 1 - e^-1/2, one of 2 delta 1 - e^-2."""
        x = with_singular_values([0.02, 0.01])
        expected = 2 - math.exp(-0.5) - math.exp(-2)
        assert LowRankLoss(delta=0.01)(x).item() == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("delta", [0.01, 0.3])
    def test_equations_2_and_3_in_numpy(self, shape, delta):
        x = image(shape)
        slices = x.numpy() if x.ndim == 4 else np.moveaxis(x.numpy(), 4, 2)
        expected = np.apply_along_axis(
            lambda m: equations_2_and_3(m.reshape(slices.shape[-2:]), delta), -1, slices.reshape(*slices.shape[:-2], -1)
        )
        np.testing.assert_allclose(low_rank_loss(x, delta, reduction="none").numpy(), expected, rtol=1e-10)
        assert low_rank_loss(x, delta).item() == pytest.approx(expected.mean(), rel=1e-10)
        assert low_rank_loss(x, delta, reduction="sum").item() == pytest.approx(expected.sum(), rel=1e-10)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_slices_are_cut_across_the_axis(self, axis):
        volume = image((2, 1, 3, 4, 5))
        slices = torch.stack([low_rank_loss(s, 0.3, reduction="none") for s in volume.unbind(2 + axis)], dim=2)
        for name in (axis, axis - 3):
            got = LowRankLoss(0.3, slice_axis=name, reduction="none")(volume)
            torch.testing.assert_close(got, slices)

    @pytest.mark.parametrize("needs_gradient", [False, True])
    def test_function_is_module(self, needs_gradient):
        x = image((2, 1, 3, 4, 5)).requires_grad_(needs_gradient)
        for reduction in ("mean", "sum", "none"):
            expected = LowRankLoss(0.2, 1, reduction)(x)
            assert expected.requires_grad == needs_gradient
            assert torch.equal(low_rank_loss(x, 0.2, 1, reduction), expected)

    def test_value_is_the_same_with_and_without_gradient(self):
        x = image((2, 1, 7, 5))
        torch.testing.assert_close(low_rank_loss(x.clone().requires_grad_(), 0.3).detach(), low_rank_loss(x, 0.3))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_batch_equals_stacked_items(self, shape):
        x = image(shape)
        values = torch.stack([low_rank_loss(item, 0.3) for item in x.split(1)])
        torch.testing.assert_close(low_rank_loss(x, 0.3), values.mean())
        together = gradient(lambda t: low_rank_loss(t, 0.3, reduction="sum"), x)
        apart = [gradient(lambda t: low_rank_loss(t, 0.3, reduction="sum"), item) for item in x.split(1)]
        torch.testing.assert_close(together, torch.cat(apart))

    def test_default_delta_is_the_papers(self):
        x = image((1, 1, 7, 5), 0.05)
        assert LowRankLoss()(x).item() == pytest.approx(equations_2_and_3(x[0, 0].numpy(), 0.01), rel=1e-10)


class TestGradient:
    @pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
    @pytest.mark.parametrize("delta", [0.01, 0.3])
    def test_equation_4_in_numpy(self, shape, delta):
        x = image((1, 1, *shape), delta)
        got = gradient(LowRankLoss(delta), x)[0, 0].numpy()
        expected = equation_4(x[0, 0].numpy(), delta)
        assert np.abs(expected).max() > 0.1 / delta
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10 / delta)

    @pytest.mark.parametrize("shape", [(2, 1, 5, 3), (1, 2, 3, 4), (1, 1, 3, 2, 4)])
    @pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
    def test_gradcheck(self, shape, reduction):
        x = image(shape).requires_grad_()
        assert torch.autograd.gradcheck(lambda t: low_rank_loss(t, 0.5, 0, reduction), (x,))

    @pytest.mark.parametrize(
        "values",
        [[0.3, 0.3, 0.3, 0.3, 0.3], [0.4, 0.4, 0.2, 0.2], [0.5, 0.2, 0.2], [], [1e-9, 1e-9]],
        ids=["all_equal", "pairs_and_a_zero", "equal_and_zeros", "all_zero", "tiny"],
    )
    def test_gradcheck_at_equal_and_zero_singular_values(self, values):
        """Where differentiation through the SVD fails."""
        x = with_singular_values(values).requires_grad_()
        assert torch.autograd.gradcheck(lambda t: low_rank_loss(t, 0.3), (x,), atol=1e-6)

    def test_through_the_svd_itself_it_is_not_finite(self):
        """What the closed form is for: the same prior by autograd, at the same matrix."""

        def naive(t):
            _, s, _ = torch.linalg.svd(t, full_matrices=False)
            u, _, zh = torch.linalg.svd(t, full_matrices=False)
            return (u @ torch.diag_embed(1 - torch.exp(-(s**2) / 0.18)) @ zh).sum()

        assert not torch.isfinite(gradient(naive, torch.zeros(1, 1, 4, 3, dtype=torch.float64))).all()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("value", [0.0, 0.7])
    def test_constant_slices(self, dtype, value):
        """One singular value, `value * sqrt(35)`, and no others."""
        x = torch.full((2, 1, 7, 5), value, dtype=dtype)
        got = gradient(LowRankLoss(delta=1.0, reduction="sum"), x)
        s = value * math.sqrt(35)
        expected = s * math.exp(-(s**2) / 2) / math.sqrt(35)
        torch.testing.assert_close(got, torch.full_like(x, expected), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("values", [[0.1] * 5, [0.1, 0.1, 1e-8], [3.0]])
    def test_identity_of_equal_values_in_float32(self, values):
        x = with_singular_values(values)
        got = gradient(LowRankLoss(0.1), x.float())
        torch.testing.assert_close(got.double(), gradient(LowRankLoss(0.1), x), atol=1e-4, rtol=1e-4)

    def test_pushes_small_singular_values_down_and_leaves_large_ones(self):
        x = with_singular_values([2.0, 0.5, 0.012, 0.008])
        for _ in range(100):
            x = x - 2e-5 * gradient(LowRankLoss(0.01), x)
        s = np.linalg.svd(x[0, 0].numpy(), compute_uv=False)
        assert s[:2] == pytest.approx([2.0, 0.5], rel=1e-12)
        assert s[2:].max() < 1e-5

    @pytest.mark.parametrize("factor", [0.5, 1, 1.5])
    def test_is_largest_at_delta(self, factor):
        """Norm of the gradient: sigma / delta^2 e^(-sigma^2 / 2 delta^2), 0.61 / delta at delta."""
        norm = gradient(LowRankLoss(0.01), with_singular_values([0.01 * factor])).norm().item()
        assert norm == pytest.approx(factor * math.exp(-(factor**2) / 2) / 0.01, rel=1e-9)
        assert norm <= math.exp(-0.5) / 0.01 * (1 + 1e-9)

    def test_beyond_5_delta_is_below_a_thousandth(self):
        norm = gradient(LowRankLoss(0.01), with_singular_values([0.05])).norm().item()
        assert 0 < norm < 1e-3 * math.exp(-0.5) / 0.01

    def test_there_is_no_second_derivative(self):
        x = image((1, 1, 4, 4)).requires_grad_()
        with pytest.raises(RuntimeError, match="the low-rank prior has no second derivative, got create_graph=True"):
            torch.autograd.grad(low_rank_loss(x, 0.3) + x.square().sum(), x, create_graph=True)


class TestPrecision:
    def test_float32_tells_small_singular_values_of_a_bright_slice(self):
        """The largest is 20, 2000 delta; the error of float32 must stay far below delta."""
        x = with_singular_values([20.0, 3.0, 0.02, 0.01, 0.005], (40, 40))
        loss = LowRankLoss(0.01)
        assert loss(x.float()).item() == pytest.approx(loss(x).item(), abs=2e-3)
        expected = gradient(loss, x)
        assert (gradient(loss, x.float()).double() - expected).norm() < 2e-3 * expected.norm()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        x = image((2, 1, 7, 5)).to(dtype)
        loss = LowRankLoss(0.3)(x)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(LowRankLoss(0.3)(x.double()).item(), rel=1e-5)
        assert gradient(LowRankLoss(0.3), x).dtype == dtype

    def test_under_autocast(self):
        x = image((2, 1, 7, 5)).float()
        expected = gradient(LowRankLoss(0.3), x)
        with torch.autocast("cpu", torch.bfloat16):
            got = gradient(LowRankLoss(0.3), x)
        assert torch.equal(got, expected)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_slice_that_is_not_finite_gives_nan_and_no_error(self, bad):
        x = image((3, 1, 7, 5))
        clean = low_rank_loss(x, 0.3, reduction="none")
        x[1, 0, 2, 3] = bad
        for t in (x, x.clone().requires_grad_()):
            values = low_rank_loss(t, 0.3, reduction="none").detach()
            assert values[1].isnan().all()
            torch.testing.assert_close(values[::2], clean[::2])
        slopes = gradient(lambda t: low_rank_loss(t, 0.3, reduction="sum"), x)
        assert slopes[1].isnan().all() and slopes[::2].isfinite().all()


def test_gradient_reaches_a_network():
    torch.manual_seed(0)
    network = nn.Conv2d(1, 1, 3, padding=1)
    x = torch.rand(2, 1, 8, 8)
    low_rank_loss(network(x), 0.3).backward()
    assert network.weight.grad is not None and network.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"delta": 0}, "delta must be > 0, got 0"),
        ({"delta": math.nan}, "delta must be > 0, got nan"),
        ({"delta": math.inf}, "delta must be > 0, got inf"),
        ({"slice_axis": 3}, "slice_axis must be from -3 to 2, got 3"),
        ({"slice_axis": -4}, "slice_axis must be from -3 to 2, got -4"),
        ({"reduction": "batchmean"}, r"reduction must be one of \('mean', 'sum', 'none'\), got 'batchmean'"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        LowRankLoss(**kwargs)
    with pytest.raises(ValueError, match=match):
        low_rank_loss(image((1, 1, 4, 4)), **kwargs)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (1, 1, 2, 2, 2, 2)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=r"expected images \(B, C, X, Y\) or .*, got the shape \("):
        LowRankLoss()(torch.rand(shape))


def test_repr_says_what_it_is():
    assert repr(LowRankLoss(0.02, 1, "sum")) == "LowRankLoss(delta=0.02, slice_axis=1, reduction=sum)"
