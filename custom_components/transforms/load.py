"""Load a scan of any common format onto one form, or say in one line what is wrong with it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import ITKReader, MetaTensor
from monai.transforms import MapTransform, Transform

from ..scans import EXPECTED, NIFTI_SUFFIXES, PathLike, ScanError, one_line

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
POSITION_TOLERANCE = 0.05  # mm that a DICOM slice may lie off the regular grid: positions are rounded decimal text
# Component types that ITK reads but does not wrap for Python: such files are read as float64.
_UNWRAPPED = {"char": "int8", "signed_char": "int8", "long": "int64", "long_long": "int64"}
_MM_PER_UNIT = {1: 1000.0, 3: 1e-3}  # NIfTI codes for metre and micrometre


@contextlib.contextmanager
def _reading(path: Path, expected: str, got: str) -> Iterator[None]:
    """Turn whatever a reader raises on a foreign or damaged file into one line of ours."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 becomes infinite and is refused as such
            yield
    except ScanError:
        raise
    except MemoryError as error:
        raise ScanError(f"{path}: expected a scan that fits in memory, got: out of memory") from error
    except PermissionError as error:
        raise ScanError(f"{path}: expected a readable file, got: {one_line(error)}") from error
    except Exception as error:  # readers raise nearly every type on damaged input
        raise ScanError(f"{path}: expected {expected}, got {got}") from error


def _check_grid(path: Path, shape: Sequence[int], spacing: Sequence[float], spatial_dims: int) -> tuple[int, ...]:
    """The three spatial axes of a file's shape, when it is one volume (or slice) with a voxel size."""
    size = list(shape)
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) > 3:
        raise ScanError(f"{path}: expected one volume with 3 axes, got shape {tuple(shape)}")
    size += [1] * (3 - len(size))
    if min(size) < 1 or sum(n < 2 for n in size) > 3 - spatial_dims:
        wanted = "at least 2 voxels along each of 3 axes" if spatial_dims == 3 else "a slice or a volume"
        what = "a single slice" if sum(n == 1 for n in size) == 1 and min(size) == 1 else "an image"
        raise ScanError(f"{path}: expected {wanted}, got {what} of shape {tuple(shape)}")
    if not all(np.isfinite(s) and s > 0 for s in spacing[:3]):
        raise ScanError(f"{path}: expected voxel sizes above 0 mm, got {' x '.join(f'{s:g}' for s in spacing[:3])}")
    return tuple(size)


def _check_affine(path: Path, affine: Array) -> None:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    # the volume of a voxel against that of a box of its sides: 1 where the axes are at right angles, 0 in one plane
    if not np.isfinite(affine).all() or not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        rows = "; ".join(" ".join(f"{v:g}" for v in row) for row in affine[:3])
        raise ScanError(f"{path}: expected an invertible affine from voxels to mm, got [{rows}]")


def _check_kind(path: Path, kind: str, components: int = 1) -> None:
    if components != 1 or kind in "Vc":
        what = {"c": "complex values"}.get(kind, f"{components} values per voxel" if components != 1 else "RGB colours")
        raise ScanError(f"{path}: expected one real value per voxel, got {what}")


def _float32(voxels: Array) -> Array:
    return np.array(voxels, dtype=np.float32, order="C")


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel's notes on headers that it mends out of the log."""
    notes = nib.imageglobals.logger
    before, notes.disabled = notes.disabled, True
    try:
        yield
    finally:
        notes.disabled = before


def _check_voxels(path: Path, image: torch.Tensor) -> None:
    low, high = (float(v) for v in torch.aminmax(image))
    if not np.isfinite(low + high):
        count = int(image.numel() - torch.isfinite(image).sum())
        raise ScanError(f"{path}: expected finite values, got NaN or infinity in {count} of {image.numel()} voxels")
    if low == high:
        raise ScanError(f"{path}: expected an image with contrast, got the constant {low:g}")


