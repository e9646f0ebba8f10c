"""What the choices, the upload and the buttons of the page do."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ScanError
from . import texts
from .bundles import Bundle
from .choices import for_bundle
from .session import Session
from .sessions import Sessions
from .uploads import MIB, Limits, take_upload


class Actions:
    """Event handlers of the page; each finds its session by the request.

    Args:
        bundles: to choose from.
        sessions: where files lie.
        limits: of uploads.
    """

    def __init__(self, bundles: Mapping[str, Bundle], sessions: Sessions, limits: Limits) -> None:
        self.bundles, self.sessions, self.limits = bundles, sessions, limits

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.get(str(request.session_hash))

    def choose(self, name: str) -> list[Any]:
        """Show what there is of a bundle."""
        return for_bundle(self.bundles[name])

    def choose_stage(self, name: str, stage: str, factor: str) -> tuple[Any, ...]:
        """Show what a stage is."""
        factors = list(self.bundles[name].stages.get(stage, ()))
        return self._warning(stage), gr.Radio(factors, value=factor if factor in factors else next(iter(factors), None))

    @staticmethod
    def _warning(stage: str) -> Any:
        text = texts.warning(stage)
        return gr.HTML(text, visible=bool(text))

    def upload(self, path: str, request: gr.Request) -> str:
        """Take the file over."""
        session = self._session(request)
        try:
            if session.busy():
                raise ScanError("expected an upload between runs, got one during a run: cancel it first")
            size = Path(path).stat().st_size / MIB
            session.scan = take_upload(path, session.new_input(), self.limits)
        except ScanError as error:
            return texts.note(str(error), "error")
        finally:
            Path(path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                Path(path).parent.rmdir()  # the toolkit's, named by a hash of the file
        return texts.note(f"{Path(path).name} is here, {size:.1f} MiB.", "good")

    def clear(self, request: gr.Request) -> str:
        """Remove the file."""
        session = self._session(request)
        if not session.busy():
            session.new_input()
        return texts.note("Choose a scan.")

    def prepare(self, request: gr.Request) -> tuple[Any, Any, str]:
        """Take the order for a run; others may be before it."""
        self._session(request).cancelled = False
        return gr.Button(interactive=False), gr.Button(interactive=True), texts.note("waits for its turn")

    def cancel(self, request: gr.Request) -> Any:
        """Stop the run, whose own end says so, before or after this; one that waits for its turn says so when that comes."""
        session = self._session(request)
        running = session.busy()
        session.cancel()
        return gr.skip() if running else texts.note("stops")

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.sessions.close(str(request.session_hash))
