from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from custom_components.acquisition import (
    AcquisitionModes,
    acquisition_operator,
    interpolation_operator,
    make_consistent,
)

SHAPE, LR = (9, 8, 7), (4, 8, 3)


def dense(operator, shape):
    """The operator as one matrix, by Kronecker products."""
    parts = [np.eye(n) if m is None else m.numpy() for m, n in zip(operator.matrices, shape, strict=True)]
    return functools.reduce(np.kron, parts)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 1, *SHAPE, generator=generator, dtype=torch.float64)
    return truth, truth + 0.1 * torch.randn(1, 1, *SHAPE, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("protocol", ["gaussian_spline", "bicubic", "slice_profile", "box"])
@pytest.mark.parametrize("ratio", [1e-3, 0.1, 2.0])
def test_is_the_dense_solution(pair, protocol, ratio):
    truth, x = pair
    operator = acquisition_operator(SHAPE, LR, protocol)
    a, y = dense(operator, SHAPE), operator(truth) + 0.01
    step = np.linalg.solve(a @ a.T + ratio**2 * np.eye(len(a)), (y.numpy().ravel() - a @ x.numpy().ravel()))
    expected = x.numpy().ravel() + a.T @ step
    got = AcquisitionModes(operator, LR).correct(x, y, ratio**2)
    np.testing.assert_allclose(got.numpy().ravel(), expected, rtol=1e-6, atol=1e-7)
    if ratio == 1e-3:
        assert torch.equal(make_consistent(x, y, operator), got)


@pytest.mark.parametrize("protocol", ["gaussian_spline", "bicubic", "box"])
def test_gives_the_scan_again_and_comes_nearer_to_the_truth(pair, protocol):
    truth, x = pair
    operator = acquisition_operator(SHAPE, LR, protocol)
    y = operator(truth)
    got = make_consistent(x, y, operator)
    assert (operator(got) - y).abs().max() < 1e-2 * (operator(x) - y).abs().max()
    assert (got - truth).norm() < (x - truth).norm()
    torch.testing.assert_close(make_consistent(truth, y, operator), truth)


class TestNoise:
    """Results `r = x + e + I n` that hold the noise of the scan as a spline does; `e` white, all covariances known."""

    shape, lr = (18, 14, 12), (9, 7, 8)

    def case(self, protocol, noise, error, draws=8):
        operator, spline = (
            acquisition_operator(self.shape, self.lr, protocol),
            interpolation_operator(self.lr, self.shape),
        )
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(draws, 1, *self.shape, generator=generator, dtype=torch.float64)
        n = noise * torch.randn(draws, 1, *self.lr, generator=generator, dtype=torch.float64)
        e = error * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        return operator, x, operator(x) + n, x + e + spline(n)

    def least_errors(self, operator, noise, error):
        """Mean squared error of the best linear correction, and of the best with one weight from 0 per mode, by dense matrices."""
        a, up = dense(operator, self.shape), dense(interpolation_operator(self.lr, self.shape), self.lr)
        rest = np.eye(len(a)) - a @ up
        cross = noise**2 * up @ rest.T - error**2 * a.T  # of the result's error and y - A r
        found = error**2 * a @ a.T + noise**2 * rest @ rest.T
        own = error**2 * a.shape[1] + noise**2 * np.trace(up.T @ up)
        left, _, right = np.linalg.svd(a, full_matrices=False)
        along = np.minimum(((right @ cross) * left.T).sum(1), 0)
        per_mode = along**2 / ((found @ left) * left).sum(0)
        best = (cross * np.linalg.solve(found, cross.T).T).sum()
        return (own - best) / a.shape[1], (own - per_mode.sum()) / a.shape[1]

    @pytest.mark.parametrize("protocol", ["gaussian_spline", "slice_profile", "box"])
    @pytest.mark.parametrize(("noise", "error"), [(0.03, 0.005), (0.03, 0.03), (0.03, 0.08), (0.01, 0.03)])
    def test_comes_near_the_best_and_does_not_cost(self, protocol, noise, error):
        operator, truth, y, result = self.case(protocol, noise, error)
        linear, per_mode = self.least_errors(operator, noise, error)
        before = float((result - truth).square().mean())
        after = float((make_consistent(result, y, operator, noise, max(error, 0.03)) - truth).square().mean())
        assert after > 0.97 * linear
        assert after < 1.005 * before  # the energies of few modes are known by chance
        assert before - after > 0.7 * (before - per_mode) - 0.01 * before

    def test_the_noise_that_a_result_holds_is_not_added_again(self):
        """The closed form alone takes the noise for independent of the result's error, and pays for agreement."""
        operator, truth, y, result = self.case("box", 0.03, 0.005)
        alone = AcquisitionModes(operator, self.lr).correct(result, y, 1.0)
        before = (result - truth).square().mean()
        assert (alone - truth).square().mean() > 1.01 * before
        assert (make_consistent(result, y, operator, 0.03) - truth).square().mean() < 1.002 * before

    def test_a_result_of_its_own_noise_is_left(self):
        """All of the disagreement is noise that the spline has taken away."""
        operator, _, y, _ = self.case("box", 0.03, 0.0)
        noise = y - operator(torch.zeros(len(y), 1, *self.shape, dtype=y.dtype)) - y.mean()
        noise = 0.03 * noise / noise.std()
        spline = interpolation_operator(self.lr, self.shape)(noise)
        got = make_consistent(spline, noise, operator, 0.05)
        torch.testing.assert_close(got, spline, rtol=0, atol=1e-12)

    def test_hardly_any_noise_is_none(self):
        operator, _, y, result = self.case("gaussian_spline", 0.0, 0.03)
        torch.testing.assert_close(
            make_consistent(result, y, operator, 1e-7), make_consistent(result, y, operator), rtol=0, atol=1e-6
        )

    def test_agreement_in_full_stays(self):
        """No disagreement at all: nothing to divide by."""
        operator, truth, _, _ = self.case("box", 0.0, 0.0, 1)
        torch.testing.assert_close(make_consistent(truth, operator(truth), operator, 0.1), truth)


def test_much_noise_leaves_the_result(pair):
    truth, x = pair
    operator = acquisition_operator(SHAPE, LR)
    torch.testing.assert_close(make_consistent(x, operator(truth), operator, 1e3), x)


def test_float32_and_batches(pair):
    truth, x = (torch.cat([t, t.flip(2)]).float().repeat(1, 2, 1, 1, 1) for t in pair)
    operator = acquisition_operator(SHAPE, LR)
    y = operator(truth)
    got = make_consistent(x, y, operator, 0.01)
    assert got.dtype == torch.float32
    for b in range(2):
        one = make_consistent(x[b : b + 1, :1].double(), y[b : b + 1, :1].double(), operator, 0.01)
        torch.testing.assert_close(got[b : b + 1, :1].double(), one, rtol=0, atol=1e-4)


def test_in_the_plane():
    x = torch.rand(1, 1, 8, 6)
    operator = acquisition_operator((8, 6), (4, 3))
    y = operator(torch.rand(1, 1, 8, 6))
    assert (operator(make_consistent(x, y, operator)) - y).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("noise", "error"), [(-1.0, 1), (float("inf"), 1), (float("nan"), 1), (0, 0), (0, float("nan"))]
)
def test_bad_levels(noise, error):
    operator = acquisition_operator((4, 4), (2, 2))
    with pytest.raises(ValueError, match="noise_std must be >= 0 and error_std > 0, got"):
        make_consistent(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), operator, noise, error)
