"""The left of the page: bundle, weights, target and more options, and what was chosen of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gradio as gr

from . import texts
from .bundles import Bundle
from .command import Options
from .options import MORE, chosen, part
from .parsing import parse_factor, parse_spacing


class Choices(NamedTuple):
    """Parts of the page from which a run takes what it is to do; `options` are those of `custom_components.app.options` by id."""

    name: Any
    about: Any
    stage: Any
    factor: Any
    warning: Any
    spacing: Any
    scale: Any
    more: Any
    options: Mapping[str, Any]

    def inputs(self) -> set[Any]:
        """Those that say something."""
        return {self.name, self.stage, self.factor, self.spacing, self.scale, *self.options.values()}

    def changed(self) -> list[Any]:
        """Those that change with the bundle, in the order of `for_bundle`."""
        return [*self[1:-1], *self.options.values()]

    def wished(self, given: Mapping[Any, Any]) -> Options:
        """What was chosen, by the value of each part.

        Raises:
            ValueError: on a text that is no number as it is needed.
        """
        values = {"target_spacing": parse_spacing(given[self.spacing]), "scale_factor": parse_factor(given[self.scale])}
        others = {name: chosen(name, given[field]) for name, field in self.options.items()}
        return Options({**values, **others}, given[self.stage] or None, given[self.factor] or None)


def for_bundle(bundle: Bundle) -> list[Any]:
    """The parts anew for a bundle: what it is, its weights, target and options."""
    warning = texts.warning(bundle.stage)
    factors = list(bundle.stages.get(bundle.stage, ()))
    default = f"default: \u00d7{bundle.factor:g}"
    return [
        texts.about(bundle),
        gr.Radio(list(bundle.stages), value=bundle.stage or None, visible=bool(bundle.stages)),
        gr.Radio(factors, value=f"{bundle.factor:g}" if factors else None, visible=bool(factors)),
        gr.HTML(warning, visible=bool(warning)),
        gr.Textbox(placeholder=default),
        gr.Textbox(placeholder=default),
        gr.Accordion(visible=any(name in bundle.values for name in MORE)),
        part("in_plane_only", bundle),
        *(part(name, bundle) for name in MORE),
    ]


def _numbers(label: str, info: str, name: str, bundle: Bundle) -> Any:
    return gr.Textbox(
        label=label, info=info, elem_id=name, placeholder=f"default: \u00d7{bundle.factor:g}", max_lines=1
    )


def bundle_parts(bundles: Mapping[str, Bundle], default: str) -> tuple[Any, Any, Any, Any, Any]:
    """Bundle, what it is, stage, factor of the weights, warning."""
    bundle = bundles[default]
    name = gr.Dropdown([(b.title, n) for n, b in bundles.items()], value=default, label="Bundle", elem_id="bundle")
    about = gr.HTML(texts.about(bundle))
    has_stages = bool(bundle.stages)
    factors, factor_now = bundle.stages.get(bundle.stage, ()), f"{bundle.factor:g}" if has_stages else None
    with gr.Row():
        stage = gr.Radio(
            list(bundle.stages), value=bundle.stage or None, label="Stage", visible=has_stages, elem_id="stage"
        )
        factor = gr.Radio(
            list(factors), value=factor_now, label="Factor of the network", visible=has_stages, elem_id="factor"
        )
    warning = gr.HTML(texts.warning(bundle.stage), visible=bool(texts.warning(bundle.stage)), elem_id="warning")
    return name, about, stage, factor, warning


def target_parts(bundle: Bundle) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Voxel size, factor, the fold of more options, and the options by id."""
    each = "one number, or one per axis of the file, as"
    with gr.Row():
        spacing = _numbers("Target voxel size in mm", f"{each} 1 1 2.5; 0 keeps an axis", "spacing", bundle)
        scale = _numbers("or scale factor", f"{each} 1 1 3; 1 keeps an axis", "scale", bundle)
    options = {"in_plane_only": part("in_plane_only", bundle)}
    seen = any(name in bundle.values for name in MORE)
    with gr.Accordion("More options", open=False, visible=seen, elem_id="more") as more:
        options |= {name: part(name, bundle) for name in MORE}
    return spacing, scale, more, options
