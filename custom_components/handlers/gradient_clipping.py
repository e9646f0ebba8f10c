"""Gradient clipping, with which networks train at a high learning rate."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from ignite.engine.events import EventEnum
from monai.engines.utils import IterationEvents
from monai.utils.enums import AdversarialIterationEvents

_PHASES: dict[str, EventEnum] = {
    "network": IterationEvents.BACKWARD_COMPLETED,
    "discriminator": AdversarialIterationEvents.DISCRIMINATOR_BACKWARD_COMPLETED,
}


def _event(phase: str) -> EventEnum:
    """The event between a network's backward pass and the step of its optimiser."""
    if phase not in _PHASES:
        raise ValueError(f"phase must be one of {tuple(_PHASES)}, got {phase!r}")
    return _PHASES[phase]


def _unscale(engine: Engine, optimizer: torch.optim.Optimizer) -> None:
    scaler = getattr(engine, "scaler", None)
    if scaler is not None:
        scaler.unscale_(optimizer)


class GradientNormClipping:
    """Scale the gradients of all parameters together so that their Euclidean norm is at most `max_norm`.

    One odd batch can then not switch off rectifiers for good, as a single step of Adam may.

    Args:
        optimizer: its parameters are clipped together.
        max_norm: largest norm; say a few times that of the converged training.
        phase: whose step it is that is clipped: `network`, that of any MONAI trainer (in adversarial training the generator's), or
            `discriminator`, that of an adversarial trainer.

    Raises:
        ValueError: when the norm is not positive; on another phase.

    Reference:
        R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks, 2013, arXiv:1211.5063.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float, phase: str = "network") -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be positive, got {max_norm}")
        self.optimizer, self.max_norm, self.event = optimizer, max_norm, _event(phase)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, between the backward pass and the step of the optimiser."""
        engine.add_event_handler(self.event, self)

    def __call__(self, engine: Engine) -> None:
        """Clip the gradients in place."""
        _unscale(engine, self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)


class AdjustableGradientClipping:
    r"""Clip each gradient entry to :math:`[-\theta / \gamma, \theta / \gamma]`, where `\gamma` is the current learning rate.

    The largest step of a parameter is then `theta` whatever the learning rate is.

    Args:
        optimizer: its parameter groups are clipped, each by its own learning rate.
        theta: largest step; neither Kim 2016 nor Pham 2019 states a value, 0.001 is about 1 % of the weights' standard deviation.
        phase: whose step it is that is clipped: `network`, that of any MONAI trainer (in adversarial training the generator's), or
            `discriminator`, that of an adversarial trainer.

    Raises:
        ValueError: when theta is not positive; on another phase.

    Reference:
        J. Kim, J. K. Lee, K. M. Lee, Accurate image super-resolution using very deep convolutional networks, 2016,
        doi:10.1109/CVPR.2016.182, section 3.2.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, theta: float = 1e-3, phase: str = "network") -> None:
        if not theta > 0:
            raise ValueError(f"theta must be positive, got {theta}")
        self.optimizer, self.theta, self.event = optimizer, theta, _event(phase)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, between the backward pass and the step of the optimiser."""
        engine.add_event_handler(self.event, self)

    def __call__(self, engine: Engine) -> None:
        """Clip the gradients of all groups in place."""
        _unscale(engine, self.optimizer)
        for group in self.optimizer.param_groups:
            torch.nn.utils.clip_grad_value_(group["params"], self.theta / group["lr"])
