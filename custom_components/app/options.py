"""What the page offers beyond the target: parts of it for options that a bundle has, and what was chosen there."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..acquisition import PROTOCOLS
from .bundles import Bundle
from .command import Value
from .parsing import parse_noise, parse_thickness

MORE = (
    *("slice_thickness", "known_acquisition", "known_noise_std"),
    *("denoising_strength", "self_ensemble", "uncertainty"),
)
WORDS = {
    "gaussian_spline": "Gaussian blur, then cubic splines (simulated)",
    "gaussian_spline_corner": "the same by scipy.ndimage.zoom: outer voxel centres agree",
    "bicubic": "bicubic with anti-aliasing, as Matlab's imresize",
    "gaussian_bicubic": "Gaussian blur, then Matlab's imresize",
    "slice_profile": "slices of a Gaussian profile, without gap or overlap",
    "box": "averages over each voxel, without gap or overlap",
}
TICKS = {
    "in_plane_only": "In plane only: keep the slices as thick as they are",
    "self_ensemble": "Mean over the scan and its seven mirror images: better, 8 times the time",
    "uncertainty": "Show how large the error of each voxel is expected to be",
}


def unknown(bundle: Bundle) -> str:
    """What a bundle does with what is not said of the acquisition."""
    return "estimated from the scan" if bundle.values.get("estimate_acquisition") else "not known"


def part(name: str, bundle: Bundle) -> Any:
    """The part of the page for an option, with the bundle's default; not to be seen where the bundle has none of that id."""
    default = bundle.values.get(name)
    seen: dict[str, Any] = {"visible": name in bundle.values, "elem_id": name}
    if name in TICKS:
        return gr.Checkbox(bool(default), label=TICKS[name], interactive=True, **seen)
    if name == "denoising_strength":
        strength = float(default or 0)
        label = "Noise to take away: 0 keeps it, 1 takes all"
        return gr.Slider(0, 1, strength, step=0.05, label=label, interactive=True, buttons=[], **seen)
    if name == "known_acquisition":
        words = [(unknown(bundle), ""), *((WORDS.get(p, p), p) for p in PROTOCOLS)]
        info = "protocol, where it is known for sure: a wrong one makes results worse"
        return gr.Dropdown(
            words, value=default or "", label="How the scan was made", info=info, interactive=True, **seen
        )
    if name == "slice_thickness":
        label, info = "Slice thickness in mm", "full width at half maximum of the slice profile"
        empty = f"the file's, else {unknown(bundle)}"
    elif name == "known_noise_std":
        label, info = "Noise in % of the scan's range", "standard deviation"
        empty = unknown(bundle) if default is None else f"default: {100 * float(default):g} %"
    else:
        raise ValueError(f"name must be one of {('in_plane_only', *MORE)}, got {name!r}")
    return gr.Textbox("", label=label, info=info, placeholder=empty, max_lines=1, interactive=True, **seen)


def chosen(name: str, given: Any) -> Value:
    """What a part of the page says, as the id takes it; None for nothing.

    Raises:
        ValueError: on a text that is no number as the id needs.
    """
    if name in TICKS:
        return bool(given)
    if name == "slice_thickness":
        return parse_thickness(given)
    if name == "known_noise_std":
        return parse_noise(given)
    return None if given in (None, "") else str(given) if name == "known_acquisition" else float(given)
