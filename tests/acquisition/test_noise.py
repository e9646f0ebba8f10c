import math

import pytest
import torch

from custom_components.acquisition import add_gaussian_noise, add_rician_noise

NOISES = [add_gaussian_noise, add_rician_noise]
N = 200_000  # a mean is then known to about std / 450


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gaussian_moments():
    y = add_gaussian_noise(torch.full((N,), -2.0), 0.3, generator())
    assert y.mean() == pytest.approx(-2, abs=0.005)
    assert y.std() == pytest.approx(0.3, rel=0.01)
    assert ((y + 2) ** 3).mean() == pytest.approx(0, abs=0.002)


def test_rician_of_nothing_is_rayleigh():
    y = add_rician_noise(torch.zeros(N), 0.3, generator())
    assert y.min() >= 0
    assert y.mean() == pytest.approx(0.3 * math.sqrt(math.pi / 2), rel=0.01)
    assert y.var() == pytest.approx((2 - math.pi / 2) * 0.09, rel=0.02)


@pytest.mark.parametrize("signal", [0.0, 0.1, 0.5, 3.0])
def test_rician_second_moment(signal):
    """E[y^2] = x^2 + 2 std^2 at any signal."""
    y = add_rician_noise(torch.full((N,), signal), 0.2, generator())
    assert (y**2).mean() == pytest.approx(signal**2 + 0.08, rel=0.01)


def test_rician_is_gaussian_far_above_the_noise():
    y = add_rician_noise(torch.full((N,), 5.0), 0.1, generator())
    assert y.mean() == pytest.approx(math.sqrt(25.01), abs=0.001)
    assert y.std() == pytest.approx(0.1, rel=0.01)


def test_rician_keeps_the_sign_of_an_overshoot():
    y = add_rician_noise(torch.full((N,), -1.0), 0.1, generator())
    assert y.mean() == pytest.approx(-1, abs=0.005)


@pytest.mark.parametrize("noise", NOISES)
def test_no_noise_is_identity(noise):
    x = torch.randn(3, 4)
    assert torch.equal(noise(x, 0.0), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", NOISES)
def test_generator_decides_and_input_stays(noise, dtype):
    x = torch.rand(1, 1, 4, 5, dtype=dtype)
    before = x.clone()
    first, same, other = (noise(x, 0.1, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)
    assert first.dtype == dtype
    assert first.shape == x.shape


@pytest.mark.parametrize("std", [-0.1, math.nan])
@pytest.mark.parametrize("noise", NOISES)
def test_errors(noise, std):
    with pytest.raises(ValueError, match=f"std must be >= 0, got {std}"):
        noise(torch.zeros(2), std)
