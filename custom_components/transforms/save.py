"""Save a result as NIfTI, or a picture as PNG: right place, the scan's voxel type, and whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
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
from ..tensors import plain
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
        with self.saving(img, stem):
            return img

    @contextlib.contextmanager
    def saving(self, img: MetaTensor, stem: str | None = None) -> Iterator[None]:
        """Save as a call does; the file gets its final name when the block ends, and none when it fails."""
        path, as_picture, dtype = self._checked(img, stem)
        volume = plain(img).detach()[0]
        if as_picture:
            yield
            write_png(path, as_stored(volume, dtype)[..., 0])
            state = result_state(path)
        else:
            with atomic_write(path) as partial:
                _write_nifti(partial, volume, dtype, img)
                state = result_state(partial)  # of this file, whoever else may write one of the same name
                yield
        img.meta["saved_to"], img.meta["saved_state"] = str(path), state

    def _checked(self, img: MetaTensor, stem: str | None) -> tuple[Path, bool, str]:
        """Where a volume goes, whether as a picture, and the voxel type that is asked for."""
        if img.ndim != 4 or img.shape[0] != 1:
            raise ValueError(f"expected a volume of shape (1, X, Y, Z), got {tuple(img.shape)}")
        source = str(img.meta.get("filename_or_obj", "scan"))
        name = "_".join(part for part in (stem or scan_stem(source), self.postfix) if part)
        dtype = self.dtype or str(img.meta.get("scan_dtype", "float32"))
        as_picture = bool(img.meta.get("picture")) and img.shape[-1] == 1 and dtype in PNG_DTYPES
        path = self.output_dir / (f"{name}.png" if as_picture else f"{name}.nii.gz")
        if path.resolve() in {*self.inputs, Path(source).expanduser().resolve()}:
            raise ScanError(f"{path}: expected an output apart from the inputs, got the path of an input scan")
        if not all(torch.isfinite(v) for v in torch.aminmax(plain(img))):
            raise ScanError(f"{path}: expected a finite result, got NaN or infinity from the network")
        return path, as_picture, dtype


def _write_nifti(path: Path, volume: torch.Tensor, dtype: str, img: MetaTensor) -> None:
    """Write the voxels `(X, Y, Z)` with the geometry of `img`; what is stored is let go at the end."""
    affine = img.affine.cpu().numpy().astype(np.float64)
    image = nifti_image(as_stored(volume, dtype), affine, img.meta)
    with (
        path.open("wb") as file,
        # no name or time inside, so that equal results are equal files
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        image.to_stream(packed)


class SaveScand(MapTransform):
    """Dictionary version of `SaveScan`; an item's `stem`, as `find_scans` sets it, names its file.

    Of several volumes all are saved or none: each is written whole before one gets its name, that of the first key last.

    Args:
        keys: keys of the volumes.
        output_dir, inputs: as for `SaveScan`.
        postfix: as for `SaveScan`, for each key; with one for all, each key but the first is in the file name too.
        dtype: as for `SaveScan`, for all keys or for each.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError: on another number of postfixes or voxel types than keys, and as `SaveScan`.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        output_dir: PathLike = ".",
        postfix: str | Sequence[str] = "sr",
        dtype: str | Sequence[str | None] | None = None,
        inputs: Iterable[PathLike] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        count, inputs = len(self.keys), list(inputs)
        self.key_in_name = isinstance(postfix, str)
        postfixes = [postfix] * count if isinstance(postfix, str) else list(postfix)
        dtypes = [dtype] * count if dtype is None or isinstance(dtype, str) else list(dtype)
        if not len(postfixes) == len(dtypes) == count:
            given = f"{postfix!r} and {dtype!r}"
            raise ValueError(f"expected one postfix and dtype, or one for each of {count} keys, got {given}")
        self.save = {
            key: SaveScan(output_dir, own_postfix, own_dtype, inputs)
            for key, own_postfix, own_dtype in zip(self.keys, postfixes, dtypes, strict=True)
        }

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        volumes = {key: item[key] for key in self.key_iterator(item)}
        for img in volumes.values():
            img.meta.pop("saved_to", None)
        try:
            with contextlib.ExitStack() as stack:
                for key, img in volumes.items():
                    stem = item.get("stem") or scan_stem(str(img.meta.get("filename_or_obj", "scan")))
                    if self.key_in_name and key != self.keys[0]:
                        stem = f"{stem}_{key}"
                    stack.enter_context(self.save[key].saving(img, stem))
        except BaseException:  # the last to get its name failed: those that have theirs belong to nothing
            for img in volumes.values():
                if left := img.meta.pop("saved_to", None):
                    Path(left).unlink(missing_ok=True)
            raise
        return item
