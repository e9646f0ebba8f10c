from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from custom_components.acquisition import acquisition_operator, make_consistent

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
    got = make_consistent(x, y, operator, ratio)
    np.testing.assert_allclose(got.numpy().ravel(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("protocol", ["gaussian_spline", "bicubic", "box"])
def test_gives_the_scan_again_and_comes_nearer_to_the_truth(pair, protocol):
    truth, x = pair
    operator = acquisition_operator(SHAPE, LR, protocol)
    y = operator(truth)
    got = make_consistent(x, y, operator)
    assert (operator(got) - y).abs().max() < 1e-2 * (operator(x) - y).abs().max()
    assert (got - truth).norm() < (x - truth).norm()
    torch.testing.assert_close(make_consistent(truth, y, operator), truth)


def test_much_noise_leaves_the_result(pair):
    truth, x = pair
    operator = acquisition_operator(SHAPE, LR)
    torch.testing.assert_close(make_consistent(x, operator(truth), operator, 1e4), x)


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


@pytest.mark.parametrize("ratio", [-1.0, float("inf"), float("nan")])
def test_bad_ratio(ratio):
    operator = acquisition_operator((4, 4), (2, 2))
    with pytest.raises(ValueError, match="noise_to_error must be >= 0, got"):
        make_consistent(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), operator, ratio)
