"""The triplet loss against NumPy, its closed forms, and scipy's interpolation of what it leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from custom_components.losses import FeatureLoss, TripletLoss, triplet_loss
from custom_components.losses.triplet import coarser


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def triple(*shape, dtype=torch.float32):
    return tuple(torch.rand(shape, dtype=dtype) for _ in range(3))


def features(in_channels=1):
    """Of a network whose rectifiers work in place."""
    return FeatureLoss(nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)), "2")


def identity(dims=2):
    layer = {2: nn.Conv2d, 3: nn.Conv3d}[dims](1, 1, 1)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return FeatureLoss(nn.Sequential(layer), "0")


class TestFormula:
    @pytest.mark.parametrize("shape", [(3, 2, 7, 5), (2, 1, 4, 5, 3), (4, 6)])
    @pytest.mark.parametrize("margin", [None, 0, 0.02])
    def test_numpy(self, shape, margin):
        anchor, positive, negative = triple(*shape)
        positive[0], negative[-1] = anchor[0], anchor[-1]  # one on either side of the hinge
        a, p, n = (x.numpy().astype(np.float64).reshape(shape[0], -1) for x in (anchor, positive, negative))
        excess = ((a - p) ** 2).mean(1) - ((a - n) ** 2).mean(1)
        expected = (excess if margin is None else np.maximum(excess + margin, 0)).mean()
        assert excess[0] < -0.02 and excess[-1] > 0
        assert triplet_loss(anchor, positive, negative, margin).item() == pytest.approx(expected, rel=1e-5)

    def test_closed_form_of_one_value(self):
        values = [torch.tensor([[v]]) for v in (1.0, 3.0, 0.0)]
        assert triplet_loss(*values) == 4 - 1
        assert triplet_loss(*values, margin=0.5) == 3.5
        near = [torch.tensor([[v]]) for v in (3.0, 3.0, 0.0)]
        assert (triplet_loss(*near), triplet_loss(*near, margin=0), triplet_loss(*near, margin=10)) == (-9, 0, 1)

    def test_positive_and_negative_mirror_it(self):
        anchor, positive, negative = triple(2, 1, 6, 6)
        torch.testing.assert_close(triplet_loss(anchor, positive, negative), -triplet_loss(anchor, negative, positive))

    def test_batch_equals_stacked_items(self):
        images = triple(3, 1, 6, 5)
        for margin in (None, 0.0):
            items = [triplet_loss(*(x[i : i + 1] for x in images), margin) for i in range(3)]
            torch.testing.assert_close(triplet_loss(*images, margin), torch.stack(items).mean())

    def test_half_precision(self):
        images = [x.half() for x in triple(1, 1, 6, 5)]
        value = triplet_loss(*images)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, triplet_loss(*(x.float() for x in images)))


class TestGradient:
    @pytest.mark.parametrize("margin", [None, 0.5])
    def test_gradcheck(self, margin):
        images = [x.requires_grad_() for x in triple(2, 1, 3, 4, dtype=torch.float64)]
        assert torch.autograd.gradcheck(lambda *x: triplet_loss(*x, margin), images)

    def test_pull_without_margin_is_the_same_everywhere(self):
        """2 (n - p) / size, also beyond the positive: the thesis' equation has no lower bound."""
        _, positive, negative = triple(1, 1, 4, 5)
        for anchor in (negative, positive, 10 * positive):
            anchor = anchor.clone().requires_grad_()
            triplet_loss(anchor, positive, negative).backward()
            torch.testing.assert_close(anchor.grad, 2 * (negative - positive) / 20)

    def test_is_zero_within_the_margin(self):
        _, positive, negative = triple(1, 1, 4, 5)
        anchor = positive.clone().requires_grad_()
        triplet_loss(anchor, positive, negative, margin=0).backward()
        assert not anchor.grad.any()

    def test_of_pred_alone(self):
        loss = TripletLoss(features())
        pred, target, negative = (x.requires_grad_() for x in triple(2, 1, 16, 16))
        loss(pred, target, negative).backward()
        assert pred.grad.abs().sum() > 0 and target.grad is None and negative.grad is None
        assert list(loss.parameters()) == []

    @pytest.mark.parametrize("weight", [0.1, 20.0])
    def test_beside_an_l1_distance_the_target_stays_the_least_while_the_weight_is_small(self, weight):
        """As the docstring has it: the largest difference of z and UDz, times twice the weight, is to stay below 1."""
        target = torch.rand(1, 1, 16, 16)
        loss, distance = TripletLoss(identity()), nn.L1Loss()
        holds = 2 * weight * (coarser(target, 2) - target).abs().max() < 1
        assert holds == (weight == 0.1)
        pred = (target + 0.05 * torch.randn_like(target)).requires_grad_()
        optimizer = torch.optim.SGD([pred], lr=0.5)
        for _ in range(300):
            optimizer.zero_grad()
            (distance(pred, target) + weight * loss(pred, target)).backward()
            optimizer.step()
        assert ((pred - target).abs().max() < 0.01) == holds


