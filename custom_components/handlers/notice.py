"""A line in the log, at the start of a run."""

from __future__ import annotations

import logging

from ignite.engine import Engine, Events

logger = logging.getLogger(__name__)


class Notice:
    """Log one warning when the engine starts, once per run: what whoever reads the results has to know of the method.

    Args:
        text: one line; None: there is nothing to say.

    Raises:
        ValueError: on an empty text or one of several lines.
    """

    def __init__(self, text: str | None) -> None:
        if text is not None and (not text.strip() or "\n" in text):
            raise ValueError(f"text must be one line, got {text!r}")
        self.text = text

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or evaluator."""
        if self.text is not None:
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Engine | None = None) -> None:
        """Log it."""
        logger.warning("%s", self.text)
