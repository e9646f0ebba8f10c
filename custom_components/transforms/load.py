"""Load a scan of any common format onto one form, or say in one line what is wrong with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..errors import ScanError
from ..files import PathLike
from ..scans import EXPECTED, NIFTI_SUFFIXES, PICTURE_SUFFIXES
from .picture import read_picture
from .read_itk import read_itk
from .read_nifti import read_nifti
from .scan_checks import check_voxels

logger = logging.getLogger(__name__)


def load_scan(path: PathLike, spatial_dims: int = 3) -> tuple[MetaTensor, list[str]]:
    """Load a scan and list what is odd about it.

    Args:
        path: NIfTI, MetaImage or NRRD file, the folder of one DICOM series, or one slice: such a file of one, one DICOM file,
            or a grey picture (PNG, JPEG, TIFF, BMP).
        spatial_dims: of the model: 3 asks for at least 2 voxels along each axis, 2 lets single slices pass.

    Returns:
        The image `(1, X, Y, Z)`, float32, axes as in the file, with its affine (float64 `(4, 4)`, voxels to RAS+ mm)
        and in `meta` `filename_or_obj`, `scan_dtype` (of the voxels as stored; float32 where the file scales them),
        `sform_code`, `qform_code`, `descrip`, `time_unit`, `slice_thickness` (mm) only where the file says it (DICOM, or the BIDS
        file beside a NIfTI file), and `picture` (true) when it came as one; and the warnings, one line each.

    Raises:
        ScanError: when the scan cannot be used, in one line: the file, what was expected, what came.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise ScanError(f"{source}: expected a scan, got: no such file or folder")
    if source.is_file() and not source.stat().st_size:
        raise ScanError(f"{source}: expected {EXPECTED}, got an empty file")
    name = source.name.lower() if source.is_file() else ""
    read = (
        read_nifti if name.endswith(NIFTI_SUFFIXES) else read_picture if name.endswith(PICTURE_SUFFIXES) else read_itk
    )
    voxels, affine, meta, warnings = read(source, spatial_dims)
    image = torch.from_numpy(voxels[None])
    check_voxels(source, image)
    return MetaTensor(image, affine=torch.from_numpy(affine), meta={"filename_or_obj": str(path), **meta}), warnings


class LoadScan(Transform):
    """Load a scan as `load_scan` does, with its warnings in the log.

    Args:
        spatial_dims: of the model, 2 or 3; 2 lets single slices pass.

    Raises:
        ValueError: when `spatial_dims` is neither.
    """

    def __init__(self, spatial_dims: int = 3) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        self.spatial_dims = spatial_dims

    def __call__(self, path: str | os.PathLike[str]) -> MetaTensor:
        """Load the scan at a path; see `load_scan`."""
        image, warnings = load_scan(path, self.spatial_dims)
        for warning in warnings:
            logger.warning("%s: %s", path, warning)
        return image


class LoadScand(MapTransform):
    """Dictionary version of `LoadScan`; the warnings are added to the item's list under `warnings`.

    Args:
        keys: keys of the paths.
        spatial_dims: of the model, 2 or 3; 2 lets single slices pass.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(self, keys: KeysCollection, spatial_dims: int = 3, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadScan(spatial_dims)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        item["warnings"] = list(item.get("warnings", []))
        for key in self.key_iterator(item):
            image, warnings = load_scan(item[key], self.load.spatial_dims)
            item[key] = image
            item["warnings"] += warnings
        return item
