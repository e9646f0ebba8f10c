"""A progress bar that a config can name."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar


class Progress(ProgressBar):
    """Ignite's bar over the iterations of an epoch, with the loss of a trainer beside it.

    Args:
        every: iterations between two updates; the loss is fetched from the device only then.
        desc: text before the bar.
    """

    def __init__(self, every: int = 1, desc: str | None = None) -> None:
        super().__init__(persist=True, desc=desc) if desc else super().__init__(persist=True)
        self.every = every

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Attach to a trainer or evaluator."""
        kwargs.setdefault("event_name", Events.ITERATION_COMPLETED(every=self.every))
        kwargs.setdefault("output_transform", self._loss)
        super().attach(engine, *args, **kwargs)

    @staticmethod
    def _loss(output: Any) -> dict[str, float]:
        return {"loss": float(output["loss"])} if isinstance(output, dict) and "loss" in output else {}
