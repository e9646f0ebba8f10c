"""The batch of an estimator: the LR patches of `RandAcquireBatch`, and how they were acquired."""

from __future__ import annotations

import math

import pytest
import torch

from custom_components.engines import AcquisitionBatch, RandAcquireBatch, acquisition_target
from custom_components.networks import acquisition_condition


def batch():
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.rand(3, 1, 24, 24, 24, generator=generator), "spacing": torch.ones(3, 3)}


def acquire(**options):
    given = {"scale_factors": ([1, 1.5, 3.0],), "margin": 4, "known_prob": 1.0, "noise_known_prob": 1.0, **options}
    return RandAcquireBatch(**given).set_random_state(3)


def test_places_in_the_condition():
    """Widths and noise as they were given; axes that are not acquired and what was not told are NaN."""
    told = acquisition_condition((2, 1, 1.5), (1, 2, 3), [0.8, 0.9, None], noise_std=0.015)
    nothing = acquisition_condition((2, 2, 2), (1, 2, 3))
    expected = torch.tensor([[0.8, math.nan, math.nan, 0.5], [math.nan] * 4])
    torch.testing.assert_close(acquisition_target(torch.stack([told, nothing])), expected, equal_nan=True)


def test_a_batch_says_how_it_was_made():
    lr, _, args, told = acquire(profiles=[{"thickness": [0.7, 1.3]}], noise_std=(0.02, 0.02), noise_prob=1)(
        batch(), "cpu"
    )
    got = AcquisitionBatch(acquire(profiles=[{"thickness": [0.7, 1.3]}], noise_std=(0.02, 0.02), noise_prob=1))(
        batch(), "cpu"
    )
    assert torch.equal(got[0], lr) and got[2] == args == ()
    factors = [m / n for n, m in zip(lr.shape[2:], told["shape"], strict=True)]
    assert got[3].keys() == {"scale_factor"}
    torch.testing.assert_close(got[3]["scale_factor"], torch.tensor([factors] * 3))
    target = got[1]
    assert target.shape == (3, 4)
    torch.testing.assert_close(target[:, 3], torch.full((3,), 0.02 / 0.03))
    for axis in range(3):
        kept = lr.shape[axis + 2] == told["shape"][axis]
        assert bool(target[:, axis].isnan().all()) == kept
        assert kept or ((target[:, axis] >= 0.7) & (target[:, axis] <= 1.3)).all()
    assert target[:, :3].isnan().any(0).sum() == 1


@pytest.mark.parametrize("options", [{"known_prob": 0.0}, {"noise_known_prob": 0.0}])
def test_what_is_not_told_is_not_asked(options):
    target = AcquisitionBatch(acquire(**options))(batch(), "cpu")[1]
    widths, noise = target[:, :3], target[:, 3]
    assert widths.isnan().all() == ("known_prob" in options)
    assert noise.isnan().all() == ("noise_known_prob" in options)


def test_random_state_is_that_of_the_acquisition():
    made = [AcquisitionBatch(acquire()).set_random_state(seed)(batch(), "cpu")[0] for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
