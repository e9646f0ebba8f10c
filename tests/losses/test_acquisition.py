"""The loss of an estimated acquisition against closed forms and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from custom_components.losses import AcquisitionLoss, acquisition_loss

NAN = math.nan


def pair(seed=0):
    rng = np.random.default_rng(seed)
    pred, target = rng.normal(1, 0.5, (6, 4)), rng.normal(1, 0.5, (6, 4))
    target[rng.random((6, 4)) < 0.3] = NAN
    return torch.as_tensor(pred), torch.as_tensor(target)


@pytest.mark.parametrize("delta", [0.1, 0.3, 2.0])
def test_in_numpy(delta):
    pred, target = pair()
    values = []
    for a, b in zip(pred.numpy().flat, target.numpy().flat, strict=True):
        e = abs(a - b)
        if not math.isnan(e):
            values.append(e * e / 2 if e <= delta else delta * (e - delta / 2))
    assert 10 < len(values) < 24
    expected = sum(values) / len(values)
    assert acquisition_loss(pred, target, delta).item() == pytest.approx(expected, rel=1e-12)
    assert AcquisitionLoss(delta)(pred, target).item() == pytest.approx(expected, rel=1e-12)


def test_closed_form():
    """Errors of 0.1, on the square, and 0.5, on the line: (0.005 + 0.3 * 0.35) / 2."""
    pred, target = torch.tensor([[0.9, 1.5, 7.0]]), torch.tensor([[1.0, 1.0, NAN]])
    assert AcquisitionLoss()(pred, target).item() == pytest.approx((0.005 + 0.105) / 2)


def test_gradient_is_that_of_the_known_alone():
    pred, target = pair()
    pred.requires_grad_()
    (gradient,) = torch.autograd.grad(AcquisitionLoss()(pred, target), pred)
    known = ~target.isnan()
    error = (pred - target).detach()
    expected = torch.where(known, error.nan_to_num().clamp(-0.3, 0.3), 0.0) / known.sum()
    torch.testing.assert_close(gradient, expected)


def test_nothing_known_is_no_loss_and_no_gradient():
    pred = torch.ones(2, 4, requires_grad=True)
    loss = AcquisitionLoss()(pred, torch.full((2, 4), NAN))
    loss.backward()
    assert loss.item() == 0 and pred.grad.abs().max() == 0


def test_half_precision_is_summed_in_single():
    pred, target = (t.half() for t in pair())
    assert AcquisitionLoss()(pred, target).dtype == torch.float32


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, NAN])
def test_bad_delta(delta):
    with pytest.raises(ValueError, match="delta must be > 0, got"):
        AcquisitionLoss(delta)
    with pytest.raises(ValueError, match="delta must be > 0, got"):
        acquisition_loss(torch.ones(1, 4), torch.ones(1, 4), delta)


def test_unlike_shapes():
    with pytest.raises(ValueError, match=r"expected a target of shape \(2, 4\), got \(2, 3\)"):
        AcquisitionLoss()(torch.ones(2, 4), torch.ones(2, 3))
