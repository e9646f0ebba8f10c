"""Save a result as NIfTI, or a picture as PNG: right place, the scan's voxel type, and whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from ..batches.fingerprint import result_state
from ..errors import ScanError
from ..files import PathLike, atomic_write
from ..scans import scan_stem
from .picture import PNG_DTYPES, write_png

NIFTI_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
QFORM_TOLERANCE = 0.01  # mm at the corners of the grid: the geometry contract
_BLOCK = 16  # slices converted at once: a small working copy, and whole cache lines of a C-ordered tensor


def nifti_dtype(dtype: str, low: float, high: float) -> np.dtype[Any]:
    """Voxel type to save as: the scan's own where common NIfTI readers know it, else the nearest that they know.

    64-bit integers become int32 where the values `low` to `high` fit, else float32 (the network computes in it); bool
    becomes uint8, half precision float32, longer floats float64.
    """
    if dtype in NIFTI_DTYPES:
        return np.dtype(dtype)
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        limits = np.iinfo(np.int32)
        return np.dtype("int32" if limits.min <= low and high <= limits.max else "float32")
    return np.dtype("uint8" if kind.kind == "b" else "float64" if kind.itemsize > 8 else "float32")


def as_stored(volume: torch.Tensor, dtype: str) -> npt.NDArray[Any]:
    """Voxels `(*spatial)` as NIfTI stores them (first axis fastest), integers rounded and clipped to their range.

    Works in blocks of slices: beside the input there is only the result.
    """
    low, high = (float(v) for v in torch.aminmax(volume))
    kind = nifti_dtype(dtype, low, high)
    out = np.empty(tuple(volume.shape), dtype=kind, order="F")
    for start in range(0, volume.shape[-1], _BLOCK):
        # float64, as float32 does not hold the largest 32-bit integers
        block = volume[..., start : start + _BLOCK].to("cpu", torch.float64).numpy()
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            block = np.clip(np.rint(block), limits.min, limits.max)
        out[..., start : start + _BLOCK] = block
    return out


def nifti_image(volume: npt.NDArray[Any], affine: npt.NDArray[Any], meta: Mapping[str, Any]) -> Any:
    """NIfTI image in mm whose sform, and qform where it can, are the affine.

    A qform holds rotations, flips and voxel sizes only: where it would put a corner of the grid more than 0.01 mm from
    where the affine puts it (a sheared affine), its code is 0, "not there", and the sform alone counts. Codes are those
    of the scan, 1 (scanner) where it has none.
    """
    sform_code = int(meta.get("sform_code", 0)) or int(meta.get("qform_code", 0)) or 1
    qform_code = int(meta.get("qform_code", 0)) or sform_code
    image: Any = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, sform_code)
    image.set_qform(affine, qform_code, strip_shears=True)
    ends = [(0, n - 1) for n in volume.shape]
    corners = np.array(np.meshgrid(*ends, [1])).reshape(4, -1)
    if np.abs((image.get_qform() - affine) @ corners).max() > QFORM_TOLERANCE:
        image.set_qform(None, 0)
    header = image.header
    header["xyzt_units"] = 2 + int(meta.get("time_unit", 0))  # 2: mm
    header["descrip"] = str(meta.get("descrip", "")).encode("latin-1", "replace")[:80]
    return image


class SaveScan(Transform):
    """Save a volume as `<output_dir>/<stem>_<postfix>.nii.gz`, in one step under its final name.

    A slice that came as a picture becomes a picture, `<stem>_<postfix>.png`, of 8 or 16 bits. It becomes NIfTI as well when
    another voxel type is asked for, or is its own (a TIFF of floats).

    Args:
        output_dir: folder of the results; it is made where it is missing.
        postfix: of the file name; empty for none.
        dtype: voxel type; None takes the scan's own (`scan_dtype` in the meta data), see `nifti_dtype`.
        inputs: files that must never be written over, beside the one that the volume says it comes from: the scans of
            the run, when the results may go to their folder.

    Raises:
        ValueError: when NIfTI readers do not know the `dtype`.
        ScanError: on call, in one line, when the file cannot be written, is an input, or the volume is not finite.
    """

    def __init__(
        self, output_dir: PathLike, postfix: str = "sr", dtype: str | None = None, inputs: Iterable[PathLike] = ()
    ) -> None:
        if dtype is not None and dtype not in NIFTI_DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(NIFTI_DTYPES)} or None, got {dtype!r}")
        self.output_dir = Path(output_dir).expanduser()
        self.postfix, self.dtype = postfix, dtype
        self.inputs = {Path(p).expanduser().resolve() for p in inputs}

    def __call__(self, img: MetaTensor, stem: str | None = None) -> MetaTensor:
        """Save `(1, X, Y, Z)`, set `meta["saved_to"]` and `meta["saved_state"]`; without `stem` the scan's file name gives it."""
        if img.ndim != 4 or img.shape[0] != 1:
            raise ValueError(f"expected a volume of shape (1, X, Y, Z), got {tuple(img.shape)}")
        source = str(img.meta.get("filename_or_obj", "scan"))
        name = "_".join(part for part in (stem or scan_stem(source), self.postfix) if part)
        dtype = self.dtype or str(img.meta.get("scan_dtype", "float32"))
        as_picture = bool(img.meta.get("picture")) and img.shape[-1] == 1 and dtype in PNG_DTYPES
        path = self.output_dir / (f"{name}.png" if as_picture else f"{name}.nii.gz")
        if path.resolve() in {*self.inputs, Path(source).expanduser().resolve()}:
            raise ScanError(f"{path}: expected an output apart from the inputs, got the path of an input scan")
        volume = img.as_tensor().detach()[0]
        if not all(torch.isfinite(v) for v in torch.aminmax(volume)):
            raise ScanError(f"{path}: expected a finite result, got NaN or infinity from the network")
        affine = img.affine.cpu().numpy().astype(np.float64)
        stored = as_stored(volume, dtype)
        if as_picture:
            write_png(path, stored[..., 0])
            state = result_state(path)
        else:
            image = nifti_image(stored, affine, img.meta)
            with atomic_write(path) as partial:
                with (
                    partial.open("wb") as file,
                    # no name or time inside, so that equal results are equal files
                    gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
                ):
                    image.to_stream(packed)
                state = result_state(partial)  # of this file, whoever else may write one of the same name
        img.meta["saved_to"], img.meta["saved_state"] = str(path), state
        return img


class SaveScand(MapTransform):
    """Dictionary version of `SaveScan`; an item's `stem`, as `find_scans` sets it, names its file.

    Args:
        keys: keys of the volumes; with more than one, each but the first has its key in the file name too.
        output_dir, postfix, dtype, inputs: as for `SaveScan`.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_dir: PathLike = ".",
        postfix: str = "sr",
        dtype: str | None = None,
        inputs: Iterable[PathLike] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.save = SaveScan(output_dir, postfix, dtype, inputs)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            stem = item.get("stem") or scan_stem(str(item[key].meta.get("filename_or_obj", "scan")))
            item[key] = self.save(item[key], stem if key == self.keys[0] else f"{stem}_{key}")
        return item
