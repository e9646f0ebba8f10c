"""The composite loss against sums by hand, its gradients, and its use from a JSON config."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from monai.bundle import ConfigParser
from torch import nn

from custom_components.losses import (
    CharbonnierLoss,
    CompositeLoss,
    GradientDifferenceLoss,
    LearnableSharpness,
    LowRankLoss,
    SharpnessFilterLoss,
    SharpnessLoss,
)


def pair(shape=(2, 1, 8, 7)):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))


class Mean(nn.Module):
    """A prior, times a number that is learnt."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(3.0))

    def forward(self, pred):
        return self.factor * pred.mean()


def dnsp():
    terms = {"mse": nn.MSELoss(), "low_rank": LowRankLoss(0.3), "sharpness": SharpnessLoss(cap=1.0)}
    return CompositeLoss(terms, {"mse": 2, "low_rank": 0.1, "sharpness": 0.01}, priors=["low_rank"])


def test_closed_form():
    """Errors of 2: 3 * 2 + 0.5 * 4 + 0.1 * 3 * 2."""
    loss = CompositeLoss(
        {"l1": nn.L1Loss(), "l2": nn.MSELoss(), "mean": Mean()}, {"l1": 3, "l2": 0.5, "mean": 0.1}, ["mean"]
    )
    assert loss(torch.full((1, 1, 4), 2.0), torch.zeros(1, 1, 4)).item() == pytest.approx(8.6)
    assert {name: value.item() for name, value in loss.values.items()} == {"l1": 2, "l2": 4, "mean": 6}


def test_is_the_sum_of_its_terms_and_so_is_its_gradient():
    pred, target = pair()
    pred.requires_grad_()
    expected = (
        2 * nn.MSELoss()(pred, target) + 0.1 * LowRankLoss(0.3)(pred) + 0.01 * SharpnessLoss(cap=1.0)(pred, target)
    )
    torch.testing.assert_close(dnsp()(pred, target), expected)
    torch.testing.assert_close(torch.autograd.grad(dnsp()(pred, target), pred), torch.autograd.grad(expected, pred))
    assert torch.autograd.gradcheck(dnsp(), (pred, target))


def test_equation_6_of_rrlsrn():
    """The paper's combination: both terms with weight 1, which is what no weights mean."""
    pred, target = pair()
    terms = {"charbonnier": CharbonnierLoss(), "gradient": GradientDifferenceLoss()}
    expected = CharbonnierLoss()(pred, target) + GradientDifferenceLoss()(pred, target)
    assert CompositeLoss(terms)(pred, target).item() == pytest.approx(expected.item(), rel=1e-12)


def test_values_are_those_of_the_last_call_without_gradient():
    pred, target = pair()
    loss = dnsp()
    assert loss.values == {}
    loss(pred, target)
    loss(pred.requires_grad_(), 1 - target)
    assert list(loss.values) == ["mse", "low_rank", "sharpness"]
    assert loss.values["mse"].item() == pytest.approx((pred - 1 + target).square().mean().item())
    assert loss.values["low_rank"].item() == pytest.approx(LowRankLoss(0.3)(pred).item())
    assert not any(value.requires_grad for value in loss.values.values())


def test_a_term_of_weight_0_is_not_computed():
    class Broken(nn.Module):
        def forward(self, *_):
            raise AssertionError("computed")

    loss = CompositeLoss({"l1": nn.L1Loss(), "broken": Broken()}, {"l1": 1, "broken": 0})
    pred, target = pair()
    torch.testing.assert_close(loss(pred, target), nn.L1Loss()(pred, target))
    assert list(loss.values) == ["l1"]
    loss.weights["broken"] = 1
    with pytest.raises(AssertionError, match="computed"):
        loss(pred, target)
    loss.weights.update(l1=0, broken=0)
    assert loss(pred, target).item() == 0
    assert loss.values == {}


def test_priors_see_the_prediction_alone():
    class Count(nn.Module):
        def forward(self, *tensors):
            return torch.tensor(float(len(tensors)))

    loss = CompositeLoss({"a": Count(), "b": Count()}, priors=["b"])
    loss(*pair())
    assert {name: int(value) for name, value in loss.values.items()} == {"a": 2, "b": 1}


