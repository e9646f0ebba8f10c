"""The sharpest and the smoothest patches of training scans, from which sharpness filters are learnt.

`python -m custom_components.sharp_patches` writes them as a table and a picture, for the eye.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.data import Dataset, MetaTensor
from torch.nn import functional
from tqdm import tqdm

from .acquisition import slice_axis as found_slice_axis
from .errors import ScanError, one_line_errors
from .figures.patches import LabelledPatch, patch_rows
from .files import PathLike, atomic_write
from .losses.sharpness import laplacian_filter, responses
from .scans import scan_stem
from .tensors import plain
from .training_images import add_split_options, training_images

logger = logging.getLogger(__name__)
BLOCK = 16  # slices that are filtered at a time


@dataclasses.dataclass(frozen=True)
class Patch:
    """Where a patch stands, and how sharp it is: a row of `patches.csv`."""

    kind: str  # sharp or smooth
    file: str
    slice_axis: int  # array axis across the slices; rows and columns are the other two, in their order
    slice: int
    row: int  # its first
    column: int
    response: (
        float  # squared Frobenius norm of the Laplacian, at the voxels that have all their neighbours in the patch
    )


@dataclasses.dataclass(frozen=True)
class SharpPatches:
    """Patches `(N, 1, size, size)`, as many sharp as smooth ones, scan by scan; `records` lists the sharp, then the smooth ones."""

    sharp: torch.Tensor
    smooth: torch.Tensor
    records: list[Patch]


def _slices(image: torch.Tensor, slice_axis: int | None, file: str) -> tuple[torch.Tensor, int]:
    """The slices `(S, H, W)` of a scan `(1, X, Y, Z)`, and the array axis across them."""
    if image.ndim != 4 or image.shape[0] != 1:
        raise ValueError(f"{file}: expected a scan (1, X, Y, Z), got the shape {tuple(image.shape)}")
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
    axis = found_slice_axis(image.shape[1:], affine) if slice_axis is None else int(slice_axis)
    return plain(image)[0].movedim(axis, 0), axis


def _box_sums(x: torch.Tensor, box: int, stride: int) -> torch.Tensor:
    """Sums over squares of `box` voxels at every `stride`-th place of slices `(S, H, W)`, float64."""
    total = functional.pad(x.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    sums = total[:, box:] - total[:, :-box]
    return (sums[..., box:] - sums[..., :-box])[:, ::stride, ::stride]


def _scores(slices: torch.Tensor, size: int, stride: int, foreground: float, head_share: float) -> torch.Tensor:
    """Response of the patch at each place `(S, rows, columns)`, NaN where it is not in the head."""
    laplacian, blocks = laplacian_filter(2)[None], []
    for block in slices.split(BLOCK):
        response = responses(block[:, None], laplacian, "valid").square()
        sums = _box_sums(response.view(len(block), block.shape[1] - 2, block.shape[2] - 2), size - 2, stride)
        share = _box_sums(block > foreground, size, stride) / size**2
        blocks.append(sums.clamp_(min=0).masked_fill_(share < head_share, torch.nan).float())
    return torch.cat(blocks)


def _picks(score: torch.Tensor, count: int, size: int, stride: int, slice_gap: int) -> list[tuple[int, int, int]]:
    """Places of the highest scores that are apart from each other; NaN is no place. The score is used up."""
    score.nan_to_num_(nan=-torch.inf)
    picks: list[tuple[int, int, int]] = []
    while len(picks) < count:
        best = int(score.argmax())
        k, i, j = (int(n) for n in torch.unravel_index(torch.tensor(best), score.shape))
        if score[k, i, j] == -torch.inf:
            break
        picks.append((k, i * stride, j * stride))
        reach = (size - 1) // stride  # places whose squares meet this one
        score[max(k - slice_gap + 1, 0) : k + slice_gap] = -torch.inf
        score[:, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1] = -torch.inf
    return picks


def select_patches(
    scans: Sequence[Mapping[str, Any]] | Dataset,
    size: int = 40,
    per_scan: int = 1,
    slice_axis: int | None = None,
    stride: int = 1,
    foreground: float = 0.1,
    head_share: float = 0.98,
    slice_gap: int = 2,
    key: str = "image",
    progress: bool = False,
) -> SharpPatches:
    r"""The patches of each scan's slices that respond most, and least, to the Laplacian: by :math:`|\nabla^2 P|_F^2`.

    The paper looks at the patches of all scans and leaves out some by eye. Here a rule stands in place of the eye: a patch lies in
    the head, and two patches of one kind and scan have no voxel of a slice plane in common, nor slices closer than `slice_gap`.

    A scan with fewer patches than `per_scan` of both kinds gives those it has, and one that has none is left out, with a warning.

    Args:
        scans: loaded items with `(1, X, Y, Z)` in [0, 1], say a `monai.data.CacheDataset`; each is read once.
        size: voxels along both sides of a patch, 40 in the paper, >= 4.
        per_scan: sharp and smooth patches of each scan; 1 in the paper.
        slice_axis: array axis across the slices, 0 to 2, where the meta data have none under `slice_axis`; None: found from the
            scan as `RandHRPatch` does (see `custom_components.acquisition.slice_axis`).
        stride: try a patch at every so many voxels along both sides; 1, as in the paper, tries them all.
        foreground: intensity above which a voxel is no background.
        head_share: part of a patch's voxels that must be foreground. 0.98, chosen by eye, leaves out the edges of heads and brain
            masks, which are the sharpest of many scans.
        slice_gap: slices between two patches of one kind and scan, >= 1; 2 rules out neighbouring slices.
        key: of the image in an item.
        progress: show a bar.

    Raises:
        ValueError: on arguments out of range, or an image of another shape.
        ScanError: when no scan has a patch.

    Reference:
        V. Cherukuri et al., Deep MR brain image super-resolution using spatio-structural priors, 2020,
        doi:10.1109/TIP.2019.2942510. Section III.
    """
    for name, value, least in (
        ("size", size, 4),
        ("per_scan", per_scan, 1),
        ("stride", stride, 1),
        ("slice_gap", slice_gap, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    if not 0 <= head_share <= 1:
        raise ValueError(f"head_share must be in [0, 1], got {head_share}")
    if slice_axis not in (None, 0, 1, 2):
        raise ValueError(f"slice_axis must be 0, 1, 2 or None, got {slice_axis!r}")
    kept: dict[str, list[torch.Tensor]] = {"sharp": [], "smooth": []}
    records: dict[str, list[Patch]] = {"sharp": [], "smooth": []}
    for n in tqdm(range(len(scans)), "patches", disable=not progress):
        image = scans[n][key]
        meta = image.meta if isinstance(image, MetaTensor) else {}
        file = str(meta.get("filename_or_obj", n))
        slices, axis = _slices(image, meta.get("slice_axis", slice_axis), file)
        picks: dict[str, list[tuple[int, int, int]]] = {"sharp": [], "smooth": []}
        if min(slices.shape[1:]) >= size:
            score = _scores(slices, size, stride, foreground, head_share)
            for kind, wanted in (("sharp", score.clone()), ("smooth", -score)):
                picks[kind] = _picks(wanted, per_scan, size, stride, slice_gap)
        count = min(len(p) for p in picks.values())
        if count < per_scan:
            logger.warning("%s: expected %d sharp and smooth patches in the head, got %d", file, per_scan, count)
        for kind, places in picks.items():
            for k, i, j in places[:count]:
                kept[kind].append(slices[k, i : i + size, j : j + size].float().clone())
                records[kind].append(Patch(kind, file, axis, k, i, j, float(score[k, i // stride, j // stride])))
    if not kept["sharp"]:
        raise ScanError(
            f"expected a patch of {size} x {size} voxels in the head of a scan, got none in {len(scans)} scans"
        )
    sharp, smooth = (torch.stack(kept[kind])[:, None] for kind in ("sharp", "smooth"))
    return SharpPatches(sharp, smooth, records["sharp"] + records["smooth"])


def _labelled(images: torch.Tensor, records: Sequence[Patch]) -> list[LabelledPatch]:
    return [
        LabelledPatch(image[0], f"{scan_stem(record.file)}\nslice {record.slice}", record.response)
        for image, record in zip(images, records, strict=True)
    ]


def write_patches(patches: SharpPatches, output_dir: PathLike) -> None:
    """Write `patches.csv`, a row per patch, and `patches.png`, the sharp patches above the smooth ones of the same scans.

    Below a patch of the picture is its response; see `custom_components.figures.patches.patch_rows`.

    Raises:
        ScanError: when a file cannot be written.
    """
    with atomic_write(Path(output_dir) / "patches.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Patch)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(record) for record in patches.records)
    count = len(patches.sharp)
    rows = {
        "sharp": _labelled(patches.sharp, patches.records[:count]),
        "smooth": _labelled(patches.smooth, patches.records[count:]),
    }
    patch_rows(rows, Path(output_dir) / "patches.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Select the patches of a training split and write them."""
    parser = argparse.ArgumentParser(prog="python -m custom_components.sharp_patches", description=__doc__)
    add_split_options(parser)
    parser.add_argument("--output_dir", required=True, help="folder of patches.csv and patches.png")
    parser.add_argument("--size", type=int, default=40, help="voxels along both sides of a patch")
    parser.add_argument("--per_scan", type=int, default=1, help="sharp and smooth patches of each scan")
    parser.add_argument("--slice_axis", type=int, help="array axis across the slices; default: found from each scan")
    parser.add_argument("--stride", type=int, default=1, help="try a patch at every so many voxels")
    parser.add_argument("--foreground", type=float, default=0.1, help="intensity in [0, 1] above the background")
    parser.add_argument("--head_share", type=float, default=0.98, help="part of a patch that must be foreground")
    parser.add_argument("--slice_gap", type=int, default=2, help="slices between two patches of one kind and scan")
    chosen = vars(parser.parse_args(arguments))
    output_dir = chosen.pop("output_dir")
    split = {name: chosen.pop(name) for name in ("dataset_dir", "where", "seed", "max_subjects")}
    patches = select_patches(training_images(**split), progress=True, **chosen)
    write_patches(patches, output_dir)
    print(f"{len(patches.sharp)} sharp and {len(patches.smooth)} smooth patches: {Path(output_dir) / 'patches.csv'}")


if __name__ == "__main__":
    from custom_components.sharp_patches import main as run  # under its name, by which its errors become one line

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    one_line_errors()
    run()
