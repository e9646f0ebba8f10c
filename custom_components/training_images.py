"""The training images of a command that learns from them: its options that choose scans, and the loading."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence

from monai.data import Dataset
from monai.transforms import Compose

from .files import PathLike
from .splits import training_scans
from .transforms import LoadScand, RobustScaled


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose the scans: the arguments of `training_images`, by name."""
    parser.add_argument("--dataset_dir", required=True, help="folder of HR scans, with or without dataset.json")
    parser.add_argument("--where", type=ast.literal_eval, help="wanted values, say \"{'population': 'adult'}\"")
    parser.add_argument("--seed", type=int, default=0, help="of the split where there is no dataset.json")
    parser.add_argument("--max_subjects", type=int, help="only the first subjects of the split")


def training_images(
    dataset_dir: PathLike,
    where: Mapping[str, str | Sequence[str]] | None = None,
    seed: int = 0,
    max_subjects: int | None = None,
) -> Dataset:
    """The scans of the training split, each loaded when it is asked for: items with `image` `(1, X, Y, Z)` in [0, 1].

    The scan's 0 stays 0 and its 99.9th percentile becomes 1; what lies beyond is clipped.

    Args:
        dataset_dir: folder of scans, with or without `dataset.json`.
        where: wanted values per field.
        seed: of the split where there is no `dataset.json`.
        max_subjects: keep the first subjects only.

    Raises:
        ScanError: as `custom_components.splits.training_scans`, and of an item, when its file is no scan.
    """
    scans = training_scans(dataset_dir, "training", seed, where=where, max_subjects=max_subjects)
    return Dataset(scans, Compose([LoadScand("image", spatial_dims=2), RobustScaled("image", lower=None, clip=True)]))
