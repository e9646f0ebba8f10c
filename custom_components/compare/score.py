"""The truth, the LR scan that each method gets, and how a result is scored against the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.data import MetaTensor
from scipy import ndimage

from ..errors import ScanError
from ..files import PathLike
from ..metrics import VolumeSSIM
from ..transforms import Acquire, LoadScan, RobustScale, SaveScan
from ..transforms.acquire import per_axis
from .results import factor_values
from .study import Study

Array = npt.NDArray[Any]
BORDER = VolumeSSIM.WINDOW // 2  # voxels at the ends of an axis around which a window of the SSIM leaves the image


def round_trip_size(n: int, factor: float) -> int:
    """Largest size `n' <= n` of an axis to which a scale factor leads back: `round(round(n' / f) f) = n'`; 0 if there is none.

    For a whole factor it is a multiple, as in the papers.
    """
    sizes = (k for k in range(n, 0, -1) if round(max(round(k / factor), 1) * factor) == k)
    return next(sizes, 0)


def head_mask(truth: Array) -> Array:
    """Where the head is: the largest bright piece of a scan in [0, 1], its holes filled, in the slices along each axis.

    Bright is what is not 0 and, after a Gaussian of 1 voxel, lies above half of Otsu's threshold of the whole array. The half keeps
    dark tissue and CSF; the noise of a background stays below it. So one rule serves whole heads, and skull-stripped and fetal
    brains on a background of zeros; what is dark and enclosed in a slice (ventricles, skull, sinuses) counts as head.

    Args:
        truth: `(X, Y, Z)`.

    Returns:
        bool `(X, Y, Z)`.

    Reference:
        N. Otsu, A threshold selection method from gray-level histograms, 1979, doi:10.1109/TSMC.1979.4310076.
    """
    from skimage.filters import threshold_otsu

    smooth = ndimage.gaussian_filter(truth.astype(np.float32), 1)
    otsu: Callable[[Array], float] = threshold_otsu
    pieces, count = ndimage.label((smooth > 0.5 * otsu(smooth)) & (truth > 0))
    if not count:
        return np.zeros(truth.shape, bool)
    largest: Array = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    head: Array = largest.copy()
    for axis in range(truth.ndim):
        for own, filled in zip(np.moveaxis(largest, axis, 0), np.moveaxis(head, axis, 0), strict=True):
            filled |= ndimage.binary_fill_holes(own)  # an enclosed cavity of the volume is enclosed in its slices too
    return head


def prepare_scan(study: Study, factor: str, path: PathLike, scan: str) -> None:
    """Write the truth, the LR scan and the head mask of a HR scan.

    The HR scan is scaled as under `load_high_resolution` in the bundles' `train.json`, cropped to what a result will have.

    Raises:
        ScanError: when the scan cannot be used, is too small for the scale factor, or a file cannot be written.
    """
    hr = RobustScale(lower=None, clip=True)(LoadScan()(path))
    factors = per_axis(factor_values(factor), 3)
    shape = [round_trip_size(n, f) for n, f in zip(hr.shape[1:], factors, strict=True)]
    if min(shape) < VolumeSSIM.WINDOW:
        raise ScanError(
            f"{path}: expected at least {VolumeSSIM.WINDOW} voxels along each axis for the SSIM, got {tuple(shape)} at scale "
            f"factor {factor}"
        )
    x, y, z = (slice(0, n) for n in shape)
    hr = MetaTensor(hr.as_tensor()[:, x, y, z], meta=dict(hr.meta))
    lr, truth = Acquire(factors, study.protocol, study.noise_std, study.seed)(hr)
    head = MetaTensor(torch.from_numpy(head_mask(truth[0].numpy()))[None].float(), meta=dict(truth.meta))
    for place, volume, dtype in (
        (study.truth_path(factor, scan), truth, "float32"),
        (study.head_path(factor, scan), head, "uint8"),
        (study.lowres_path(factor, scan), lr, "float32"),
    ):
        SaveScan(place.parent, postfix="", dtype=dtype)(volume, stem=scan)


def scores(image: Array, truth: Array, head: Array) -> dict[str, float]:
    """PSNR, SSIM and RMSE over the whole array and inside the head, by the names that `Result` has for them.

    Negative values count as 0, as in the authors' protocol. `PSNR = -20 log10 RMSE` in dB (range 1); the SSIM is
    `custom_components.metrics.VolumeSSIM`, in the head the mean of its map over the mask. Without a voxel in the
    mask the values there are NaN.

    Args:
        image: result `(X, Y, Z)`.
        truth: in [0, 1], of the same shape.
        head: mask, bool.
    """
    from skimage.metrics import structural_similarity

    image, truth = np.clip(image, 0, None, dtype=np.float32), truth.astype(np.float32)
    squares = (image.astype(np.float64) - truth) ** 2
    similarity: Callable[..., tuple[float, Array]] = structural_similarity
    ssim, windows = similarity(truth, image, data_range=1.0, full=True)
    inner = tuple(slice(BORDER, n - BORDER) for n in truth.shape)  # as the mean over the whole array
    found = {"ssim": float(ssim), "ssim_head": _mean(windows[inner][head[inner]])}
    for part, values in (("", squares), ("_head", squares[head])):
        mean = _mean(values)
        found["rmse" + part] = math.sqrt(mean)
        found["psnr" + part] = -10 * math.log10(mean) if mean > 0 else math.nan if math.isnan(mean) else math.inf
    return found


def _mean(values: Array) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


def _voxels(path: PathLike) -> Array:
    image: Any = nib.load(path)  # not by LoadScan, which refuses a constant mask
    return np.asarray(image.dataobj, np.float32)


def score_file(study: Study, factor: str, method: str, scan: str) -> dict[str, float]:
    """Scores of a result on disk; see `scores`.

    Raises:
        ScanError: when a file cannot be read, or the result is not on the grid of the truth.
    """
    path = study.result_path(factor, method, scan)
    own = (study.truth_path(factor, scan), study.head_path(factor, scan))
    truth, head = (_voxels(p) for p in own)
    image = LoadScan()(path)[0]
    if image.shape != truth.shape:
        raise ScanError(f"{path}: expected the truth's {tuple(truth.shape)} voxels, got {tuple(image.shape)}")
    return scores(image.numpy(), truth, head > 0)
