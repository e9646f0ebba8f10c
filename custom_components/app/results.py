"""What a run makes of the page: its progress, then the result, or why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ScanError, reason
from . import texts
from .bundles import Bundle
from .choices import Choices
from .command import Options, shown_command
from .loading import compare
from .parts import Parts
from .runs import Run
from .session import Session
from .sessions import Sessions
from .views import ERROR, Comparison

POLL = 0.25  # seconds between two looks at a run


def _pair(comparison: Comparison, plane: str, number: int, left: str) -> tuple[str, str]:
    return str(comparison.picture(plane, number, left)), str(comparison.picture(plane, number, "sr"))


def _error(comparison: Comparison, plane: str, number: int) -> str | None:
    """The picture of the expected error, None where there is no map of it."""
    return None if comparison.largest_error is None else str(comparison.picture(plane, number, ERROR))


class Results:
    """Event handlers of a run and of its pictures; each finds its session by the request.

    Args:
        bundles: to choose from.
        sessions: where files lie.
        choices: parts of the page that say what a run is to do.
        parts: of the page.
    """

    def __init__(self, bundles: Mapping[str, Bundle], sessions: Sessions, choices: Choices, parts: Parts) -> None:
        self.bundles, self.sessions, self.choices, self.parts = bundles, sessions, choices, parts

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.get(str(request.session_hash))

    def run(self, given: dict[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Run the bundle and say how far it is, then show the result or why there is none."""
        session, parts = self._session(request), self.parts
        ready = {parts.start: gr.Button(interactive=True), parts.cancel: gr.Button(interactive=False)}
        try:
            bundle, options = self.bundles[given[self.choices.name]], self.choices.wished(given)
            run = yield from self._follow(session, bundle, options)
            line = shown_command(bundle, run.scan, options)
            yield {**self._shown(session, run, given[parts.left], line), **ready}
        except (ScanError, ValueError, OSError) as error:
            # a page that was closed took the folder away
            why = "the page was closed" if session.closed else reason(error)
            yield {**ready, parts.status: texts.note(why, "error"), **self._only(parts.empty)}

    def _follow(self, session: Session, bundle: Bundle, options: Options) -> Generator[dict[Any, Any], None, Run]:
        if session.cancelled:
            raise ScanError("stopped")
        if session.scan is None:
            raise ScanError("expected a scan, got none: choose a file first")
        folder = session.new_run()
        keep_open = [] if self.sessions.lock is None else [self.sessions.lock]
        run = session.run = Run(bundle, session.scan, folder / "output", options, keep_open)
        started, before = time.monotonic(), ""
        try:
            while run.running() and not session.cancelled:
                now = texts.progress(run.progress(), time.monotonic() - started)
                if now != before:
                    yield {self.parts.status: now, **self._only(self.parts.empty)}
                before = now
                time.sleep(POLL)
        finally:
            run.stop()
        if error := run.error():
            raise ScanError(error)
        return run

    def _only(self, part: Any) -> dict[Any, Any]:
        """Show the result, or what stands in its place."""
        parts = self.parts
        return {
            parts.empty: gr.HTML(visible=part is parts.empty),
            parts.result: gr.Column(visible=part is parts.result),
        }

    def _shown(self, session: Session, run: Run, left: str, line: str) -> dict[Any, Any]:
        row = run.row()
        output, error = Path(row["output"]), row.get("uncertainty")
        pictures = run.output_dir.parent / "pictures"
        shown = session.comparison = compare(run.scan, output, pictures, error or None)
        bar = shown.colour_bar()
        changes: dict[Any, Any] = {
            self.parts.status: texts.note("Done.", "good"),
            **self._only(self.parts.result),
            self.parts.about_error: gr.HTML(visible=bool(error)),
            self.parts.bar: gr.Image(None if bar is None else str(bar), visible=bool(error)),
            self.parts.numbers: texts.numbers(row),
            self.parts.download: gr.DownloadButton(f"Download {output.name}", value=str(output)),
            self.parts.download_error: gr.DownloadButton(value=error or None, visible=bool(error)),
            self.parts.summary: gr.DownloadButton(value=str(output.with_name("summary.csv"))),
            self.parts.line: line,
        }
        for i, part in enumerate(self.parts.planes):
            changes[part.column] = gr.Column(visible=i < len(shown.planes))
            if i < len(shown.planes):
                plane = shown.planes[i]
                count, number = shown.count(plane), shown.start(plane)
                changes[part.picture] = gr.ImageSlider(_pair(shown, plane, number, left))
                changes[part.title] = texts.plane(plane)
                changes[part.number] = gr.Slider(1, max(count, 2), number, label=f"{plane} slice", visible=count > 1)
                changes[part.error] = gr.Image(_error(shown, plane, number), visible=bool(error))
        return changes

    def picture_of(self, i: int) -> Callable[..., Any]:
        """The handler of the slider of a plane: its two pictures, and the expected error there."""

        def handler(left: str, number: float, request: gr.Request) -> tuple[Any, Any]:
            comparison = self._session(request).comparison
            if comparison is None or i >= len(comparison.planes):
                return gr.skip(), gr.skip()
            plane = comparison.planes[i]
            place = min(int(number), comparison.count(plane))
            return _pair(comparison, plane, place, left), _error(comparison, plane, place)

        return handler

    def all_pictures(self, left: str, first: float, second: float, third: float, request: gr.Request) -> Any:
        """The pictures anew, with another one on the left."""
        return [self.picture_of(i)(left, number, request)[0] for i, number in enumerate((first, second, third))]
