from __future__ import annotations

import functools

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch

from custom_components.acquisition import AcquisitionModes, acquisition_operator, interpolation_operator
from custom_components.acquisition.modes import neighbour_mean


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("protocol", ["gaussian_spline", "box", "bicubic"])
def test_modes_make_up_the_acquisition(protocol: str) -> None:
    """U S V' x is A x, and V'V is the identity, with whole, broken and no reduction."""
    shape, lr_shape = (8, 9, 5), (4, 6, 5)
    acquire = acquisition_operator(shape, lr_shape, protocol)
    modes = AcquisitionModes(acquire, lr_shape)
    x, coefficients = random(1, 1, *shape).double(), random(1, 1, *lr_shape, seed=1).double()
    torch.testing.assert_close(modes.from_lr.T(modes.gain * modes.to_modes(x)), acquire(x), rtol=0, atol=1e-7)
    torch.testing.assert_close(modes.to_modes(modes.to_modes.T(coefficients)), coefficients, rtol=0, atol=1e-7)


@pytest.mark.parametrize("protocol", ["gaussian_spline", "box"])
def test_kept_noise_is_the_diagonal_of_dense_matrices(protocol: str) -> None:
    """What of each mode of the scan comes back after interpolation and acquisition, with an axis that is not acquired."""
    shape, lr_shape = (8, 9, 5), (4, 6, 5)
    acquire, interpolate = acquisition_operator(shape, lr_shape, protocol), interpolation_operator(lr_shape, shape)
    modes = AcquisitionModes(acquire, lr_shape)
    basis = torch.eye(120, dtype=torch.float64).reshape(120, 1, *lr_shape)
    left = [np.eye(5) if m is None else m.numpy() for m in modes.from_lr.matrices]
    u = functools.reduce(np.kron, left)
    again = acquire(interpolate(basis)).reshape(120, 120).T.numpy()
    kept = modes.kept(interpolate)
    np.testing.assert_allclose(kept.numpy().ravel(), np.diag(u @ again @ u.T).clip(0, 1), atol=1e-7)
    assert kept.max() > 0.9
    assert kept.min() < 0.7


@pytest.mark.parametrize("shape", [(9, 8, 5), (12, 3), (20,)])
def test_neighbour_mean_is_a_box_filter_that_ends_at_the_border(shape: tuple[int, ...]) -> None:
    x = random(2, 3, *shape).double()
    for i in range(2):
        inside = ndi.uniform_filter(np.ones(shape), 7, mode="constant")
        expected = ndi.uniform_filter(x[i, 1].numpy(), 7, mode="constant") / inside
        np.testing.assert_allclose(neighbour_mean(x)[i, 1].numpy(), expected, rtol=1e-9)


def test_noise_bounds_the_weight_per_image() -> None:
    """Weights of images of a batch are apart; the bound is of the means of energies."""
    shape, lr_shape = (8, 6), (4, 3)  # no more modes than a window: one mean
    acquire = acquisition_operator(shape, lr_shape, "box")
    modes = AcquisitionModes(acquire, lr_shape)
    x = torch.zeros(2, 1, *shape, dtype=torch.float64)
    y = random(2, 1, *lr_shape).double() * torch.tensor([1.0, 0.01]).reshape(2, 1, 1, 1)
    got = modes.correct(x, y, 1e-12, torch.full(lr_shape, 1e-3, dtype=torch.float64))
    share = 1 - 1e-3 / float(y[0].square().mean())
    torch.testing.assert_close(acquire(got)[0], share * y[0], rtol=1e-5, atol=1e-8)
    assert not got[1].any()  # less energy than noise
