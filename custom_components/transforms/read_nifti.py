"""Read a NIfTI file with nibabel."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np

from ..files import sidecar
from .scan_checks import Array, as_float32, check_affine, check_grid, check_kind, reading

_MM_PER_UNIT = {1: 1000.0, 3: 1e-3}  # NIfTI codes for metre and micrometre


@contextlib.contextmanager
def _quiet_nibabel() -> Iterator[None]:
    """Keep nibabel's notes on headers that it mends out of the log."""
    notes = nib.imageglobals.logger
    before, notes.disabled = notes.disabled, True
    try:
        yield
    finally:
        notes.disabled = before


def _sidecar_thickness(path: Path) -> tuple[float | None, list[str]]:
    """Slice thickness in mm by the BIDS file `<stem>.json` beside a scan, where it names one, and what is wrong with that file."""
    beside = sidecar(path)
    if beside is None:
        return None, []
    try:
        fields = json.loads(beside.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None, [f"{beside.name} beside the scan does not read as JSON: not used"]
    given = fields.get("SliceThickness") if isinstance(fields, dict) else None
    if given is None:
        return None, []
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not abs(given) < 1e6:  # nor NaN
        return None, [f"SliceThickness in {beside.name} beside the scan is not a number: not used"]
    return float(given), []


def read_nifti(path: Path, spatial_dims: int) -> tuple[Array, Array, dict[str, Any], list[str]]:
    """Read a NIfTI file; the sform counts where it has one, lengths come in mm.

    NIfTI has no field for the slice thickness: it comes from the BIDS file beside the scan, where there is one.

    Args:
        path: NIfTI file.
        spatial_dims: of the model: 3 asks for at least 2 voxels along each axis, 2 lets single slices pass.

    Returns:
        Voxels `(X, Y, Z)`, float32; affine `(4, 4)`, float64, voxels to RAS+ mm; fields for `meta`; warnings.

    Raises:
        ScanError: when the scan cannot be used, in one line.
    """
    # Read by nibabel itself: MONAI's NibabelReader puts the qform in place of a sform that disagrees with pixdim, and
    # nibabel on loading mends zero and negative voxel sizes, so that they are looked up in the header as it stands.
    with reading(path, "a NIfTI image", "a file that does not read as one"), _quiet_nibabel():
        loaded = nib.load(path)
        if not isinstance(loaded, nib.Nifti1Pair):  # Nifti2 derives from it
            raise TypeError(type(loaded).__name__)
        img: Any = loaded
        with nib.openers.ImageOpener(str(path)) as file:
            raw = type(img.header).from_fileobj(file, check=False)
    header = img.header
    check_kind(path, "V" if header.get_data_dtype().fields else header.get_data_dtype().kind)
    # axes that the file does not have are unit; their voxel size may stand at 0
    spacing = [float(v) for v in raw["pixdim"][1 : 1 + min(len(img.shape), 3)]]
    shape = check_grid(path, img.shape, spacing, spatial_dims)
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
    check_affine(path, affine)
    with (
        reading(path, f"{np.prod(shape):d} voxels", "a file that is cut short or damaged"),
        _quiet_nibabel(),
        nib.openers.ImageOpener(str(path)) as file,
    ):
        holder = nib.fileholders.FileHolder(fileobj=cast(Any, file))
        opened = type(img).from_file_map({"image": holder})
        voxels = as_float32(opened.get_fdata(caching="unchanged", dtype=np.float32)).reshape(shape)
        while file.read(2**20):  # to the end, where the checksum of gzip is
            pass
    scaled = (img.dataobj.slope, img.dataobj.inter) != (1, 0)
    meta: dict[str, Any] = {
        "scan_dtype": "float32" if scaled else header.get_data_dtype().newbyteorder("=").name,
        "sform_code": sform_code,
        "qform_code": qform_code,
        "descrip": bytes(header["descrip"].item()).decode("latin-1"),
        "time_unit": int(header["xyzt_units"]) & 0x38,
    }
    thickness, odd = _sidecar_thickness(path)
    if thickness is not None:
        meta["slice_thickness"] = thickness
    return voxels, affine, meta, [*warnings, *odd]
