"""A progress bar that a config can name."""

from __future__ import annotations

import contextlib
from typing import Any, NoReturn

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from tqdm.contrib.logging import logging_redirect_tqdm


class Progress(ProgressBar):
    """Ignite's bar over the iterations of an epoch, with the loss of a trainer beside it.

    While the engine runs, lines that the log writes to the console stand above the bar, not behind it.

    Args:
        every: iterations between two updates, within an epoch, besides the last of it; the loss is fetched from the device only
            then.
        desc: text before the bar.

    Raises:
        ValueError: when every is below 1.
    """

    def __init__(self, every: int = 1, desc: str | None = None) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}")
        super().__init__(persist=True, desc=desc) if desc else super().__init__(persist=True)
        self.every = every
        self._log = contextlib.ExitStack()

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Attach to a trainer or evaluator."""
        kwargs.setdefault("event_name", Events.ITERATION_COMPLETED(event_filter=self._due))
        kwargs.setdefault("output_transform", self._loss)
        super().attach(engine, *args, **kwargs)
        engine.add_event_handler(Events.STARTED, self._redirect)
        engine.add_event_handler(Events.COMPLETED, self._log.close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._give_up)

    def _redirect(self) -> None:
        self._log.close()
        self._log.enter_context(logging_redirect_tqdm())

    def _give_up(self, error: BaseException) -> NoReturn:
        self._log.close()
        raise error  # Ignite takes an exception that has a handler for dealt with

    def _due(self, engine: Engine, iteration: int) -> bool:
        length = engine.state.epoch_length or iteration
        within = (iteration - 1) % length + 1
        return within % self.every == 0 or within == length

    @staticmethod
    def _loss(output: Any) -> dict[str, float]:
        return {"loss": float(output["loss"].detach())} if isinstance(output, dict) and "loss" in output else {}