def _read_nifti(path: Path, spatial_dims: int) -> tuple[Array, Array, dict[str, Any], list[str]]:
    # Read by nibabel itself: MONAI's NibabelReader puts the qform in place of a sform that disagrees with pixdim, and
    # nibabel on loading mends zero and negative voxel sizes, so that they are looked up in the header as it stands.
    with _reading(path, "a NIfTI image", "a file that does not read as one"), _quiet_nibabel():
        loaded = nib.load(path)
        if not isinstance(loaded, nib.Nifti1Pair):  # Nifti2 derives from it
            raise TypeError(type(loaded).__name__)
        img: Any = loaded
        with nib.openers.ImageOpener(str(path)) as file:
            raw = type(img.header).from_fileobj(file, check=False)
    header = img.header
    _check_kind(path, "V" if header.get_data_dtype().fields else header.get_data_dtype().kind)
    # axes that the file does not have are unit; their voxel size may stand at 0
    spacing = [float(v) for v in raw["pixdim"][1 : 1 + min(len(img.shape), 3)]]
    shape = _check_grid(path, img.shape, spacing, spatial_dims)
    affine = np.array(img.affine, dtype=np.float64)
    warnings = []
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if not sform_code and not qform_code:
        warnings.append("no sform or qform in the header: position and orientation are a guess from the voxel size")
    elif sform_code and qform_code and not np.allclose(img.get_qform(), affine, atol=0.01):
        warnings.append("sform and qform of the header disagree: the sform is used")
        qform_code = sform_code
    unit = int(header["xyzt_units"]) & 7
    if unit in _MM_PER_UNIT:
        affine[:3] *= _MM_PER_UNIT[unit]
        warnings.append(f"the header gives lengths in {'metres' if unit == 1 else 'micrometres'}: converted to mm")
    _check_affine(path, affine)
    with _reading(path, f"{np.prod(shape):d} voxels", "a file that is cut short or damaged"):
        voxels = _float32(img.get_fdata(caching="unchanged", dtype=np.float32)).reshape(shape)
    scaled = (img.dataobj.slope, img.dataobj.inter) != (1, 0)
    meta = {
        "scan_dtype": "float32" if scaled else header.get_data_dtype().newbyteorder("=").name,
        "sform_code": sform_code,
        "qform_code": qform_code,
        "descrip": bytes(header["descrip"].item()).decode("latin-1"),
        "time_unit": int(header["xyzt_units"]) & 0x38,
    }
    return voxels, affine, meta, warnings


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


def _read_itk(path: Path, spatial_dims: int) -> tuple[Array, Array, dict[str, Any], list[str]]:
    import itk

    shown = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        with _reading(path, EXPECTED, "a file that does not read as an image"):
            files = _dicom_series(path) if path.is_dir() else [str(path)]
            header = itk.ImageIOFactory.CreateImageIO(files[0], itk.CommonEnums.IOFileMode_ReadMode)
            header.SetFileName(files[0])
            header.ReadImageInformation()
        rank = header.GetNumberOfDimensions()
        shape = [header.GetDimensions(i) for i in range(rank)]
        if len(files) > 1:
            shape[2:] = [len(files)]
        pixel = header.GetPixelTypeAsString(header.GetPixelType())
        _check_kind(path, "c" if "complex" in pixel else "f", header.GetNumberOfComponents())
        _check_grid(path, shape, [header.GetSpacing(i) for i in range(min(rank, 3))], spatial_dims)
        component = header.GetComponentTypeAsString(header.GetComponentType())
        with _reading(path, "readable voxels and an invertible affine", "a file that is cut short or damaged"):
            img = itk.imread(files if len(files) > 1 else files[0], itk.D if component in _UNWRAPPED else None)
            stored, itk_meta = ITKReader().get_data(img)
            voxels = _float32(stored)  # a copy: what came is a view of memory that ITK owns
    finally:
        itk.Object.SetGlobalWarningDisplay(shown)
    affine = np.eye(4)
    part = np.asarray(itk_meta["affine"], dtype=np.float64)
    r = part.shape[0] - 1
    affine[:r, :r], affine[:r, 3] = part[:r, :r], part[:r, r]
    _check_affine(path, affine)
    dtype = _UNWRAPPED.get(component, stored.dtype.name)
    if "GDCM" in type(header).__name__ and dtype == "float64":
        dtype = "float32"  # integers with a rescale slope
    meta = {"scan_dtype": dtype, "sform_code": 1, "qform_code": 1, "descrip": "", "time_unit": 0}
    return voxels.reshape([*shape, 1, 1][:3]), affine, meta, []


def load_scan(path: PathLike, spatial_dims: int = 3) -> tuple[MetaTensor, list[str]]:
    """Load a scan and list what is odd about it.

    Args:
        path: NIfTI, MetaImage or NRRD file, or the folder of one DICOM series.
        spatial_dims: of the model: 3 asks for at least 2 voxels along each axis, 2 lets single slices pass.

    Returns:
        The image `(1, X, Y, Z)`, float32, axes as in the file, with its affine (float64 `(4, 4)`, voxels to RAS+ mm)
        and in `meta` `filename_or_obj`, `scan_dtype` (of the voxels as stored; float32 where the file scales them),
        `sform_code`, `qform_code`, `descrip`, `time_unit`; and the warnings, one line each.

    Raises:
        ScanError: when the scan cannot be used, in one line: the file, what was expected, what came.
    """
    source = Path(path).expanduser()
    if not source.exists():
        raise ScanError(f"{source}: expected a scan, got: no such file or folder")
    if source.is_file() and not source.stat().st_size:
        raise ScanError(f"{source}: expected {EXPECTED}, got an empty file")
    nifti = source.is_file() and source.name.lower().endswith(NIFTI_SUFFIXES)
    voxels, affine, meta, warnings = (_read_nifti if nifti else _read_itk)(source, spatial_dims)
    image = torch.from_numpy(voxels[None])
    _check_voxels(source, image)
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
