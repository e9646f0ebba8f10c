from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import nn

from custom_components.handlers import AdjustableGradientClipping, GradientNormClipping


def two_groups(rates=(0.1, 0.01)):
    parameters = [nn.Parameter(torch.zeros(3)) for _ in rates]
    for p in parameters:
        p.grad = torch.tensor([-5.0, 0.004, 0.5])
    return parameters, torch.optim.SGD([{"params": [p], "lr": r} for p, r in zip(parameters, rates, strict=True)])


class Plain:
    """Stands for a trainer without mixed precision."""

    scaler = None


def test_each_group_by_its_own_learning_rate():
    parameters, optimizer = two_groups()
    AdjustableGradientClipping(optimizer, theta=0.001)(Plain())
    torch.testing.assert_close(parameters[0].grad, torch.tensor([-0.01, 0.004, 0.01]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([-0.1, 0.004, 0.1]))
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    for p, b in zip(parameters, before, strict=True):
        assert (p - b).abs().max().item() == pytest.approx(0.001)  # the largest step is theta in both


def test_the_limit_follows_a_scheduler():
    parameters, optimizer = two_groups((0.1,))
    optimizer.param_groups[0]["lr"] = 0.001
    AdjustableGradientClipping(optimizer, theta=0.001)(Plain())
    torch.testing.assert_close(parameters[0].grad, torch.tensor([-1.0, 0.004, 0.5]))


def test_gradients_of_mixed_precision_are_unscaled_first():
    parameters, optimizer = two_groups((0.1,))

    class Scaler:
        def unscale_(self, given):
            for p in given.param_groups[0]["params"]:
                p.grad /= 1000

    class Scaled:
        scaler = Scaler()

    AdjustableGradientClipping(optimizer, theta=0.001)(Scaled())
    torch.testing.assert_close(parameters[0].grad, torch.tensor([-0.005, 4e-6, 5e-4]))


@pytest.mark.parametrize("clipped", [True, False])
def test_in_a_trainer_it_comes_between_backward_and_step(clipped):
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.full((1, 1), 100.0)}],
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[AdjustableGradientClipping(optimizer, theta=0.01)] if clipped else [],
        decollate=False,
    )
    seen = []
    trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, lambda: seen.append(network.weight.grad.item()))
    trainer.run()
    assert seen == pytest.approx([-0.02 if clipped else -200.0])
    assert network.weight.item() == pytest.approx(0.01 if clipped else 100.0)


@pytest.mark.parametrize("theta", [0, -1, float("nan")])
def test_bad_theta(theta):
    with pytest.raises(ValueError, match=f"theta must be positive, got {theta}"):
        AdjustableGradientClipping(two_groups()[1], theta)


def test_the_norm_over_all_parameters_is_bounded():
    parameters, optimizer = two_groups()
    together = torch.cat([p.grad for p in parameters])
    GradientNormClipping(optimizer, max_norm=0.5)(Plain())
    clipped = torch.cat([p.grad for p in parameters])
    torch.testing.assert_close(clipped, 0.5 * together / together.norm())
    GradientNormClipping(optimizer, max_norm=3)(Plain())  # nothing to do
    torch.testing.assert_close(torch.cat([p.grad for p in parameters]), clipped)


def test_the_norm_must_be_positive():
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        GradientNormClipping(two_groups()[1], max_norm=0)


@pytest.mark.parametrize("clipping", [GradientNormClipping, AdjustableGradientClipping])
def test_the_phase_must_be_one_of_a_trainer(clipping):
    with pytest.raises(ValueError, match=r"phase must be one of \('network', 'discriminator'\), got 'critic'"):
        clipping(two_groups()[1], 1.0, phase="critic")
