"""What a run makes of the page: its progress, then the result, or why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from ..errors import ScanError, reason
from . import texts
from .bundles import Bundle
from .command import Options, parse_factor, parse_spacing, shown_command
from .runs import Run
from .session import Session
from .sessions import Sessions
from .views import Comparison, compare

POLL = 0.25  # seconds between two looks at a run


class Parts(NamedTuple):
    """Parts of the page that a run changes; `planes` are (column, title, picture, slider) each."""

    start: Any
    cancel: Any
    status: Any
    empty: Any
    result: Any
    planes: tuple[tuple[Any, Any, Any, Any], ...]
    numbers: Any
    download: Any
    summary: Any
    line: Any

    def outputs(self) -> Iterator[Any]:
        """All of them."""
        for part in self:
            yield from (p for plane in part for p in plane) if isinstance(part, tuple) else (part,)


def _pair(comparison: Comparison, plane: str, number: int, left: str) -> tuple[str, str]:
    return str(comparison.picture(plane, number, left)), str(comparison.picture(plane, number, "sr"))


class Results:
    """Event handlers of a run and of its pictures; each finds its session by the request.

    Args:
        bundles: to choose from.
        sessions: where files lie.
        parts: of the page.
    """

    def __init__(self, bundles: Mapping[str, Bundle], sessions: Sessions, parts: Parts) -> None:
        self.bundles, self.sessions, self.parts = bundles, sessions, parts

    def _session(self, request: gr.Request) -> Session:
        return self.sessions.get(str(request.session_hash))

    def run(
        self,
        name: str,
        stage: str,
        factor: str,
        spacing: str,
        scale: str,
        in_plane: bool,
        denoising: float,
        left: str,
        request: gr.Request,
    ) -> Iterator[dict[Any, Any]]:
        """Run the bundle and say how far it is, then show the result or why there is none."""
        session, parts = self._session(request), self.parts
        ready = {parts.start: gr.Button(interactive=True), parts.cancel: gr.Button(interactive=False)}
        try:
            target = parse_spacing(spacing), parse_factor(scale)
            options = Options(*target, in_plane, stage or None, factor or None, denoising)
            run = yield from self._follow(session, self.bundles[name], options)
            line = shown_command(self.bundles[name], run.scan, options)
            yield {**self._shown(session, run, left, line), **ready}
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
        output = Path(row["output"])
        shown = session.comparison = compare(run.scan, output, run.output_dir.parent / "pictures")
        changes: dict[Any, Any] = {
            self.parts.status: texts.note("Done.", "good"),
            **self._only(self.parts.result),
            self.parts.numbers: texts.numbers(row),
            self.parts.download: gr.DownloadButton(f"Download {output.name}", value=str(output)),
            self.parts.summary: gr.DownloadButton(value=str(output.with_name("summary.csv"))),
            self.parts.line: line,
        }
        for i, (column, title, picture, slider) in enumerate(self.parts.planes):
            changes[column] = gr.Column(visible=i < len(shown.planes))
            if i < len(shown.planes):
                plane = shown.planes[i]
                count, number = shown.count(plane), shown.start(plane)
                changes[picture] = gr.ImageSlider(_pair(shown, plane, number, left))
                changes[title] = texts.plane(plane)
                changes[slider] = gr.Slider(1, max(count, 2), number, label=f"{plane} slice", visible=count > 1)
        return changes

    def picture_of(self, i: int) -> Callable[..., Any]:
        """The handler of the slider of a plane."""

        def handler(left: str, number: float, request: gr.Request) -> Any:
            comparison = self._session(request).comparison
            if comparison is None or i >= len(comparison.planes):
                return gr.skip()
            plane = comparison.planes[i]
            return _pair(comparison, plane, min(int(number), comparison.count(plane)), left)

        return handler

    def all_pictures(self, left: str, first: float, second: float, third: float, request: gr.Request) -> Any:
        """The pictures anew, with another one on the left."""
        return [self.picture_of(i)(left, number, request) for i, number in enumerate((first, second, third))]
