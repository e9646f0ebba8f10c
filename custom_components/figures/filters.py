"""`python -m custom_components.figures.filters`: what learnt sharpness filters respond to, beside the Laplacian."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from ..acquisition import slice_axis as found_slice_axis
from ..errors import ScanError, one_line_errors
from ..files import PathLike
from ..losses.sharpness import laplacian_filter, responses
from ..transforms import LoadScan, RobustScale
from .planes import PLANES, Image, affine_of, head_position, plane_slice
from .style import new_figure, save

SHARE = 99.5  # percentile of the responses' sizes at which the colours end: one strong edge must not set them
COLUMNS = 5


class Response(NamedTuple):
    """A filter and its response to a slice, both turned as the slice is shown."""

    name: str
    coefficients: Image  # (k, k)
    pixels: Image


def read_filters(state: PathLike, term: str = "sharpness", fixed_norm: bool = True) -> torch.Tensor:
    """The filters of a `LearnableSharpness` `(L, k, k)` in the checkpoint of a training run.

    Args:
        state: `last.pt`, of which `loss` is the state dict of a `CompositeLoss`, or that state dict alone.
        term: name of the `LearnableSharpness` among the terms.
        fixed_norm: as in training: give each filter the norm of the Laplacian, with which it was used.

    Raises:
        ScanError: when the file cannot be read or has no such filters.
    """
    try:
        found = torch.load(state, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ScanError(f"{state}: expected a checkpoint of tensors, got a file that torch.load refuses") from error
    loss = found.get("loss", found) if isinstance(found, Mapping) else {}
    name = f"terms.{term}.weight"
    if not isinstance(loss, Mapping) or name not in loss:
        got = ", ".join(map(str, loss))[:200] if isinstance(loss, Mapping) else type(loss).__name__
        raise ScanError(f"{state}: expected learnt filters as {name} in the state of the loss, got {got or 'none'}")
    weight: torch.Tensor = loss[name].float()
    if weight.ndim != 3:
        raise ScanError(
            f"{state}: expected filters for slices (L, k, k) as {name}, got the shape {tuple(weight.shape)}"
        )
    if fixed_norm:
        weight = laplacian_filter(2).norm() * functional.normalize(weight.flatten(1)).view_as(weight)
    return weight


def filter_responses(
    image: torch.Tensor, filters: torch.Tensor, axis: int | None = None, index: int | None = None
) -> tuple[Image, tuple[float, float], list[Response]]:
    """The slice that is shown, its width and height in mm, and the responses of the Laplacian and of the filters to it.

    Args:
        image: scan `(1, X, Y, Z)`, in [0, 1].
        filters: `(L, k, k)`, on the two other axes in their order.
        axis: across the slices, 0 to 2; None: found from the scan (see `custom_components.acquisition.slice_axis`).
        index: of the slice; None takes the middle of the head.

    Raises:
        ValueError: when there is no such axis or slice.
    """
    affine, shape = affine_of(image), image.shape[1:]
    axis = found_slice_axis(shape, torch.from_numpy(affine)) if axis is None else axis
    if axis not in (0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1 or 2, got {axis}")
    position = list(head_position(image))
    if index is not None:
        if not 0 <= index < shape[axis]:
            raise ValueError(f"slice must be from 0 to {shape[axis] - 1}, got {index}")
        position[axis] = (index + 0.5) / shape[axis]
    world = int(nib.orientations.io_orientation(affine)[axis, 0])
    plane = next(name for name, axes in PLANES.items() if axes[2] == world)
    shown = plane_slice(image, affine, plane, (position[0], position[1], position[2]))
    pixels = torch.from_numpy(shown.pixels.copy())[None, None]
    named = {"Laplacian": laplacian_filter(2), **{f"filter {i + 1}": f for i, f in enumerate(filters)}}
    result = []
    for name, kernel in named.items():
        # turned by the same function as the slice: the response in the scan's axes, turned, is that of the turned filter
        turned = plane_slice(kernel.unsqueeze(axis)[None], affine, plane, (0.5, 0.5, 0.5)).pixels.copy()
        response = responses(pixels, torch.from_numpy(turned)[None], "replicate").view(pixels.shape[2:])
        result.append(Response(name, turned, response.numpy()))
    return shown.pixels, shown.size, result


def draw_filters(
    image: torch.Tensor, filters: torch.Tensor, path: PathLike, axis: int | None = None, index: int | None = None
) -> None:
    """Draw a slice, and the responses of the Laplacian and of each filter to it with the filter's coefficients beside them.

    Each response has colours of its own, symmetric about 0, as a filter whose coefficients do not sum to 0 responds to all of the
    head and a Laplacian to its edges alone. Slice and coefficients are turned alike, as radiologists look at a head.

    Args:
        image: scan `(1, X, Y, Z)`, in [0, 1].
        filters: `(L, k, k)`, on the two axes of a slice in their order.
        path: PNG file.
        axis: across the slices, as for `filter_responses`.
        index: of the slice, as for `filter_responses`.

    Raises:
        ValueError: as `filter_responses`.
        ScanError: when the file cannot be written.

    Reference:
        V. Cherukuri et al., Deep MR brain image super-resolution using spatio-structural priors, 2020,
        doi:10.1109/TIP.2019.2942510: figure 8.
    """
    pixels, size, shown = filter_responses(image, filters, axis, index)
    count = len(shown) + 1
    rows, columns = -(-count // COLUMNS), min(count, COLUMNS)
    tall = max(min(size[1] / size[0], 1.6), 0.6)
    figure = new_figure(2.8 * columns, rows * (1.6 * tall + 0.5))
    grid = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 0.72] * columns)
    places = grid.reshape(-1, 2)
    options: dict[str, Any] = {"extent": (0, size[0], size[1], 0), "interpolation": "nearest"}
    for n, (axes, beside) in enumerate(places):
        beside.set_axis_off()
        axes.tick_params(labelsize=7, labelleft=n % columns == 0, labelbottom=n + columns >= count)
        axes.set_ylabel("mm" if n % columns == 0 else "", fontsize=8)
        axes.set_xlabel("mm" if n + columns >= count else "", fontsize=8)
        axes.set_visible(n < count)
    places[0][0].imshow(pixels, cmap="gray", vmin=0, vmax=1, **options)
    places[0][0].set_title("slice", fontsize=9)
    for (axes, beside), (name, coefficients, response) in zip(places[1:], shown, strict=False):
        limit = float(np.percentile(np.abs(response), SHARE)) or 1.0
        colours = axes.imshow(response, cmap="RdBu_r", vmin=-limit, vmax=limit, **options)
        axes.set_title(name, fontsize=9)
        text = "\n".join(" ".join(f"{value:5.2f}" for value in row) for row in coefficients)
        beside.text(0, 0.75, text, family="monospace", fontsize=6.5, va="center", transform=beside.transAxes)
        bar = figure.colorbar(
            colours, cax=beside.inset_axes((0.05, 0.3, 0.8, 0.06)), orientation="horizontal", extend="both"
        )
        bar.set_ticks([-limit, 0, limit], labels=[f"{-limit:.2g}", "0", f"{limit:.2g}"])
        bar.set_label("response", fontsize=7)
        bar.ax.tick_params(labelsize=6.5)
    save(figure, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the filters of a training run."""
    parser = argparse.ArgumentParser(prog="python -m custom_components.figures.filters", description=__doc__)
    parser.add_argument("--state", required=True, help="last.pt of a training run")
    parser.add_argument("--scan", required=True, help="scan of which a slice is shown")
    parser.add_argument("--output", required=True, help="PNG file")
    parser.add_argument("--term", default="sharpness", help="name of the term with the filters (default: sharpness)")
    parser.add_argument("--slice", type=int, help="index of the slice; default: the middle of the head")
    parser.add_argument("--slice_axis", type=int, help="array axis across the slices; default: found from the scan")
    parser.add_argument(
        "--fixed_norm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="as in training; --no-fixed_norm shows the coefficients as they are stored",
    )
    chosen = parser.parse_args(arguments)
    filters = read_filters(chosen.state, chosen.term, chosen.fixed_norm)
    image = RobustScale(lower=None, clip=True)(LoadScan(spatial_dims=2)(chosen.scan))
    draw_filters(image, filters, chosen.output, chosen.slice_axis, chosen.slice)
    print(chosen.output)


if __name__ == "__main__":
    from custom_components.figures.filters import main as run  # under its name, by which its errors become one line

    one_line_errors()
    run()
