"""Read a MetaImage or NRRD file, a DICOM file or the folder of one DICOM series, with ITK."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ITKReader

from ..errors import ScanError
from ..scans import EXPECTED
from .scan_checks import Array, as_float32, check_affine, check_grid, check_kind, reading

POSITION_TOLERANCE = 0.05  # mm that a DICOM slice may lie off the regular grid: positions are rounded decimal text
# Component types that ITK reads but does not wrap for Python: such files are read as float64.
_UNWRAPPED = {"char": "int8", "signed_char": "int8", "long": "int64", "long_long": "int64"}


def _dicom_series(folder: Path) -> list[str]:
    """Files of the one series in a folder, ordered along the slice normal, when they lie on a regular grid."""
    import itk

    generator = itk.GDCMSeriesFileNames.New()
    generator.SetUseSeriesDetails(False)
    generator.SetDirectory(str(folder))
    series = generator.GetSeriesUIDs()
    if not series:
        raise ScanError(f"{folder}: no scan found in it: expected {EXPECTED}")
    if len(series) > 1:
        raise ScanError(f"{folder}: expected one DICOM series per folder, got {len(series)} series")
    files = list(generator.GetFileNames(series[0]))
    grids = []
    for file in files:
        io = itk.GDCMImageIO.New()
        io.SetFileName(file)
        io.ReadImageInformation()
        grids.append([*(io.GetDirection(i) for i in range(3)), [io.GetOrigin(i) for i in range(3)]])
    values = np.array(grids, dtype=np.float64)
    axes, positions = values[:, :3], values[:, 3]
    if not np.allclose(axes, axes[0], atol=1e-3):
        raise ScanError(f"{folder}: expected slices of one orientation, got several")
    if len(files) > 1:
        height = (positions - positions[0]) @ axes[0, 2]
        off = positions - positions[0] - np.linspace(0, height[-1], len(files))[:, None] * axes[0, 2]
        worst = float(np.linalg.norm(off, axis=1).max())
        if not height[-1] > 0 or worst > POSITION_TOLERANCE:
            gaps = np.diff(height)
            raise ScanError(
                f"{folder}: expected evenly spaced slices along their normal, got gaps from {gaps.min():.3g} to "
                f"{gaps.max():.3g} mm, a slice {worst:.3g} mm off"
            )
    return files


def _slice_thickness(tags: Any) -> float | None:
    """Slice thickness (0018,0050) in mm of a DICOM file by its fields, as it stands there; None where there is no number."""
    with contextlib.suppress(ValueError):
        thickness = float(tags["0018|0050"]) if tags.HasKey("0018|0050") else float("nan")
        return thickness if np.isfinite(thickness) else None
    return None


def _keep_thickness(tags: Any, affine: Array) -> list[str]:
    """Give a single DICOM slice its thickness in mm, in place, where it does not tell the spacing of slices.

    GDCM takes 1 mm then, though the thickness (0018,0050) is a required field of MR images and the spacing (0018,0088) is not.
    """
    if tags.HasKey("0018|0088") or not np.isclose(np.linalg.norm(affine[:3, 2]), 1):
        return []
    thickness = _slice_thickness(tags) or 0.0
    if thickness > 0:
        affine[:3, 2] *= thickness
        return []
    return ["no slice thickness in the file, 1 mm assumed"]


def read_itk(path: Path, spatial_dims: int) -> tuple[Array, Array, dict[str, Any], list[str]]:
    """Read what ITK reads: one file, or the one DICOM series in a folder.

    Args:
        path: MetaImage or NRRD file, DICOM file, or the folder of one DICOM series.
        spatial_dims: of the model: 3 asks for at least 2 voxels along each axis, 2 lets single slices pass.

    Returns:
        Voxels `(X, Y, Z)`, float32; affine `(4, 4)`, float64, voxels to RAS+ mm; fields for `meta`; warnings.

    Raises:
        ScanError: when the scan cannot be used, in one line.
    """
    import itk

    shown = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        with reading(path, EXPECTED, "a file that does not read as an image"):
            files = _dicom_series(path) if path.is_dir() else [str(path)]
            header = itk.ImageIOFactory.CreateImageIO(files[0], itk.CommonEnums.IOFileMode_ReadMode)
            header.SetFileName(files[0])
            header.ReadImageInformation()
        rank = header.GetNumberOfDimensions()
        shape = [header.GetDimensions(i) for i in range(rank)]
        if len(files) > 1:
            shape[2:] = [len(files)]
        pixel = header.GetPixelTypeAsString(header.GetPixelType())
        check_kind(path, "c" if "complex" in pixel else "f", header.GetNumberOfComponents())
        check_grid(path, shape, [header.GetSpacing(i) for i in range(min(rank, 3))], spatial_dims)
        component = header.GetComponentTypeAsString(header.GetComponentType())
        with reading(path, "readable voxels and an invertible affine", "a file that is cut short or damaged"):
            img = itk.imread(files if len(files) > 1 else files[0], itk.D if component in _UNWRAPPED else None)
            stored, itk_meta = ITKReader().get_data(img)
            voxels = as_float32(stored)  # a copy: what came is a view of memory that ITK owns
    finally:
        itk.Object.SetGlobalWarningDisplay(shown)
    affine = np.eye(4)
    part = np.asarray(itk_meta["affine"], dtype=np.float64)
    r = part.shape[0] - 1
    affine[:r, :r], affine[:r, 3] = part[:r, :r], part[:r, r]
    check_affine(path, affine)
    dicom = header.GetNameOfClass() == "GDCMImageIO"
    tags = header.GetMetaDataDictionary()  # of the first file: ITK gives none with the image of a series
    warnings = _keep_thickness(tags, affine) if dicom and shape[2:] == [1] else []
    dtype = _UNWRAPPED.get(component, stored.dtype.name)
    if dicom and dtype == "float64":
        dtype = "float32"  # integers with a rescale slope
    meta: dict[str, Any] = {"scan_dtype": dtype, "sform_code": 1, "qform_code": 1, "descrip": "", "time_unit": 0}
    thickness = _slice_thickness(tags) if dicom else None
    if thickness is not None:
        meta["slice_thickness"] = thickness
    return voxels.reshape([*shape, 1, 1][:3]), affine, meta, warnings
