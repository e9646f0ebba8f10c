"""The p-norm loss against closed forms, NumPy in float64, scipy's generalised Gaussian and torch's own losses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.handlers import ParamSchedulerHandler
from scipy import stats
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional

from custom_components.losses import PNormLoss, generalised_gaussian_nll, p_norm_loss

POWERS = [1, 1.25, 1.5, 1.75, 1.9, 2]
SHAPES = [(3, 1, 7, 5), (2, 2, 5, 3, 7)]


def pair(shape=(2, 1, 7, 5), dtype=torch.float64, seed=0):
    """Prediction and target with errors of 0.01 to 1 in size, of both signs."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=generator, dtype=torch.float64)
    size = 0.01 + 0.99 * torch.rand(shape, generator=generator, dtype=torch.float64)
    sign = torch.where(torch.rand(shape, generator=generator) < 0.5, -1.0, 1.0)
    return (target + sign * size).to(dtype), target.to(dtype)


def gradient(loss, pred, target):
    pred = pred.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(pred, target), pred)
    return result


class TestValue:
    @pytest.mark.parametrize("p", POWERS)
    def test_closed_form(self, p):
        """An error of 1/4 in 16 voxels of 3 samples: 4^-p in each."""
        pred, target = torch.full((3, 1, 4, 4), 0.75, dtype=torch.float64), torch.ones(3, 1, 4, 4, dtype=torch.float64)
        for reduction, factor in {"mean": 1, "batchmean": 16, "sum": 48}.items():
            assert PNormLoss(p, reduction)(pred, target).item() == pytest.approx(factor * 4**-p, rel=1e-12)

    @pytest.mark.parametrize("p", POWERS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_equation_2_in_numpy(self, p, shape):
        pred, target = pair(shape)
        y, z = pred.numpy(), target.numpy()
        voxels = [[abs(a - b) ** p for a, b in zip(y[i].flat, z[i].flat, strict=True)] for i in range(len(y))]
        total = sum(map(sum, voxels))
        expected = {"sum": total, "batchmean": total / len(y), "mean": total / y.size}
        for reduction, value in expected.items():
            assert PNormLoss(p, reduction)(pred, target).item() == pytest.approx(value, rel=1e-12)
        none = PNormLoss(p, "none")(pred, target)
        assert none.shape == shape
        np.testing.assert_allclose(none.numpy(), np.reshape(voxels, shape), rtol=1e-12)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_ends_are_torchs_losses(self, shape):
        pred, target = pair(shape, torch.float32)
        torch.testing.assert_close(PNormLoss(2)(pred, target), nn.MSELoss()(pred, target))
        torch.testing.assert_close(PNormLoss(1)(pred, target), nn.L1Loss()(pred, target))

    @pytest.mark.parametrize("p", POWERS)
    def test_zero_on_equality_alone(self, p):
        pred, target = pair()
        assert PNormLoss(p)(target, target.clone()).item() == 0
        assert PNormLoss(p)(pred, target).item() > 0

    @pytest.mark.parametrize("p", POWERS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_batch_equals_stacked_items(self, p, shape):
        pred, target = pair(shape)
        items = list(zip(pred.split(1), target.split(1), strict=True))
        together = {
            reduction: torch.stack([PNormLoss(p, reduction)(*item) for item in items])
            for reduction in ("mean", "batchmean", "sum")
        }
        torch.testing.assert_close(PNormLoss(p, "mean")(pred, target), together["mean"].mean())
        torch.testing.assert_close(PNormLoss(p, "batchmean")(pred, target), together["batchmean"].mean())
        torch.testing.assert_close(PNormLoss(p, "sum")(pred, target), together["sum"].sum())
        none = torch.cat([PNormLoss(p, "none")(*item) for item in items])
        torch.testing.assert_close(PNormLoss(p, "none")(pred, target), none)

    @pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
    @pytest.mark.parametrize("matched_at", [None, 0.02])
    def test_function_is_module(self, reduction, matched_at):
        pred, target = pair()
        expected = PNormLoss(1.6, reduction, matched_at)(pred, target)
        assert torch.equal(p_norm_loss(pred, target, 1.6, reduction, matched_at), expected)

    def test_defaults_are_the_papers_best_p_and_the_mean(self):
        pred, target = pair()
        for value in (p_norm_loss(pred, target), PNormLoss()(pred, target)):
            assert value.item() == pytest.approx(((pred - target).abs().numpy() ** 1.9).mean(), rel=1e-12)

    def test_an_outlier_weighs_less_at_a_smaller_p(self):
        """Of a voxel that is wrong by 1 and 99 that are wrong by 0.1, share of the loss: 1 / (1 + 99 * 10^-p)."""
        error = torch.full((1, 1, 10, 10), 0.1, dtype=torch.float64)
        error[0, 0, 3, 4] = 1
        for p in POWERS:
            voxels = PNormLoss(p, "none")(error, torch.zeros_like(error))
            assert (voxels.max() / voxels.sum()).item() == pytest.approx(1 / (1 + 99 * 10**-p), rel=1e-12)


class TestGradient:
    @pytest.mark.parametrize("p", POWERS)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_equation_3(self, p, shape):
        """p |y - z|^(p-1) sign(y - z) for the output y: it grows where the output is too large."""
        pred, target = pair(shape)
        e = (pred - target).numpy()
        expected = p * np.abs(e) ** (p - 1) * np.sign(e)
        for reduction, count in {"sum": 1, "batchmean": shape[0], "mean": e.size}.items():
            got = gradient(PNormLoss(p, reduction), pred, target).numpy()
            np.testing.assert_allclose(got, expected / count, rtol=1e-10)
            assert (np.sign(got) == np.sign(e)).all()

    @pytest.mark.parametrize("p", POWERS)
    def test_target_gets_the_opposite(self, p):
        pred, target = pair()
        assert torch.equal(
            gradient(lambda z, y: PNormLoss(p)(y, z), target, pred), -gradient(PNormLoss(p), pred, target)
        )

    @pytest.mark.parametrize("p", [0.5, *POWERS])
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_is_zero_where_the_error_is(self, p, dtype):
        pred, target = pair(dtype=dtype)
        pred[0, 0, 2] = target[0, 0, 2]
        for matched_at in (None, 0.02):
            got = gradient(PNormLoss(p, "sum", matched_at, allow_any=True), pred, target)
            assert torch.equal(got == 0, pred == target)
            assert torch.isfinite(got).all()

    @pytest.mark.parametrize("p", POWERS)
    @pytest.mark.parametrize("size", [1e-30, 1e-8, 1e4])
    def test_is_finite_for_tiny_and_large_errors(self, p, size):
        error = torch.tensor([[[size, -size]]])
        got = gradient(PNormLoss(p, "sum"), error, torch.zeros_like(error))
        expected = p * size ** (p - 1)
        assert got.flatten().tolist() == pytest.approx([expected, -expected], rel=1e-4)

    @pytest.mark.parametrize("p", POWERS)
    @pytest.mark.parametrize("reduction", ["mean", "batchmean", "sum", "none"])
    def test_gradcheck(self, p, reduction):
        pred, target = (t.requires_grad_() for t in pair((2, 1, 3, 3)))
        assert torch.autograd.gradcheck(PNormLoss(p, reduction, matched_at=0.1), (pred, target))

    @pytest.mark.parametrize("s", [0.02, 0.3])
    @pytest.mark.parametrize("p", [0.5, *POWERS, 3])
    def test_matched_at_gives_the_gradient_of_the_squared_error(self, p, s):
        sizes = torch.tensor([[[s, -s], [s, s]]], dtype=torch.float64)
        got = gradient(PNormLoss(p, matched_at=s, allow_any=True), sizes, torch.zeros_like(sizes))
        torch.testing.assert_close(got, 2 * sizes / 4, rtol=1e-12, atol=0)

    @pytest.mark.parametrize("p", POWERS)
    def test_matched_at_is_one_factor_for_all_errors(self, p):
        pred, target = pair()
        ratio = gradient(PNormLoss(p, matched_at=0.02), pred, target) / gradient(PNormLoss(p), pred, target)
        assert ratio.std() < 1e-12
        assert ratio.mean().item() == pytest.approx(1 if p == 2 else 2 * 0.02 / (p * 0.02 ** (p - 1)))

    def test_in_use_it_brings_the_output_to_the_target(self):
        for p in POWERS:
            pred, target = pair()
            pred.requires_grad_()
            optimizer = torch.optim.Adam([pred], lr=0.05)
            for _ in range(150):
                optimizer.zero_grad()
                PNormLoss(p)(pred, target).backward()
                optimizer.step()
            assert (pred - target).abs().mean() < 0.05, p


class TestPrecision:
    @pytest.mark.parametrize("p", POWERS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_computed_in_float32(self, p, dtype):
        """In float16 the sum of 2 * 40^3 errors of 1 is beyond the largest number, and 1e-4 squared is 0."""
        for size in (1.0, 1e-4):
            target = torch.zeros(2, 1, 40, 40, 40, dtype=dtype)
            pred = torch.full_like(target, size).requires_grad_()
            for reduction, count in {"sum": 128000, "batchmean": 64000, "mean": 1}.items():
                loss = PNormLoss(p, reduction)(pred, target)
                assert loss.dtype == torch.float32
                assert loss.item() == pytest.approx(count * pred.detach()[0, 0, 0, 0, 0].item() ** p, rel=1e-4)
            (got,) = torch.autograd.grad(PNormLoss(p, "sum")(pred, target), pred)
            assert got.dtype == dtype
            assert got.float().mean().item() == pytest.approx(p * size ** (p - 1), rel=1e-2)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("learnable", [False, True])
    def test_under_autocast(self, dtype, learnable):
        torch.manual_seed(0)
        network, loss = nn.Conv2d(1, 1, 3, padding=1), PNormLoss(1.5, learnable=learnable)
        x, target = torch.rand(2, 1, 9, 9), torch.rand(2, 1, 9, 9)
        with torch.autocast("cpu", dtype=dtype):
            pred = network(x)
            assert pred.dtype == dtype
            value = loss(pred, target)
        value.backward()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(network(x), target).item(), rel=0.02)
        assert all(torch.isfinite(q.grad).all() and q.grad.any() for q in [*network.parameters(), *loss.parameters()])


class TestLikelihood:
    @pytest.mark.parametrize("p", [0.7, *POWERS, 3.5])
    @pytest.mark.parametrize("shape", SHAPES)
    def test_is_scipys_at_the_scale_that_fits_best(self, p, shape):
        pred, target = pair(shape)
        errors = (pred - target).numpy().ravel()
        best = minimize_scalar(lambda log: -stats.gennorm.logpdf(errors, p, scale=math.exp(log)).mean(), tol=1e-6)
        assert generalised_gaussian_nll(pred, target, p).item() == pytest.approx(best.fun, rel=1e-7)

    @pytest.mark.parametrize("p", POWERS)
    def test_gradcheck_also_by_p(self, p):
        pred, target = (t.requires_grad_() for t in pair((2, 1, 3, 3)))
        power = torch.tensor(float(p), dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(generalised_gaussian_nll, (pred, target, power))

    def test_is_finite_at_a_perfect_fit(self):
        loss, target = PNormLoss(1.5, learnable=True), torch.rand(1, 1, 4, 4)
        pred = target.clone().requires_grad_()
        value = loss(pred, target)
        value.backward()
        assert math.isfinite(value.item()) and math.isfinite(loss.logit.grad.item())
        assert not pred.grad.any()

    @pytest.mark.parametrize("p", [1.25, 1.9])
    def test_moves_a_network_in_the_direction_of_the_p_norm_loss(self, p):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 3)).double()
        x, target = torch.rand(2, 1, 12, 12).double(), torch.rand(2, 1, 8, 8).double()

        def direction(loss):
            grads = torch.autograd.grad(loss(network(x), target), list(network.parameters()))
            return functional.normalize(torch.cat([g.flatten() for g in grads]), dim=0)

        fixed = direction(PNormLoss(p))
        torch.testing.assert_close(direction(PNormLoss(p, learnable=True)), fixed, rtol=1e-5, atol=1e-8)
        assert (direction(PNormLoss(1.5)) - fixed).abs().max() > 1e-3  # another p has another direction


class TestLearnable:
    @pytest.mark.parametrize(
        ("name", "shape", "lowest", "highest"), [("Gaussian", 2, 1.9, 2), ("Laplacian", 1, 1, 1.1)]
    )
    def test_p_becomes_that_of_the_errors(self, name, shape, lowest, highest):
        rng = np.random.default_rng(0)
        errors = torch.from_numpy(stats.gennorm.rvs(shape, scale=0.03, size=(1, 1, 100, 100), random_state=rng)).float()
        loss = PNormLoss(1.5, learnable=True)
        optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            loss(errors, torch.zeros_like(errors)).backward()
            optimizer.step()
        assert lowest < loss.p < highest, name

    def test_p_between_is_found(self):
        """For errors of shape 1.5 the likelihood has its minimum there, and the start does not matter."""
        errors = torch.from_numpy(stats.gennorm.rvs(1.5, size=(1, 1, 200, 200), random_state=np.random.default_rng(0)))
        expected = stats.gennorm.fit(errors.numpy().ravel(), floc=0)[0]
        for start in (1.2, 1.8):
            loss = PNormLoss(start, learnable=True)
            optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
            for _ in range(120):
                optimizer.zero_grad()
                loss(errors, torch.zeros_like(errors)).backward()
                optimizer.step()
            assert loss.p == pytest.approx(expected, abs=0.005)

    @pytest.mark.parametrize("p", [1.01, 1.5, 1.9])
    def test_starts_where_asked_with_one_parameter(self, p):
        loss = PNormLoss(p, learnable=True)
        assert loss.p == pytest.approx(p, abs=1e-6)
        (parameter,) = loss.parameters()
        assert parameter.requires_grad and parameter.numel() == 1
        assert list(PNormLoss(p).parameters()) == [] and PNormLoss(p).state_dict() == {}

    def test_state_dict_round_trip(self):
        learnt, other = PNormLoss(1.9, learnable=True), PNormLoss(1.5, learnable=True)
        with torch.no_grad():
            learnt.logit.add_(0.7)
        assert other.p != learnt.p != pytest.approx(1.9, abs=1e-3)
        other.load_state_dict(learnt.state_dict())
        assert other.p == learnt.p == copy.deepcopy(learnt).p
        pred, target = pair()
        assert torch.equal(other(pred, target), learnt(pred, target))

    def test_reduction_and_matched_at_have_no_part(self):
        pred, target = pair()
        values = [
            PNormLoss(1.5, reduction, matched_at, learnable=True)(pred, target).item()
            for reduction, matched_at in (("mean", None), ("sum", None), ("none", 0.02))
        ]
        assert values[0] == values[1] == values[2]


class TestSetP:
    def test_changes_the_loss(self):
        pred, target = pair()
        loss = PNormLoss(2)
        loss.set_p(1.25)
        assert loss.p == 1.25
        assert torch.equal(loss(pred, target), PNormLoss(1.25)(pred, target))

    def test_annealed_by_monais_handler(self):
        """Linear from 2 to 1 over the epochs; each epoch runs with the p that was set at the end of the one before."""
        pred, target = pair()
        loss = PNormLoss(2)
        engine = Engine(lambda *_: loss(pred, target).item())
        schedule = {"initial_value": 2, "step_constant": 0, "step_max_value": 4, "max_value": 1.0}
        ParamSchedulerHandler(loss.set_p, "linear", schedule, epoch_level=True).attach(engine)
        values = []
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: values.append(e.state.output))
        engine.run([0], max_epochs=5)
        magnitude = (pred - target).abs().numpy()
        expected = [(magnitude**p).mean() for p in (2, 1.75, 1.5, 1.25, 1)]
        assert values == pytest.approx(expected, rel=1e-12)

    def test_refused_when_p_is_learnt(self):
        with pytest.raises(ValueError, match="p is learnt and cannot be set"):
            PNormLoss(1.5, learnable=True).set_p(1.6)

    @pytest.mark.parametrize("p", [0.99, 2.01, 0, -1, math.nan, math.inf])
    def test_out_of_range_changes_nothing(self, p):
        loss = PNormLoss(1.5)
        with pytest.raises(ValueError, match=f"p must be from 1 to 2, got {p}"):
            loss.set_p(p)
        assert loss.p == 1.5


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"p": 0.5}, "p must be from 1 to 2, got 0.5"),
        ({"p": 2.5}, "p must be from 1 to 2, got 2.5"),
        ({"p": math.nan}, "p must be from 1 to 2, got nan"),
        ({"p": 0, "allow_any": True}, "p must be > 0, got 0"),
        ({"p": -1, "allow_any": True}, "p must be > 0, got -1"),
        ({"p": math.inf, "allow_any": True}, "p must be > 0, got inf"),
        ({"p": math.nan, "allow_any": True}, "p must be > 0, got nan"),
        (
            {"reduction": "median"},
            r"reduction must be one of \('mean', 'batchmean', 'sum', 'none'\), got 'median'",
        ),
        ({"matched_at": 0}, "matched_at must be > 0, got 0"),
        ({"matched_at": -0.1}, "matched_at must be > 0, got -0.1"),
        ({"matched_at": math.inf}, "matched_at must be > 0, got inf"),
        ({"p": 1, "learnable": True}, "a learnable p must start between 1 and 2, got 1"),
        ({"p": 2, "learnable": True}, "a learnable p must start between 1 and 2, got 2"),
        ({"p": 3, "learnable": True, "allow_any": True}, "a learnable p must start between 1 and 2, got 3"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        PNormLoss(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"p": 0}, "p must be > 0, got 0"),
        ({"p": -0.5}, "p must be > 0, got -0.5"),
        ({"p": math.nan}, "p must be > 0, got nan"),
        ({"reduction": "max"}, "reduction must be one of .*, got 'max'"),
        ({"matched_at": -1}, "matched_at must be > 0, got -1"),
    ],
)
def test_bad_arguments_of_the_function(kwargs, match):
    with pytest.raises(ValueError, match=match):
        p_norm_loss(*pair(), **kwargs)


def test_any_power_on_request():
    pred, target = pair()
    for p in (0.5, 4):
        expected = (abs(pred.numpy() - target.numpy()) ** p).mean()
        assert PNormLoss(p, allow_any=True)(pred, target).item() == pytest.approx(expected)


@pytest.mark.parametrize("learnable", [False, True])
def test_shapes_are_not_broadcast(learnable):
    with pytest.raises(ValueError, match=r"expected a target of shape \(2, 1, 4, 4\), got \(2, 4, 4\)"):
        PNormLoss(1.5, learnable=learnable)(torch.rand(2, 1, 4, 4), torch.rand(2, 4, 4))


def test_repr_says_what_it_is():
    assert repr(PNormLoss(1.75, "sum", 0.02)) == "PNormLoss(p=1.75, reduction=sum, matched_at=0.02)"
    assert repr(PNormLoss(1.25, learnable=True)) == "PNormLoss(p=1.25, reduction=mean, matched_at=None)"
