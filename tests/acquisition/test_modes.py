from __future__ import annotations

import pytest
import torch

from custom_components.acquisition import AcquisitionModes, acquisition_operator


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
