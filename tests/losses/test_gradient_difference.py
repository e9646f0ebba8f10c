"""The gradient difference loss against closed forms and equation 5 in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from custom_components.losses import CharbonnierLoss, GradientDifferenceLoss, gradient_difference_loss

SHAPES = [(3, 2, 9), (3, 1, 7, 5), (2, 2, 5, 3, 4)]


def pair(shape=(3, 1, 7, 5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))


def equation_5(y, z, alpha=2.0, absolute=True):
    """Voxel by voxel, each with its neighbour one back along each axis."""
    y, z = y.numpy(), z.numpy()
    total = 0.0
    for index in itertools.product(*map(range, y.shape)):
        for axis in range(2, y.ndim):
            if index[axis]:
                back = (*index[:axis], index[axis] - 1, *index[axis + 1 :])
                dy, dz = float(y[index] - y[back]), float(z[index] - z[back])
                total += abs(abs(dz) - abs(dy) if absolute else dz - dy) ** alpha
    return total


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [1, 1.5, 2])
@pytest.mark.parametrize("absolute", [True, False])
def test_equation_5_in_python(shape, alpha, absolute):
    y, z = pair(shape)
    total = equation_5(y, z, alpha, absolute)
    for reduction, count in {"sum": 1, "batchmean": shape[0], "mean": y.numel()}.items():
        value = GradientDifferenceLoss(alpha, absolute, reduction)(y, z).item()
        assert value == pytest.approx(total / count, rel=1e-11)


def test_closed_form_of_a_step():
    """A step of 0.3 in place of one of 0.5, along one axis of a 4 x 6 image: 4 differences of 0.2."""
    y, z = torch.zeros(2, 1, 1, 4, 6, dtype=torch.float64).unbind()
    y[..., 3:], z[..., 3:] = 0.3, 0.5
    assert GradientDifferenceLoss(reduction="sum")(y, z).item() == pytest.approx(4 * 0.04)
    assert GradientDifferenceLoss(alpha=1, reduction="sum")(y, z).item() == pytest.approx(4 * 0.2)


def test_mirrored_edges_are_free_only_with_the_papers_absolute_values():
    _, z = pair()
    assert GradientDifferenceLoss()(1 - z, z).item() == pytest.approx(0, abs=1e-20)
    signed = GradientDifferenceLoss(absolute=False, reduction="sum")(1 - z, z).item()
    assert signed == pytest.approx(4 * equation_5(torch.zeros_like(z), z), rel=1e-12)


def test_default_is_the_papers_powers_and_the_mean():
    y, z = pair()
    expected = equation_5(y, z) / y.numel()
    assert GradientDifferenceLoss()(y, z).item() == pytest.approx(expected, rel=1e-12)
    assert gradient_difference_loss(y, z).item() == pytest.approx(expected, rel=1e-12)


def test_means_keep_the_balance_of_equation_6():
    """Sum of both terms: `batchmean` is `mean` times the voxels of a sample, for both alike."""
    y, z = pair((3, 1, 7, 5))
    mean, batchmean = (
        CharbonnierLoss(reduction=r)(y, z) + GradientDifferenceLoss(reduction=r)(y, z) for r in ("mean", "batchmean")
    )
    torch.testing.assert_close(batchmean, 35 * mean)


@pytest.mark.parametrize("absolute", [True, False])
def test_zero_on_equality_and_for_another_constant(absolute):
    y, z = pair()
    loss = GradientDifferenceLoss(absolute=absolute)
    assert loss(z, z.clone()).item() == 0
    assert loss(z + 1, z).item() == pytest.approx(0, abs=1e-20)
    assert loss(y, z).item() > 0.01


@pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum"])
def test_function_is_module(reduction):
    y, z = pair()
    module = GradientDifferenceLoss(1.5, False, reduction)
    assert torch.equal(gradient_difference_loss(y, z, 1.5, False, reduction), module(y, z))


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_equals_stacked_items(shape):
    y, z = pair(shape)
    items = list(zip(y.split(1), z.split(1), strict=True))
    for reduction, joined in {"mean": torch.mean, "batchmean": torch.mean, "sum": torch.sum}.items():
        values = torch.stack([GradientDifferenceLoss(reduction=reduction)(*item) for item in items])
        torch.testing.assert_close(GradientDifferenceLoss(reduction=reduction)(y, z), joined(values))


@pytest.mark.parametrize("alpha", [1, 1.5, 2, 3])
@pytest.mark.parametrize("absolute", [True, False])
def test_gradcheck(alpha, absolute):
    y, z = (t.requires_grad_() for t in pair((2, 1, 3, 3)))
    assert torch.autograd.gradcheck(GradientDifferenceLoss(alpha, absolute), (y, z))


@pytest.mark.parametrize("alpha", [1, 1.5, 2])
def test_a_flat_image_has_gradient_0_unless_signs_count(alpha):
    _, z = pair()
    for start in (torch.zeros_like(z), torch.full_like(z, 0.5)):
        y = start.requires_grad_()
        (stuck,) = torch.autograd.grad(GradientDifferenceLoss(alpha)(y, z), y)
        assert torch.equal(stuck, torch.zeros_like(z))
        (moves,) = torch.autograd.grad(GradientDifferenceLoss(alpha, absolute=False)(y, z), y)
        assert torch.isfinite(moves).all() and moves.abs().max() > 0


@pytest.mark.parametrize("alpha", [1, 1.5, 2])
def test_gradient_is_0_where_all_is_right(alpha):
    _, z = pair()
    y = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(GradientDifferenceLoss(alpha)(y, z), y)
    assert torch.equal(gradient, torch.zeros_like(z))


def test_an_axis_of_one_voxel_adds_nothing():
    y, z = pair((2, 1, 6))
    assert torch.equal(
        gradient_difference_loss(y[..., None], z[..., None], reduction="sum"),
        gradient_difference_loss(y, z, reduction="sum"),
    )
    assert gradient_difference_loss(y[..., :1], z[..., :1]).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    y = torch.zeros(1, 1, 400, 400, dtype=dtype)
    y[..., ::2] = 1
    loss = GradientDifferenceLoss(reduction="sum")(y, torch.zeros_like(y))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(400 * 399)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"alpha": 0.5}, "alpha must be >= 1, got 0.5"),
        ({"alpha": math.nan}, "alpha must be >= 1, got nan"),
        ({"alpha": math.inf}, "alpha must be >= 1, got inf"),
        ({"reduction": "none"}, r"reduction must be one of \('mean', 'batchmean', 'sum'\), got 'none'"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        GradientDifferenceLoss(**kwargs)
    with pytest.raises(ValueError, match=match):
        gradient_difference_loss(*pair(), **kwargs)


def test_bad_shapes():
    with pytest.raises(ValueError, match=r"expected a target of shape \(2, 1, 4, 4\), got \(2, 4, 4\)"):
        GradientDifferenceLoss()(torch.rand(2, 1, 4, 4), torch.rand(2, 4, 4))
    with pytest.raises(ValueError, match=r"expected images \(B, C, \*spatial\), got the shape \(4, 4\)"):
        GradientDifferenceLoss()(torch.rand(4, 4), torch.rand(4, 4))


def test_repr_says_what_it_is():
    assert repr(GradientDifferenceLoss(1)) == "GradientDifferenceLoss(alpha=1, absolute=True, reduction=mean)"
