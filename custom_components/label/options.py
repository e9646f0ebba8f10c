"""What a request to the server may set: how it is shown, and how its value is read and checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

NUMBERS = ("target_spacing", "scale_factor")
NUMBER = {"denoising_strength": (0.0, 1.0), "slice_thickness": (0.0, math.inf)}
FLAGS = ("in_plane_only", "all_axes")
AUTOMATIC = "auto"


@dataclass(frozen=True)
class Option:
    """An option of a bundle.

    Args:
        shown: what clients see: the default, or a list of the values to choose from, the default first.
        read: from the name and the value of a request to the value for the config; raises `ValueError` on any other.
    """

    shown: Any
    read: Callable[[str, Any], Any]


def numbers(name: str, value: Any) -> float | list[float] | None:
    """One number or a list of them, as JSON or as text (`2`, `1,1,2.5`, `[1,1,2.5]`); None where it is empty: not set."""
    given = value
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None
        try:
            given = json.loads(text) if text.startswith("[") else json.loads(f"[{text}]")
        except (ValueError, RecursionError):
            given = [None]
        if not text.startswith("[") and len(given) == 1:
            given = given[0]
    if given is None and not isinstance(value, str):
        return None
    listed = given if isinstance(given, list) else [given]
    if not listed or not all(_is_number(v) for v in listed):
        raise ValueError(f"{name} must be one number or one per axis, such as [1,1,2.5], got {_short(value)}")
    result: float | list[float] = given
    return result


def number(low: float, high: float, default: float | None) -> Callable[[str, Any], Any]:
    """A number from `low` to `high`, as JSON or as text; the default where it is empty."""

    def read(name: str, value: Any) -> float | None:
        given = numbers(name, value)
        if isinstance(given, list) or (given is not None and not low <= given <= high):
            raise ValueError(f"{name} must be one number from {low:g} to {high:g}, got {_short(value)}")
        return default if given is None else given

    return read


def flag(name: str, value: Any) -> bool:
    """True or false, as JSON or as text."""
    known = {"true": True, "false": False}
    if isinstance(value, bool) or str(value).lower() in known:
        return known[str(value).lower()]
    raise ValueError(f"{name} must be true or false, got {_short(value)}")


def choice(values: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    """One of the keys of `values`, which stands for its value there; the whole list of keys, as clients show it, for the first."""

    def read(name: str, value: Any) -> Any:
        if value == list(values):
            return next(iter(values.values()))
        if isinstance(value, (str, int)) and str(value) in values:
            return values[str(value)]
        raise ValueError(f"{name} must be one of {', '.join(values)}, got {_short(value)}")

    return read


def offered_options(config: Mapping[str, Any]) -> dict[str, Option]:
    """The options that the `inference.json` of a bundle has, with the defaults that stand there."""
    options = {name: Option(_number_text(config[name]), numbers) for name in NUMBERS if name in config}
    options |= {
        n: Option(_number_text(config[n]), number(*limits, config[n])) for n, limits in NUMBER.items() if n in config
    }
    flat = config.get("spatial_dims") == 2
    options |= {n: Option(bool(config[n]), flag) for n in FLAGS if n in config and (flat or n != "all_axes")}
    if "slice_axis" in config:
        axes = _default_first({AUTOMATIC: None, "0": 0, "1": 1, "2": 2}, config["slice_axis"])
        options["slice_axis"] = Option(list(axes), choice(axes))
    weights = config.get("weights")
    if isinstance(weights, Mapping) and config.get("stage") in weights:
        stages = _default_first({name: name for name in weights}, config["stage"])
        options["stage"] = Option(list(stages), choice(stages))
        factors = _default_first({f: int(f) for f in weights[config["stage"]]}, config.get("network_factor"))
        options["network_factor"] = Option(list(factors), choice(factors))
    return options


def read_options(offered: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values for the config of the options that a request sets.

    Only numbers, truth values and names out of a list come through: a text in a config can be code.

    Raises:
        ValueError: in one line, on an option that is not offered or a value that is none of its own.
    """
    result = {}
    for name, value in given.items():
        if name not in offered:
            near = get_close_matches(name, offered, 1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"expected options among {', '.join(offered)}, got {_short(name)}{hint}")
        result[name] = offered[name].read(name, value)
    return result


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number_text(value: float | Sequence[float] | None) -> str:
    return "" if value is None else json.dumps(value)


def _default_first(values: dict[str, Any], default: Any) -> dict[str, Any]:
    return {**{k: v for k, v in values.items() if v == default}, **values}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
