from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from monai.data import MetaTensor

from custom_components.acquisition import PROTOCOLS, acquisition_operator
from custom_components.transforms.consistency import ConsistencyError, ConsistencyErrord, consistency_error


def _hr() -> torch.Tensor:
    return torch.rand(1, 16, 20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_zero_on_what_was_acquired_and_the_rms_of_what_was_added() -> None:
    hr = _hr()
    lr = acquisition_operator(hr.shape[1:], (8, 10, 6))(hr[None])[0]
    assert float(consistency_error(hr, lr)) == pytest.approx(0, abs=1e-12)
    lr[..., ::2] += 0.3  # half of the voxels
    assert float(consistency_error(hr, lr)) == pytest.approx(0.3 * math.sqrt(0.5))


def test_against_scipy() -> None:
    hr = _hr()
    again = ndi.zoom(ndi.gaussian_filter(hr[0].numpy(), 1), 0.5, order=3, grid_mode=True, mode="nearest")
    lr = torch.zeros(1, 8, 10, 6, dtype=torch.float64)
    assert float(consistency_error(hr, lr)) == pytest.approx(float(np.sqrt((again**2).mean())), rel=1e-4)


def test_the_protocol_counts_and_any_dimension_goes() -> None:
    hr = _hr()[..., 0]
    lr = acquisition_operator(hr.shape[1:], (8, 8), "box")(hr[None])[0]
    assert ConsistencyError("box")(hr, lr) == pytest.approx(0, abs=1e-12)
    assert ConsistencyError()(hr, lr) > 1e-3


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_a_slice_is_an_image(axis: int, protocol: str) -> None:
    hr, lr = _hr()[..., 0], torch.rand(1, 8, 10, dtype=torch.float64)
    flat = float(consistency_error(hr, lr, protocol))
    assert float(consistency_error(hr.unsqueeze(axis), lr.unsqueeze(axis), protocol)) == pytest.approx(flat)
    assert flat > 0.1


def test_gradient() -> None:
    hr = _hr()[:, :6, :6, :6].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: consistency_error(x, torch.zeros(1, 3, 3, 4, dtype=torch.float64)), hr)


def test_dictionary_stores_a_float() -> None:
    hr = _hr().float()
    lr = acquisition_operator(hr.shape[1:], (8, 10, 6))(hr[None])[0] + 0.1
    item = ConsistencyErrord()({"pred": MetaTensor(hr), "lowres": MetaTensor(lr)})
    assert type(item["consistency_error"]) is float
    assert item["consistency_error"] == pytest.approx(0.1, rel=1e-4)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="protocol must be one of"):
        ConsistencyErrord(protocol="magic")
    with pytest.raises(ValueError, match="expected a LR shape"):
        consistency_error(torch.zeros(1, 4, 4, 4), torch.zeros(1, 8, 4, 4))
