"""The page: what can be chosen on the left, what came of it on the right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from . import texts
from .actions import Actions
from .browser import LINK
from .bundles import Bundle, first_choice
from .choices import Choices, bundle_parts, target_parts
from .parts import Parts, Plane
from .results import Results
from .sessions import Sessions
from .uploads import Limits
from .views import LEFT

PLANES = 3


def _planes() -> tuple[Plane, ...]:
    made = []
    look: dict[str, Any] = {
        "format": "png",
        "show_label": False,
        "interactive": False,
        "buttons": [],
        "elem_classes": "plane",
    }
    with gr.Row(equal_height=False):
        for i in range(PLANES):
            with gr.Column(min_width=240) as column:
                title = gr.HTML(elem_classes="plane-title")
                picture = gr.ImageSlider(elem_id=f"compare_{i}", **look)
                number = gr.Slider(1, 2, 1, step=1, label="slice", interactive=True, elem_id=f"slice_{i}", buttons=[])
                error = gr.Image(elem_id=f"error_{i}", visible=False, **look)
            made.append(Plane(column, title, picture, number, error))
    return tuple(made)


def _results() -> dict[str, Any]:
    made: dict[str, Any] = {}
    made["left"] = gr.Radio(
        list(LEFT), value=LEFT[0], label="Left of the handle; right of it: SR, the result", elem_id="left"
    )
    made["planes"] = _planes()
    made["bar"] = gr.Image(
        format="png",
        show_label=False,
        interactive=False,
        buttons=[],
        visible=False,
        elem_id="error_bar",
        elem_classes="error-bar",
    )
    made["about_error"] = gr.HTML(texts.ERROR, visible=False, elem_id="about_error")
    with gr.Row():
        with gr.Column():
            made["numbers"] = gr.HTML(elem_id="numbers")
        with gr.Column():
            made["download"] = gr.DownloadButton("Download", variant="primary", elem_id="download")
            made["download_error"] = gr.DownloadButton(
                "Download the expected error", visible=False, elem_id="download_error"
            )
            made["summary"] = gr.DownloadButton("Download summary.csv", elem_id="summary")
            with gr.Accordion("The same on the command line", open=False):
                made["line"] = gr.Code(language="shell", interactive=False, elem_id="command", show_label=False)
    return made


def build(
    bundles: Mapping[str, Bundle], sessions: Sessions, limits: Limits, max_runs: int = 1, in_browser: bool = False
) -> gr.Blocks:
    """Lay out the page and tie its parts to what they do.

    Args:
        bundles: to choose from, by name.
        sessions: where the files of a page lie.
        limits: of uploads.
        max_runs: runs at a time; others wait for their turn.
        in_browser: link to the page that works in the browser (see `custom_components.app.browser`).
    """
    default = first_choice(bundles)
    page: gr.Blocks
    with gr.Blocks(title="MRI super-resolution", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(texts.HEAD + (LINK if in_browser else ""))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=390):
                network = bundle_parts(bundles, default)
                file = gr.File(
                    label=f"Scan, up to {limits.upload_mib} MiB",
                    height=130,
                    elem_id="scan",
                )
                choices = Choices(*network, *target_parts(bundles[default]))
                with gr.Row():
                    start = gr.Button("Sharpen", variant="primary", elem_id="run")
                    cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
                status = gr.HTML(texts.note("Choose a scan."), elem_id="status")
            with gr.Column(scale=5, min_width=600):
                empty = gr.HTML(texts.EMPTY, elem_id="empty")
                with gr.Column(visible=False, elem_id="result") as result:
                    made = _results()
        parts = Parts(start=start, cancel=cancel, status=status, empty=empty, result=result, **made)
        actions, results = Actions(bundles, sessions, limits), Results(bundles, sessions, choices, parts)
        choices.name.change(actions.choose, choices.name, choices.changed(), show_progress="hidden")
        choices.stage.change(
            actions.choose_stage,
            [choices.name, choices.stage, choices.factor],
            [choices.warning, choices.factor],
            show_progress="hidden",
        )
        file.upload(actions.upload, file, status, show_progress="hidden", concurrency_limit=None)
        file.clear(actions.clear, None, status, show_progress="hidden")
        pressed = start.click(actions.prepare, None, [start, cancel, status], queue=False, show_progress="hidden")
        pressed.then(
            results.run,
            choices.inputs() | {parts.left},
            list(parts.outputs()),
            concurrency_limit=max_runs,
            show_progress="hidden",
        )
        cancel.click(actions.cancel, None, status, queue=False, show_progress="hidden")
        parts.left.input(
            results.all_pictures,
            [parts.left, *(plane.number for plane in parts.planes)],
            [plane.picture for plane in parts.planes],
            show_progress="hidden",
            concurrency_limit=None,
        )
        for i, plane in enumerate(parts.planes):
            plane.number.input(
                results.picture_of(i),
                [parts.left, plane.number],
                [plane.picture, plane.error],
                show_progress="hidden",
                trigger_mode="always_last",
                concurrency_limit=None,
            )
        page.unload(actions.leave)
    return page
