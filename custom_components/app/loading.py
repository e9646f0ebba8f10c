"""A scan, its result and its expected error from files to where slices can be read from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..figures import head_position
from ..figures.planes import SAMPLES, affine_of, shown_planes
from ..files import PathLike
from ..tensors import plain
from ..transforms.load import load_scan
from .maps import colour_limit
from .views import ERROR, Comparison


def compare(scan: PathLike, result: PathLike, folder: PathLike, uncertainty: PathLike | None = None) -> Comparison:
    """Put a scan, its result of the same field of view, and its expected error where slices can be read from.

    Raises:
        ScanError: when one of them cannot be read.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    sr, _ = load_scan(result, 2)
    np.save(target / "sr.npy", plain(sr)[0].numpy())
    middle = head_position(sr)
    del sr
    largest = None if uncertainty is None else _put_error(uncertainty, target)
    image, _ = load_scan(scan, 2)
    voxels = plain(image)[0].numpy()
    np.save(target / "input.npy", voxels)
    planes = tuple(reversed(shown_planes(image)))
    return Comparison(target, affine_of(image), planes, _window(voxels), middle, largest)


def _put_error(path: PathLike, folder: Path) -> float:
    """Put an expected error where slices can be read from; the value that is shown brightest."""
    voxels = plain(load_scan(path, 2)[0])[0].numpy()
    np.save(folder / f"{ERROR}.npy", voxels)
    return colour_limit(_coarse(voxels))


def _coarse(voxels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return voxels[tuple(slice(None, None, -(-n // SAMPLES)) for n in voxels.shape)]


def _window(voxels: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Percentiles 0.5 and 99.8, or all values where these are one; black is 0 where that is near."""
    coarse = _coarse(voxels)
    dark, bright = (float(np.percentile(coarse, q)) for q in (0.5, 99.8))
    if bright <= dark:
        dark, bright = float(voxels.min()), float(voxels.max())
    return (0.0 if abs(dark) < 0.01 * bright else dark), bright
