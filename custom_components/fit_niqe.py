"""`python -m custom_components.fit_niqe`: fit the model of good slices, by which `NIQE` judges, to training scans."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from monai.data import Dataset, MetaTensor
from tqdm import tqdm

from .acquisition import slice_axis
from .errors import one_line_errors
from .files import atomic_write
from .metrics import Blocks, NaturalModel
from .metrics.no_reference import slice_stacks
from .tensors import plain
from .training_images import add_split_options, training_images

logger = logging.getLogger(__name__)


def scan_slices(
    scans: Sequence[Mapping[Any, Any]] | Dataset,
    size: int,
    all_axes: bool = False,
    every: int = 1,
    progress: bool = False,
) -> Iterator[torch.Tensor]:
    """Every so many slices of each scan in turn, a stack `(S, H, W)` per scan or per orientation.

    Stacks whose slices are smaller than a block are left out, with a warning.

    Args:
        scans: loaded items with `image` `(1, X, Y, Z)`; each is read once.
        size: voxels along both sides of a block.
        all_axes: take slices of all three orientations, not across the scan's own slice axis alone.
        every: take every so many slices.
        progress: show a bar.
    """
    for n in tqdm(range(len(scans)), "scans", disable=not progress):
        image = scans[n]["image"]
        affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
        volume = plain(image)[0]
        for stack in slice_stacks(volume, None if all_axes else slice_axis(volume.shape, affine)):
            if min(stack.shape[1:]) < size:
                name = image.meta.get("filename_or_obj", n) if isinstance(image, MetaTensor) else n
                logger.warning(
                    "%s: expected slices of at least %d x %d voxels, got %s", name, size, size, tuple(stack.shape[1:])
                )
                continue
            yield stack[::every]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit to a training split and write the model."""
    parser = argparse.ArgumentParser(prog="python -m custom_components.fit_niqe", description=__doc__)
    add_split_options(parser)
    parser.add_argument("--output", required=True, help="file of the model, say niqe.pt")
    parser.add_argument("--size", type=int, default=32, help="voxels along both sides of a block")
    parser.add_argument("--stride", type=int, help="voxels from a block to the next; default: half the size")
    parser.add_argument("--foreground", type=float, default=0.1, help="intensity in [0, 1] above the background")
    parser.add_argument("--min_share", type=float, default=0.75, help="part of a block that must be foreground")
    parser.add_argument("--sharpness", type=float, default=0.75, help="least, in parts of a slice's sharpest block")
    parser.add_argument("--shrinkage", type=float, default=0.01, help="of the covariance, towards its diagonal")
    parser.add_argument("--every", type=int, default=1, help="take every so many slices")
    parser.add_argument("--all_axes", action="store_true", help="slices of all three orientations, for NIQE(axis=None)")
    chosen = parser.parse_args(arguments)
    if chosen.every < 1:
        parser.error(f"--every must be >= 1, got {chosen.every}")
    scans = training_images(chosen.dataset_dir, chosen.where, chosen.seed, chosen.max_subjects)
    blocks = Blocks(chosen.size, chosen.stride, chosen.foreground, chosen.min_share)
    slices = scan_slices(scans, blocks.size, chosen.all_axes, chosen.every, progress=True)
    model = NaturalModel.fit(slices, blocks, chosen.sharpness, chosen.shrinkage)
    with atomic_write(chosen.output) as partial:
        torch.save(model.state_dict(), partial)
    print(f"model of {model.count} blocks of {len(scans)} scans: {chosen.output}")


if __name__ == "__main__":
    from custom_components.fit_niqe import main as run  # under its name, by which its errors become one line

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    one_line_errors()
    run()
