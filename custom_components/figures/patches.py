"""Rows of patches side by side, each with a value below it: for the eye, what a rule has selected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from ..files import PathLike
from .style import new_figure, save, shorten

COLUMNS = 14  # patches in a row at most
LETTERS = 14  # of a line above a patch at most


class LabelledPatch(NamedTuple):
    """A patch and what stands at it in the picture."""

    pixels: torch.Tensor  # (H, W), in [0, 1]
    title: str  # above it; each line is shortened
    value: float  # below it, to three digits


def patch_rows(rows: Mapping[str, Sequence[LabelledPatch]], path: PathLike) -> None:
    """Draw rows of patches below each other, the first patch of one row above the first of the next.

    The picture has 14 columns at most, spread evenly over the patches of a row. Black is 0, white is 1.

    Args:
        rows: name, which stands at the left, -> patches; as many in each row.
        path: PNG file.

    Raises:
        ValueError: when there are no patches, or not as many in each row.
        ScanError: when the file cannot be written.
    """
    counts = {name: len(patches) for name, patches in rows.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"expected rows of patches, as many in each, got {counts}")
    count = next(iter(counts.values()))
    shown = [i * count // min(count, COLUMNS) for i in range(min(count, COLUMNS))]
    figure = new_figure(1.15 * len(shown) + 0.5, 1.65 * len(rows))
    grid = figure.subplots(len(rows), len(shown), squeeze=False)
    for row, (name, patches) in zip(grid, rows.items(), strict=True):
        row[0].set_ylabel(name)
        for axes, i in zip(row, shown, strict=True):
            axes.imshow(patches[i].pixels.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(f"{patches[i].value:.3g}", fontsize=8)
            axes.set_title("\n".join(shorten(line, LETTERS) for line in patches[i].title.splitlines()), fontsize=7)
    save(figure, path, grey=True)
