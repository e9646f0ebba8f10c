"""The losses of result, noise and expected error against closed forms and NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from custom_components.losses import CompositeLoss, DetailLoss, ErrorLikelihoodLoss, NoiseLoss
from custom_components.losses.parts import detail_loss, error_likelihood_loss, noise_loss

LOSSES = {
    "detail": (DetailLoss, detail_loss),
    "noise": (NoiseLoss, noise_loss),
    "error": (ErrorLikelihoodLoss, error_likelihood_loss),
}
SHAPES = [(3, 7, 5), (2, 5, 3, 7)]


def pair(shape=(2, 7, 5), seed=0):
    """Prediction `(B, 3, ...)` with a standard deviation of 0.05 to 0.35, and target `(B, 2, ...)`."""
    generator = torch.Generator().manual_seed(seed)
    batch, *spatial = shape
    pred = torch.rand(batch, 3, *spatial, generator=generator, dtype=torch.float64)
    pred[:, 2] = 0.3 * pred[:, 2] + 0.05
    return pred, torch.rand(batch, 2, *spatial, generator=generator, dtype=torch.float64)


def oracle(name, pred, target):
    total = []
    for (result, noise, std), (truth, n) in (
        (p.reshape(3, -1), t.reshape(2, -1)) for p, t in zip(pred.numpy(), target.numpy(), strict=True)
    ):
        if name == "detail":
            total += [(a - (b + c)) ** 2 for a, b, c in zip(result, truth, n, strict=True)]
        elif name == "noise":
            total += [(a - b) ** 2 for a, b in zip(noise, n, strict=True)]
        else:
            total += [(a - b) ** 2 / s**2 + 2 * math.log(s) for a, b, s in zip(result, truth, std, strict=True)]
    return np.mean(total)


def gradient(loss, pred, target):
    pred, target = pred.clone().requires_grad_(), target.clone().requires_grad_()
    return torch.autograd.grad(loss(pred, target), (pred, target), materialize_grads=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
class TestAll:
    def test_numpy(self, name, shape):
        pred, target = pair(shape)
        expected = oracle(name, pred, target)
        module, function = LOSSES[name]
        assert module()(pred, target).item() == pytest.approx(expected, rel=1e-12)
        assert torch.equal(function(pred, target), module()(pred, target))

    def test_batch_is_the_mean_of_its_items(self, name, shape):
        pred, target = pair(shape)
        loss = LOSSES[name][0]()
        items = [loss(p[None], t[None]) for p, t in zip(pred, target, strict=True)]
        torch.testing.assert_close(loss(pred, target), torch.stack(items).mean())

    def test_channels_that_it_reads(self, name, shape):
        """By the gradient: the result, the noise, or the standard deviation; of the target, what the docstring says."""
        pred, target = gradient(LOSSES[name][1], *pair(shape))
        read = [[i for i, channel in enumerate(g.unbind(1)) if channel.any()] for g in (pred, target)]
        assert read == {"detail": [[0], [0, 1]], "noise": [[1], [1]], "error": [[2], []]}[name]

    def test_gradcheck(self, name, shape):
        pred, target = pair(shape)
        pred.requires_grad_()
        if name == "error":  # only by the standard deviation, the rest of the prediction is detached
            head, tail = pred.detach()[:, :2], pred.detach()[:, 2:].clone().requires_grad_()
            assert torch.autograd.gradcheck(
                lambda std: error_likelihood_loss(torch.cat([head, std], 1), target), (tail,)
            )
        else:
            assert torch.autograd.gradcheck(lambda p: LOSSES[name][1](p, target), (pred,))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, name, shape, dtype):
        pred, target = pair(shape)
        value = LOSSES[name][1](pred.to(dtype), target.to(dtype))
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(oracle(name, pred, target), rel=0.03)


def test_zero_where_the_parts_fit():
    pred, target = pair()
    pred[:, 0], pred[:, 1] = target.sum(1), target[:, 1]
    assert detail_loss(pred, target).item() == noise_loss(pred, target).item() == 0


def test_truth_with_noise_is_no_error_of_the_detail_but_one_of_the_result():
    """Noise of 0.3 that the result keeps: nothing is missing of the detail, and the error is 0.3."""
    target = torch.full((1, 2, 4, 4), 0.3, dtype=torch.float64)
    pred = torch.ones(1, 3, 4, 4, dtype=torch.float64)
    pred[:, :2] = torch.tensor([0.6, 0.0], dtype=torch.float64)[:, None, None]
    assert detail_loss(pred, target).item() == 0
    assert error_likelihood_loss(pred, target).item() == pytest.approx(0.09)


class TestErrorLikelihood:
    @pytest.mark.parametrize("std", [0.003, 0.05, 0.7])
    def test_is_twice_the_likelihood_without_its_constant(self, std):
        pred, target = pair()
        pred[:, 2] = std
        errors = (pred[:, 0] - target[:, 0]).numpy()
        expected = -2 * stats.norm.logpdf(errors, scale=std).mean() - math.log(2 * math.pi)
        assert error_likelihood_loss(pred, target).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("std", [0.01, 0.2])
    def test_minimum_is_the_mean_squared_error(self, std):
        """Found by an optimizer of one number, from far above."""
        truth = torch.zeros(1, 2, 4000, dtype=torch.float64)
        errors = std * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        log = torch.zeros((), dtype=torch.float64, requires_grad=True)  # of the standard deviation
        optimizer = torch.optim.LBFGS([log], max_iter=50, line_search_fn="strong_wolfe")

        def step():
            optimizer.zero_grad()
            pred = torch.stack([errors, torch.zeros_like(errors), log.exp().expand_as(errors)], 1)
            loss = error_likelihood_loss(pred, truth)
            loss.backward()
            return loss

        optimizer.step(step)
        assert math.exp(2 * log.item()) == pytest.approx(errors.square().mean().item(), rel=1e-4)

    @pytest.mark.parametrize(
        ("std", "kept"), [(-1.0, 3e-4), (0.0, 3e-4), (2e-4, 3e-4), (3.5, 2.7), (math.exp(45), 2.7)]
    )
    def test_beyond_its_range_it_is_that_of_the_end_without_gradient(self, std, kept):
        pred, target = pair()
        pred[:, 2] = kept
        expected = error_likelihood_loss(pred, target)
        pred[:, 2] = std
        assert error_likelihood_loss(pred, target).item() == expected.item()
        assert not gradient(error_likelihood_loss, pred, target)[0].any()

    def test_a_perfect_result_is_finite(self):
        pred, target = pair()
        pred[:, 0] = target[:, 0]
        assert error_likelihood_loss(pred, target).item() == pytest.approx(2 * pred[:, 2].log().mean().item())


def test_sum_of_the_three_has_the_gradient_of_each():
    """In `CompositeLoss`, as the bundle has them: no term reaches into the channel of another."""
    pred, target = pair()
    loss = CompositeLoss(
        {name: module() for name, (module, _) in LOSSES.items()}, {"detail": 100, "noise": 10, "error": 0.01}
    )
    total, _ = gradient(loss, pred, target)
    for channel, (name, weight) in enumerate([("detail", 100), ("noise", 10), ("error", 0.01)]):
        alone, _ = gradient(LOSSES[name][1], pred, target)
        torch.testing.assert_close(total[:, channel], weight * alone[:, channel])


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("pred", "target", "match"),
    [
        ((2, 1, 4, 4), (2, 2, 4, 4), "prediction of 3 channels and a target of 2, got 1 and 2"),
        ((2, 3, 4, 4), (2, 1, 4, 4), "prediction of 3 channels and a target of 2, got 3 and 1"),
        ((2, 3, 4, 4), (2, 2, 4, 5), r"of one size, got \(2, 3, 4, 4\) and \(2, 2, 4, 5\)"),
        ((2, 3, 4, 4), (1, 2, 4, 4), r"of one size, got \(2, 3, 4, 4\) and \(1, 2, 4, 4\)"),
        ((2, 3, 4, 4), (2, 2, 4), r"of one size, got \(2, 3, 4, 4\) and \(2, 2, 4\)"),
        ((3,), (2,), r"of one size, got \(3,\) and \(2,\)"),
    ],
)
def test_errors(name, pred, target, match):
    with pytest.raises(ValueError, match=match):
        LOSSES[name][0]()(torch.rand(pred), torch.rand(target))


class TestRelativeDetail:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_numpy(self, shape):
        pred, target = pair(shape)
        terms = []
        for result, (truth, noise) in zip(pred[:, 0].numpy(), target.numpy(), strict=True):
            smooth = np.empty_like(truth)
            for index in np.ndindex(truth.shape):
                box = tuple(slice(max(i - 1, 0), i + 2) for i in index)
                smooth[index] = truth[box].mean()
            terms.append(np.mean((result - truth - noise) ** 2) / (np.mean((truth - smooth) ** 2) + 1e-3))
        assert DetailLoss(1e-3)(pred, target).item() == pytest.approx(np.mean(terms), rel=1e-12)

    def test_a_constant_sample_is_finite(self):
        pred = torch.rand(1, 3, 4, 4, 4, requires_grad=True)
        loss = detail_loss(pred, torch.zeros(1, 2, 4, 4, 4), 5e-4)
        loss.backward()
        assert loss.item() == pytest.approx(pred[:, 0].detach().square().mean().item() / 5e-4)
        assert pred.grad.isfinite().all()

    @pytest.mark.parametrize("floor", [0.0, -1.0, float("inf")])
    def test_bad_floor(self, floor):
        with pytest.raises(ValueError, match="floor must be > 0 or None"):
            DetailLoss(floor)
