"""The Charbonnier loss against closed forms and NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from custom_components.losses import CharbonnierLoss, charbonnier_loss

REDUCTIONS = ["mean", "batchmean", "sum", "none"]
SHAPES = [(3, 1, 7, 5), (2, 2, 5, 3, 7)]


def pair(shape=(3, 1, 7, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-3, 0.2])
def test_equation_2_in_numpy(shape, eps):
    y, z = pair(shape)
    voxels = np.sqrt((y.numpy() - z.numpy()) ** 2 + eps**2)
    expected = {"sum": voxels.sum(), "batchmean": voxels.sum() / shape[0], "mean": voxels.mean()}
    for reduction, value in expected.items():
        assert CharbonnierLoss(eps, reduction)(y, z).item() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(CharbonnierLoss(eps, "none")(y, z).numpy(), voxels, rtol=1e-12)


def test_closed_form():
    """Sides 3, 4, 5, in 16 voxels of 2 samples."""
    y, z = torch.full((2, 1, 4, 4), 0.7, dtype=torch.float64), torch.full((2, 1, 4, 4), 0.4, dtype=torch.float64)
    for reduction, factor in {"mean": 1, "batchmean": 16, "sum": 32}.items():
        assert CharbonnierLoss(0.4, reduction)(y, z).item() == pytest.approx(0.5 * factor, rel=1e-12)


def test_default_is_the_papers_eps_and_the_mean():
    y, z = pair()
    expected = np.sqrt((y.numpy() - z.numpy()) ** 2 + 1e-6).mean()
    assert CharbonnierLoss()(y, z).item() == pytest.approx(expected, rel=1e-12)
    assert charbonnier_loss(y, z).item() == pytest.approx(expected, rel=1e-12)


def test_least_is_eps_on_equality_with_gradient_0():
    y, z = pair()
    same = z.clone().requires_grad_()
    loss = CharbonnierLoss(0.01)(same, z)
    (gradient,) = torch.autograd.grad(loss, same)
    assert loss.item() == pytest.approx(0.01, rel=1e-12)
    assert torch.equal(gradient, torch.zeros_like(z))
    assert CharbonnierLoss(0.01)(y, z) > loss


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_function_is_module(reduction):
    y, z = pair()
    assert torch.equal(charbonnier_loss(y, z, 0.1, reduction), CharbonnierLoss(0.1, reduction)(y, z))


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_equals_stacked_items(shape):
    y, z = pair(shape)
    items = list(zip(y.split(1), z.split(1), strict=True))
    for reduction, joined in {"mean": torch.mean, "batchmean": torch.mean, "sum": torch.sum}.items():
        values = torch.stack([CharbonnierLoss(0.1, reduction)(*item) for item in items])
        torch.testing.assert_close(CharbonnierLoss(0.1, reduction)(y, z), joined(values))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction):
    y, z = (t.requires_grad_() for t in pair((2, 1, 3, 3)))
    assert torch.autograd.gradcheck(CharbonnierLoss(0.3, reduction), (y, z))


def test_gradient_in_closed_form_is_below_1():
    y, z = pair()
    y.requires_grad_()
    (gradient,) = torch.autograd.grad(CharbonnierLoss(0.1, "sum")(y, z), y)
    e = (y - z).detach().numpy()
    np.testing.assert_allclose(gradient.numpy(), e / np.hypot(e, 0.1), rtol=1e-12)
    assert gradient.abs().max() < 1


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_finite_for_any_error(size):
    y = torch.full((1, 1, 2), size).requires_grad_()
    loss = CharbonnierLoss(1e-3)(y, torch.zeros(1, 1, 2))
    (gradient,) = torch.autograd.grad(loss, y)
    assert loss.item() == pytest.approx(math.hypot(size, 1e-3), rel=1e-6)
    assert gradient.flatten().tolist() == pytest.approx([size / math.hypot(size, 1e-3) / 2] * 2, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    """In float16 the sum over 2 * 40^3 errors of 1 is infinite and eps^2 is 0."""
    y = torch.ones(2, 1, 40, 40, 40, dtype=dtype, requires_grad=True)
    loss = CharbonnierLoss(reduction="sum")(y, torch.zeros_like(y))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(128000, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, y)
    assert gradient.dtype == dtype and torch.equal(gradient, torch.ones_like(y))
    zero = torch.zeros(1, 1, 2, dtype=dtype)
    assert CharbonnierLoss(1e-5)(zero, zero).item() == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"eps": 0}, "eps must be > 0, got 0"),
        ({"eps": -1.0}, "eps must be > 0, got -1.0"),
        ({"eps": math.nan}, "eps must be > 0, got nan"),
        ({"eps": math.inf}, "eps must be > 0, got inf"),
        ({"reduction": "max"}, r"reduction must be one of \('mean', 'batchmean', 'sum', 'none'\), got 'max'"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        CharbonnierLoss(**kwargs)
    with pytest.raises(ValueError, match=match):
        charbonnier_loss(*pair(), **kwargs)


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match=r"expected a target of shape \(2, 1, 4, 4\), got \(2, 4, 4\)"):
        CharbonnierLoss()(torch.rand(2, 1, 4, 4), torch.rand(2, 4, 4))


def test_repr_says_what_it_is():
    assert repr(CharbonnierLoss(0.01, "sum")) == "CharbonnierLoss(eps=0.01, reduction=sum)"
