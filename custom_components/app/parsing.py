"""Numbers as people write them into the page."""

from __future__ import annotations

import re


def _numbers(text: str) -> tuple[float, ...] | None:
    """None, one or three numbers; None for anything else."""
    try:
        values = tuple(float(part) for part in re.sub(r"[\[\](),;]", " ", text or "").split())
    except ValueError:
        return None
    return values if len(values) in (0, 1, 3) else None


def parse_spacing(text: str) -> tuple[float, ...] | None:
    """`1`, `1 1 2.5` or `[1, 1, 2.5]` in mm; nothing for none.

    Raises:
        ValueError: on anything else, and on numbers below 0 or not finite.
    """
    values = _numbers(text)
    if values is None or not all(0 <= v < float("inf") for v in values) or (values and not any(values)):
        raise ValueError(f"target spacing must be one number in mm or three such as 1 1 2.5, got {text!r}")
    return values or None


def parse_factor(text: str) -> tuple[float, ...] | None:
    """`2`, `1.5 1.5 3` or `[1, 1, 3]`; nothing for none.

    Raises:
        ValueError: on anything else, and on numbers below 1 or not finite.
    """
    values = _numbers(text)
    if values is None or not all(1 <= v < float("inf") for v in values):
        raise ValueError(f"scale factor must be one number >= 1 or three such as 1 1 3, got {text!r}")
    return values or None


def parse_thickness(text: str) -> float | None:
    """`3` or `3 mm`; nothing for none.

    Raises:
        ValueError: on anything else, and on a number that is not above 0 or not finite.
    """
    values = _numbers(re.sub(r"mm\s*$", "", text or ""))
    if values is None or len(values) > 1 or not all(0 < v < float("inf") for v in values):
        raise ValueError(
            f"slice thickness must be one number > 0 in mm, or nothing where it is not known, got {text!r}"
        )
    return values[0] if values else None


def parse_noise(text: str) -> float | None:
    """`3` or `3 %` of the scan's range, as a part of it: 0.03; nothing for none.

    Raises:
        ValueError: on anything else, and on a number that is not from 0 to 100.
    """
    values = _numbers(re.sub(r"%\s*$", "", text or ""))
    if values is None or len(values) > 1 or not all(0 <= v <= 100 for v in values):
        raise ValueError(f"noise must be one number from 0 to 100 in %, or nothing where it is not known, got {text!r}")
    return values[0] / 100 if values else None