def test_parameters_of_terms_are_registered_and_learnt():
    torch.manual_seed(0)
    sharpness = LearnableSharpness()
    terms = {"mse": nn.MSELoss(), "sharpness": sharpness, "filters": SharpnessFilterLoss(sharpness)}
    loss = CompositeLoss(terms, {"mse": 1, "sharpness": 0.01, "filters": 1e-3})
    assert [p is sharpness.weight for p in loss.parameters()] == [True]
    before = sharpness.weight.detach().clone()
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    pred, target = (t.float() for t in pair())
    loss(pred, target).backward()
    optimizer.step()
    assert not torch.equal(sharpness.weight, before)
    other = copy.deepcopy(loss)
    nn.init.zeros_(other.terms["sharpness"].weight)
    assert torch.equal(other.terms["filters"].sharpness.weight, other.terms["sharpness"].weight)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(pred, target), loss(pred, target))


def test_from_a_config():
    """As a bundle writes it; the filters of one term are shared with another by reference."""
    package = "custom_components.losses"
    config = {
        "sharpness": {"_target_": f"{package}.LearnableSharpness", "num_filters": 4},
        "loss": {
            "_target_": f"{package}.CompositeLoss",
            "terms": {
                "mse": {"_target_": "torch.nn.MSELoss"},
                "low_rank": {"_target_": f"{package}.LowRankLoss", "delta": 0.3},
                "sharpness": "@sharpness",
                "filters": {"_target_": f"{package}.SharpnessFilterLoss", "sharpness": "@sharpness"},
            },
            "weights": {"mse": 1, "low_rank": 1e-3, "sharpness": 1e-4, "filters": 1e-7},
            "priors": ["low_rank", "sharpness"],
        },
    }
    parser = ConfigParser(config)
    loss = parser.get_parsed_content("loss")
    assert loss.terms["filters"].sharpness is parser.get_parsed_content("sharpness")
    pred, target = (t.float() for t in pair())
    total = loss(pred, target).item()
    assert total == pytest.approx(sum(loss.weights[name] * value.item() for name, value in loss.values.items()))


def test_half_precision_is_summed_in_float32():
    pred, target = (t.half() for t in pair())
    loss = CompositeLoss({"charbonnier": CharbonnierLoss(reduction="sum")}, {"charbonnier": 1e4})(pred, target)
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())


@pytest.mark.parametrize(
    ("kwargs", "error", "match"),
    [
        ({"terms": {}}, ValueError, "expected at least one term, got none"),
        ({"terms": {"l1": torch.nn.functional.l1_loss}}, TypeError, "torch.nn.Module as term 'l1', got function"),
        ({"weights": {"l1": 1}}, ValueError, r"a weight for each of \['l1', 'l2'\], got them for \['l1'\]"),
        ({"weights": {"l1": 1, "l2": 1, "l3": 1}}, ValueError, r"got them for \['l1', 'l2', 'l3'\]"),
        ({"weights": {"l1": 1, "l2": -1}}, ValueError, "the weight of 'l2' must be >= 0, got -1"),
        ({"weights": {"l1": math.nan, "l2": 1}}, ValueError, "the weight of 'l1' must be >= 0, got nan"),
        ({"priors": ["rank"]}, ValueError, r"priors must be among \['l1', 'l2'\], got \['rank'\]"),
        ({"priors": "l1"}, TypeError, "priors must be a list of names, got the string 'l1'"),
    ],
)
def test_bad_arguments(kwargs, error, match):
    with pytest.raises(error, match=match):
        CompositeLoss(**{"terms": {"l1": nn.L1Loss(), "l2": nn.MSELoss()}, **kwargs})


def test_a_term_must_be_a_scalar():
    loss = CompositeLoss({"l1": nn.L1Loss(reduction="none")})
    with pytest.raises(ValueError, match=r"expected a scalar of term 'l1', got the shape \(2, 1, 8, 7\)"):
        loss(*pair())


def test_repr_says_what_it_is():
    assert "weights={'mse': 2.0, 'low_rank': 0.1, 'sharpness': 0.01}, priors=['low_rank']" in repr(dnsp())
