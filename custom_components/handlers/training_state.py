"""Checkpoints that hold all of a run, so that a killed one goes on as if it had not been."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd

from ..errors import ScanError, one_line
from ..files import atomic_write
from ..networks.wrapping import unwrapped
from .weights_loader import load_weights

logger = logging.getLogger(__name__)


def seed_all(seed: int, dataset: Any = None) -> None:
    """Seed Python, NumPy, torch and the random transforms of a dataset, without turning off fast GPU kernels."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for libraries that draw from NumPy's global state
    torch.manual_seed(seed)
    if dataset is not None:
        set_rnd(dataset, seed % 2**31)


def save_atomically(state: Any, path: str | Path) -> None:
    """`torch.save` under a temporary name, then renamed: a file of the final name is always whole."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def weights(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """State dict of a network, wrapped or not (see `unwrapped`), on the CPU."""
    return {name: value.detach().cpu() for name, value in unwrapped(network).state_dict().items()}


class TrainingState:
    """Save a run after each epoch, keep the best weights, and continue a run that was killed.

    The random state of an epoch follows from the seed, the epoch and the rank alone, so that the epochs after a resume are those
    that would have come. `monai.handlers.CheckpointSaver` is not used because after a resume it forgets the best metric and
    overwrites a better model.

    Args:
        path: file of the whole state (`last.pt`).
        objects: what has a state, by name, with at least `network`: the optimiser, the scheduler; of an adversarial training also
            the discriminator, its optimiser and its scheduler. `network` is the one whose weights are written to `best_path`.
        best_path: file of the best weights by the evaluator's key metric, a flat CPU state dict (`model.pt`); before the first
            validation, or without an evaluator, that of the latest.
        evaluator: the validation engine. None for an adversarial training judged by PSNR, which it lowers: the best would be the
            weights that it started from.
        dataset: the training dataset, whose transforms are seeded.
        seed: seed of the run.
        resume: continue from `path` if it is there.
        is_main: False in all but one process of a distributed run: nothing is written.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Any],
        best_path: str | Path,
        evaluator: Any = None,
        dataset: Any = None,
        seed: int = 0,
        resume: bool = True,
        is_main: bool = True,
    ) -> None:
        if "network" not in objects:
            raise ValueError(f"expected an object named network, got {sorted(objects)}")
        self.path, self.best_path, self.objects = Path(path), Path(best_path), dict(objects)
        self.evaluator, self.dataset, self.seed = evaluator, dataset, seed
        self.resume, self.is_main = resume, is_main

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the handlers whose state is saved."""
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.EPOCH_STARTED, self.seed_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)

    def seed_epoch(self, engine: Engine) -> None:
        """Make the randomness of this epoch a function of (seed, epoch, rank)."""
        rank = getattr(engine.state, "rank", 0)
        seed_all(int(np.random.SeedSequence([self.seed, engine.state.epoch, rank]).generate_state(1)[0]), self.dataset)

    def save(self, engine: Engine) -> None:
        """Write the state of the run, and the weights when they are the best so far."""
        if not self.is_main:
            return
        state: dict[str, Any] = {
            name: weights(obj) if isinstance(obj, torch.nn.Module) else obj.state_dict()
            for name, obj in self.objects.items()
        }
        state["kinds"] = self._kinds()
        state["epoch"], state["iteration"] = engine.state.epoch, engine.state.iteration
        best = True
        if self.evaluator is not None:
            found = self.evaluator.state
            best = found.best_metric_epoch in (engine.state.epoch, -1)  # -1: no validation so far
            state["best_metric"], state["best_metric_epoch"] = float(found.best_metric), found.best_metric_epoch
        if best:
            save_atomically(state["network"], self.best_path)
        save_atomically(state, self.path)

    def load(self, engine: Engine) -> None:
        """Continue from the saved state, if there is one.

        Raises:
            ScanError: when the file is damaged or holds the state of another run.
        """
        if not (self.resume and self.path.is_file()):
            return
        try:
            state = self._restore()
        except ScanError as error:
            raise ScanError(f"{error}; to start anew give another --output_dir, or --resume False") from None
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        logger.info("continued from %s at epoch %d", self.path, state["epoch"])
        if engine.state.max_epochs is not None and state["epoch"] >= engine.state.max_epochs:
            logger.warning(
                "%s is a finished run of %d epochs, nothing is left to do: to go on raise --max_epochs, to start anew give another "
                "--output_dir, or --resume False",
                self.path,
                state["epoch"],
            )

    def _kinds(self) -> dict[str, str]:
        return {name: type(unwrapped(obj)).__name__ for name, obj in self.objects.items() if name != "network"}

    def _restore(self) -> dict[str, Any]:
        load_weights(self.objects["network"], self.path)
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        if not {*self.objects, "epoch", "iteration"} <= state.keys():
            raise ScanError(f"{self.path}: expected the state of a run, got {', '.join(map(str, state))[:200]}")
        for name, kind in self._kinds().items():
            # another optimiser would take the state without complaint, and fail or go astray at the first step
            if state.get("kinds", {}).get(name, kind) != kind:
                raise ScanError(
                    f"{self.path}: expected the state of {kind} as {name}, got that of {state['kinds'][name]}"
                )
            try:
                unwrapped(self.objects[name]).load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ScanError(f"{self.path}: expected the state of this {name}, got {one_line(error)}") from error
        return state
