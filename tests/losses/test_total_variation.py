"""Total variation against closed forms and NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from custom_components.losses import TotalVariationLoss, total_variation_loss

SHAPES = [(3, 2, 9), (3, 1, 7, 5), (2, 2, 5, 3, 4)]


def image(shape=(3, 1, 7, 5)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def in_numpy(x, eps):
    squares = np.zeros(x.shape)
    for axis in range(2, x.ndim):
        inner = [slice(None)] * x.ndim
        inner[axis] = slice(0, -1)
        squares[tuple(inner)] += np.diff(x, axis=axis) ** 2
    return np.sqrt(squares + eps**2) - eps


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_formula_in_numpy(shape, eps):
    x = image(shape)
    voxels = in_numpy(x.numpy(), eps)
    for reduction, value in {"sum": voxels.sum(), "batchmean": voxels.sum() / shape[0], "mean": voxels.mean()}.items():
        assert TotalVariationLoss(eps, reduction)(x).item() == pytest.approx(value, rel=1e-11)
    np.testing.assert_allclose(TotalVariationLoss(eps, "none")(x).numpy(), voxels, rtol=1e-9, atol=1e-12)


def test_step_costs_its_height_times_its_length():
    """Isotropic: the diagonal step of a corner voxel counts sqrt(2) times."""
    x = torch.zeros(1, 1, 5, 6, dtype=torch.float64)
    x[..., 3:] = 0.25
    assert total_variation_loss(x, 1e-9, "sum").item() == pytest.approx(5 * 0.25, rel=1e-6)
    corner = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    corner[..., :2, :2] = 1
    assert total_variation_loss(corner, 1e-9, "sum").item() == pytest.approx(2 + math.sqrt(2), rel=1e-6)


def test_default_eps_and_mean():
    x = image()
    expected = in_numpy(x.numpy(), 1e-3).mean()
    assert TotalVariationLoss()(x).item() == pytest.approx(expected, rel=1e-11)
    assert total_variation_loss(x).item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_constant_is_exactly_0_with_gradient_0(dtype, value, eps):
    x = torch.full((2, 1, 7, 5), value, dtype=dtype, requires_grad=True)
    loss = total_variation_loss(x, eps)
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert torch.equal(gradient, torch.zeros_like(x))


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
def test_function_is_module(reduction):
    assert torch.equal(total_variation_loss(image(), 0.1, reduction), TotalVariationLoss(0.1, reduction)(image()))


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_equals_stacked_items(shape):
    x = image(shape)
    values = torch.stack([total_variation_loss(item) for item in x.split(1)])
    torch.testing.assert_close(total_variation_loss(x), values.mean())


@pytest.mark.parametrize("shape", [(2, 1, 4), (2, 1, 3, 4), (1, 1, 2, 3, 2)])
def test_gradcheck(shape):
    assert torch.autograd.gradcheck(TotalVariationLoss(0.3), (image(shape).requires_grad_(),))


def test_half_precision_is_computed_in_float32():
    x = torch.zeros(2, 1, 400, 400, dtype=torch.float16)
    x[..., ::2] = 1
    loss = TotalVariationLoss(reduction="sum")(x)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2 * 400 * 399, rel=2e-3)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"eps": 0}, "eps must be > 0, got 0"),
        ({"eps": math.nan}, "eps must be > 0, got nan"),
        ({"reduction": "max"}, r"reduction must be one of \('mean', 'batchmean', 'sum', 'none'\), got 'max'"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        TotalVariationLoss(**kwargs)
    with pytest.raises(ValueError, match=match):
        total_variation_loss(image(), **kwargs)


def test_bad_shape():
    with pytest.raises(ValueError, match=r"expected an image \(B, C, \*spatial\), got the shape \(4, 4\)"):
        TotalVariationLoss()(torch.rand(4, 4))


def test_repr_says_what_it_is():
    assert repr(TotalVariationLoss(0.01, "sum")) == "TotalVariationLoss(eps=0.01, reduction=sum)"
