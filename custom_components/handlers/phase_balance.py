"""Training under the constraint that sub-pixel convolutions make no checkerboard."""

from __future__ import annotations

from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from torch import nn

from ..networks.phase_balance import balance_phases_


class PhaseBalance:
    """Call `balance_phases_` after each step of the optimiser: the step goes to the nearest weights without a checkerboard.

    Args:
        network: the network that is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, before handlers that save the network."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, _: Engine | None = None) -> None:
        """Balance the network in place."""
        balance_phases_(self.network)
