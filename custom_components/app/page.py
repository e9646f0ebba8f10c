"""The page: what can be chosen on the left, what came of it on the right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from . import texts
from .actions import Actions
from .browser import LINK
from .bundles import Bundle, first_choice
from .results import Parts, Results
from .sessions import Sessions
from .uploads import Limits
from .views import LEFT

PLANES = 3


def _choices(bundles: Mapping[str, Bundle], default: str) -> tuple[Any, ...]:
    bundle = bundles[default]
    name = gr.Dropdown([(b.title, n) for n, b in bundles.items()], value=default, label="Bundle", elem_id="bundle")
    about = gr.HTML(texts.about(bundle))
    has_stages = bool(bundle.stages)
    factors = bundle.stages.get(bundle.stage, ())
    with gr.Row():
        stage = gr.Radio(
            list(bundle.stages), value=bundle.stage or None, label="Stage", visible=has_stages, elem_id="stage"
        )
        factor = gr.Radio(
            list(factors),
            value=f"{bundle.factor:g}" if has_stages else None,
            label="Factor of the network",
            visible=has_stages,
            elem_id="factor",
        )
    warning = gr.HTML(texts.warning(bundle.stage), visible=bool(texts.warning(bundle.stage)), elem_id="warning")
    return name, about, stage, factor, warning


def _numbers(label: str, info: str, name: str, bundle: Bundle) -> Any:
    return gr.Textbox(
        label=label, info=info, elem_id=name, placeholder=f"default: \u00d7{bundle.factor:g}", max_lines=1
    )


def _target(bundle: Bundle) -> tuple[Any, ...]:
    each = "one number, or one per axis of the file, as"
    with gr.Row():
        spacing = _numbers("Target voxel size in mm", f"{each} 1 1 2.5; 0 keeps an axis", "spacing", bundle)
        scale = _numbers("or scale factor", f"{each} 1 1 3; 1 keeps an axis", "scale", bundle)
    in_plane = gr.Checkbox(
        bundle.in_plane_only, label="In plane only: keep the slices as thick as they are", elem_id="in_plane"
    )
    denoising = gr.Slider(
        0,
        1,
        bundle.denoising_strength or 0,
        step=0.05,
        label="Noise to take away: 0 keeps it, 1 takes all",
        visible=bundle.denoising_strength is not None,
        interactive=True,
        elem_id="denoising",
        buttons=[],
    )
    return spacing, scale, in_plane, denoising


def _planes() -> list[tuple[Any, Any, Any, Any]]:
    made = []
    with gr.Row(equal_height=False):
        for i in range(PLANES):
            with gr.Column(min_width=240) as column:
                title = gr.HTML(elem_classes="plane-title")
                picture = gr.ImageSlider(
                    format="png",
                    show_label=False,
                    interactive=False,
                    buttons=[],
                    elem_id=f"compare_{i}",
                    elem_classes="plane",
                )
                number = gr.Slider(1, 2, 1, step=1, label="slice", interactive=True, elem_id=f"slice_{i}", buttons=[])
            made.append((column, title, picture, number))
    return made


def _results() -> tuple[Any, ...]:
    left = gr.Radio(list(LEFT), value=LEFT[0], label="Left of the handle; right of it: SR, the result", elem_id="left")
    planes = _planes()
    with gr.Row():
        with gr.Column():
            numbers = gr.HTML(elem_id="numbers")
        with gr.Column():
            download = gr.DownloadButton("Download", variant="primary", elem_id="download")
            summary = gr.DownloadButton("Download summary.csv", elem_id="summary")
            with gr.Accordion("The same on the command line", open=False):
                line = gr.Code(language="shell", interactive=False, elem_id="command", show_label=False)
    return left, planes, numbers, download, summary, line


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
                name, about, stage, factor, warning = _choices(bundles, default)
                file = gr.File(
                    label=f"Scan, up to {limits.upload_mib} MiB",
                    height=130,
                    elem_id="scan",
                )
                spacing, scale, in_plane, denoising = _target(bundles[default])
                with gr.Row():
                    start = gr.Button("Sharpen", variant="primary", elem_id="run")
                    cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
                status = gr.HTML(texts.note("Choose a scan."), elem_id="status")
            with gr.Column(scale=5, min_width=600):
                empty = gr.HTML(texts.EMPTY, elem_id="empty")
                with gr.Column(visible=False, elem_id="result") as result:
                    left, planes, numbers, download, summary, line = _results()
        parts = Parts(start, cancel, status, empty, result, tuple(planes), numbers, download, summary, line)
        actions, results = Actions(bundles, sessions, limits), Results(bundles, sessions, parts)
        chosen = [about, stage, factor, warning, spacing, scale, in_plane, denoising]
        name.change(actions.choose, name, chosen, show_progress="hidden")
        stage.change(actions.choose_stage, [name, stage, factor], [warning, factor], show_progress="hidden")
        file.upload(actions.upload, file, status, show_progress="hidden", concurrency_limit=None)
        file.clear(actions.clear, None, status, show_progress="hidden")
        pressed = start.click(actions.prepare, None, [start, cancel, status], queue=False, show_progress="hidden")
        pressed.then(
            results.run,
            [name, stage, factor, spacing, scale, in_plane, denoising, left],
            list(parts.outputs()),
            concurrency_limit=max_runs,
            show_progress="hidden",
        )
        cancel.click(actions.cancel, None, status, queue=False, show_progress="hidden")
        left.input(
            results.all_pictures,
            [left, *(number for *_, number in planes)],
            [picture for _, _, picture, _ in planes],
            show_progress="hidden",
            concurrency_limit=None,
        )
        for i, (_, _, picture, number) in enumerate(planes):
            number.input(
                results.picture_of(i),
                [left, number],
                picture,
                show_progress="hidden",
                trigger_mode="always_last",
                concurrency_limit=None,
            )
        page.unload(actions.leave)
    return page