class TestModule:
    @pytest.mark.parametrize("margin", [None, 0.3])
    def test_is_the_function_of_features(self, margin):
        perceptual, (pred, target, negative) = features(), triple(2, 1, 12, 10)
        f = perceptual.features
        expected = triplet_loss(f(pred), f(target), f(negative), margin)
        torch.testing.assert_close(TripletLoss(perceptual, margin=margin)(pred, target, negative), expected)
        expected = triplet_loss(f(pred), f(target), f(coarser(target, 4)), margin)
        torch.testing.assert_close(TripletLoss(perceptual, 4, margin)(pred, target), expected)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_the_negative_is_worse_than_the_target_and_as_coarse_as_the_factor_says(self, dims):
        target = torch.rand(2, 1, *(16, 12, 8)[:dims])
        loss = TripletLoss(identity(dims))
        distance = (coarser(target, 2) - target).square().mean()
        torch.testing.assert_close(loss(target, target), -distance)
        torch.testing.assert_close(loss(coarser(target, 2), target), distance)
        assert TripletLoss(identity(dims), 4)(target, target) < -distance

    def test_a_result_that_is_sharper_is_better(self):
        target = torch.rand(1, 1, 32, 32)
        steps = [coarser(target, 4), coarser(target, 2), target]
        values = [TripletLoss(identity(), 4)(x, target).item() for x in steps]
        assert values == sorted(values, reverse=True) and len(set(values)) == 3


class TestCoarser:
    @pytest.mark.parametrize("factor", [2, 4])
    @pytest.mark.parametrize("shape", [(32,), (16, 24), (17, 13), (8, 8, 12)])
    def test_keeps_a_constant_and_its_place(self, factor, shape):
        assert coarser(torch.full((1, 2, *shape), 0.3), factor).sub(0.3).abs().max() < 1e-6
        ramp = torch.arange(float(shape[0])).reshape(1, 1, -1, *[1] * (len(shape) - 1)).expand(1, 1, *shape)
        inner = slice(2 * factor + 2, -2 * factor - 2)
        torch.testing.assert_close(coarser(ramp, factor)[:, :, inner], ramp[:, :, inner], rtol=0, atol=0.01)

    def test_takes_away_what_the_lower_resolution_cannot_hold(self):
        """A wave of three voxels goes at factor 2, one of sixteen stays; at factor 4 it stays too."""
        x = torch.arange(96.0)
        short, long = (torch.cos(2 * torch.pi * x / period)[None, None] for period in (3, 16))
        assert coarser(short, 2)[..., 12:-12].abs().max() < 0.3
        for factor in (2, 4):
            assert (coarser(long, factor) - long)[..., 12:-12].abs().max() < 0.2

    def test_device_and_precision_are_the_image_s(self):
        image = torch.rand(1, 1, 8, 8, dtype=torch.float64)
        assert coarser(image, 2).dtype == torch.float64
        torch.testing.assert_close(coarser(image.float(), 2).double(), coarser(image, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", [-1, float("nan"), float("inf")])
def test_bad_margin(margin):
    with pytest.raises(ValueError, match=f"margin must be >= 0 or None, got {margin}"):
        triplet_loss(*triple(1, 2), margin)
    with pytest.raises(ValueError, match=f"margin must be >= 0 or None, got {margin}"):
        TripletLoss(features(), margin=margin)


@pytest.mark.parametrize("factor", [1, 0, 2.5])
def test_bad_factor(factor):
    with pytest.raises(ValueError, match=f"scale_factor must be an integer >= 2, got {factor}"):
        TripletLoss(features(), factor)


def test_unlike_shapes():
    with pytest.raises(ValueError, match=r"a target of shape \(1, 2\), got \(1, 3\)"):
        triplet_loss(torch.rand(1, 2), torch.rand(1, 3), torch.rand(1, 2))
    with pytest.raises(ValueError, match=r"a target of shape \(1, 2\), got \(1, 3\)"):
        triplet_loss(torch.rand(1, 2), torch.rand(1, 2), torch.rand(1, 3))
    with pytest.raises(ValueError, match=r"a target of shape \(1, 1, 8, 8\), got \(1, 1, 8, 9\)"):
        TripletLoss(features())(torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 9))
