from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from monai.data import MetaTensor

from custom_components.acquisition import PROTOCOLS, acquisition_operator
from custom_components.transforms.consistency import (
    ConsistencyError,
    ConsistencyErrord,
    MakeConsistent,
    MakeConsistentd,
    consistency_error,
)


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


class TestMakeConsistent:
    @pytest.fixture
    def item(self):
        hr = _hr().float()
        lr = acquisition_operator(hr.shape[1:], (8, 10, 12), "box")(hr[None])[0]  # the third axis is not acquired
        wrong = hr + 0.1 * torch.randn(hr.shape, generator=torch.Generator().manual_seed(1))
        meta = {"affine": torch.diag(torch.tensor([1.0, 2, 3, 1])), "filename_or_obj": "a"}
        return {"pred": MetaTensor(wrong, meta=meta), "lowres": MetaTensor(lr), "hr": hr}

    def test_agrees_with_the_scan_and_is_nearer_to_the_truth(self, item):
        got = MakeConsistentd(protocol="box")(item)["pred"]
        assert consistency_error(got, item["lowres"], "box") < 1e-3 * consistency_error(
            item["pred"], item["lowres"], "box"
        )
        assert (got - item["hr"]).norm() < 0.9 * (item["pred"] - item["hr"]).norm()
        assert torch.equal(got.affine, item["pred"].affine)
        assert got.meta["filename_or_obj"] == "a"

    def test_noise_keeps_it_from_going_all_the_way(self, item):
        errors = [
            float(consistency_error(MakeConsistent("box", noise)(item["pred"], item["lowres"]), item["lowres"], "box"))
            for noise in (0.0, 0.01, 0.1, 10.0)
        ]
        assert errors == sorted(errors)
        assert errors[-1] == pytest.approx(float(consistency_error(item["pred"], item["lowres"], "box")), rel=1e-3)

    def test_noise_that_is_not_known_is_none(self, item):
        results = [MakeConsistentd(protocol="box", noise_std=noise)(item)["pred"] for noise in (None, 0.0, 0.1)]
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])

    def test_what_is_not_known_changes_nothing(self, item):
        assert MakeConsistentd()(item)["pred"] is item["pred"]

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match=r"protocol must be one of .*got 'magic'"):
            MakeConsistent("magic")
        for noise, error in ((-1, 1), (0, 0), (float("nan"), 1)):
            with pytest.raises(ValueError, match="noise_std must be >= 0 and error_std > 0, got"):
                MakeConsistentd(protocol="box", noise_std=noise, error_std=error)
