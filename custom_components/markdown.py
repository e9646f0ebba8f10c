"""Tables for people: Markdown that is aligned for the eye too."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text, the first the head, as a Markdown table that is aligned for the eye too."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = [any(c.isalpha() for c in "".join(row[i] for row in rows[1:])) for i in range(len(widths))]
    rule = ["-" * w if is_left else "-" * (w - 1) + ":" for w, is_left in zip(widths, left, strict=True)]
    lines = [
        [cell.ljust(w) if is_left else cell.rjust(w) for cell, w, is_left in zip(row, widths, left, strict=True)]
        for row in (rows[0], rule, *rows[1:])
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
