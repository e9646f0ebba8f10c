"""Names of the parts of the page that a run changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Plane(NamedTuple):
    """Parts of the page for one plane."""

    column: Any
    title: Any
    picture: Any
    number: Any
    error: Any


class Parts(NamedTuple):
    """Parts of the page that a run changes."""

    start: Any
    cancel: Any
    status: Any
    empty: Any
    result: Any
    left: Any
    planes: tuple[Plane, ...]
    about_error: Any
    bar: Any
    numbers: Any
    download: Any
    download_error: Any
    summary: Any
    line: Any

    def outputs(self) -> Iterator[Any]:
        """All of them."""
        for part in self:
            yield from (p for plane in part for p in plane) if isinstance(part, tuple) else (part,)
