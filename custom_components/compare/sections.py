"""What a report is made of, and its Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from ..markdown import markdown_table
from .tables import Table


class Figure(NamedTuple):
    """A picture that has been written, what it shows, and whether it is drawn on black."""

    path: Path
    caption: str
    dark: bool = False


@dataclass
class Section:
    """A part of a report: text, a block of code, tables, figures.

    Attributes:
        title: empty for the introduction.
        paragraphs, code, tables, figures: in this order.
    """

    title: str
    paragraphs: list[str] = field(default_factory=list)
    code: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, on one line; what needs no backslash, as in `a_b` and `[1, 2]`, stays readable."""
    return re.sub(r"([\\`*|<]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", " ".join(text.split()))


def _table(table: Table) -> str:
    rows = [[f"**{markdown_text(c.text)}**" if c.best else markdown_text(c.text) for c in row] for row in table.rows]
    notes = "".join(f"\n{markdown_text(note)}\n" for note in table.notes)
    title = f"### {markdown_text(table.title)}\n\n" if table.title else ""
    return f"{title}{markdown_table(rows)}{notes}"


def markdown_page(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The report as Markdown; pictures are linked relative to its folder."""
    parts = [f"# {markdown_text(title)}\n"]
    for section in sections:
        parts += [f"## {markdown_text(section.title)}\n"] if section.title else []
        parts += [f"{markdown_text(p)}\n" for p in section.paragraphs]
        if section.code:
            fence = "`" * (3 + max((len(ticks) for ticks in re.findall("`+", section.code)), default=0))
            parts.append(f"{fence}\n{section.code}\n{fence}\n")
        parts += [_table(t) for t in section.tables]
        for figure in section.figures:
            link = quote(figure.path.relative_to(folder).as_posix())
            parts.append(f"![{markdown_text(figure.caption)}]({link})\n")
    return "\n".join(parts)
