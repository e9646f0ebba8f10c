"""Scans on disk: which files are scans, and what they are called."""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from .batches.summary_file import NAME as SUMMARY
from .batches.summary_file import read_rows
from .files import PathLike

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SCAN_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".mhd", ".nrrd", ".nhdr")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")  # one slice each, for models in 2D
UNCERTAINTY_SUFFIX = "_uncertainty.nii.gz"  # of the map beside a result, behind the result's own stem
PREVIEW_SUFFIX = "_preview.png"  # of our picture of a result that is a picture itself
EXPECTED = (
    "NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr), the files of one DICOM series or, for a model in 2D, "
    "a picture (.png, .jpg, .tif, .bmp)"
)


def scan_stem(path: PathLike) -> str:
    """Name of a scan without its scan suffix: `t1.nii.gz` -> `t1`; a DICOM folder keeps its whole name."""
    name = Path(path).name or Path(path).resolve().name
    if Path(path).is_dir():
        return name
    for suffix in (*SCAN_SUFFIXES, *PICTURE_SUFFIXES, ".dcm", ".ima"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _is_dicom(path: Path) -> bool:
    """Whether a file has the DICOM preamble: 128 bytes, then `DICM` (PS3.10); an index (DICOMDIR) is no slice."""
    try:
        with path.open("rb") as file:
            return path.name.upper() != "DICOMDIR" and file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _is_series(folder: Path) -> bool:
    try:
        return any(p.is_file() and _is_dicom(p) for p in _visible(folder))
    except OSError:
        return False


def _pictures(entries: list[Path]) -> list[Path]:
    """Picture files, without the previews `<name>_preview.png` that stand beside their `<name>.png`."""
    names = {p.name for p in entries}
    previews = {n for n in names if n.endswith(PREVIEW_SUFFIX) and n.removesuffix(PREVIEW_SUFFIX) + ".png" in names}
    return [p for p in entries if p.is_file() and p.name.lower().endswith(PICTURE_SUFFIXES) and p.name not in previews]


def scans_in(folder: Path) -> list[Path]:
    """Scan files of a folder, the folder itself and its direct sub-folders where they hold DICOM slices.

    Pictures (PNG, JPEG, TIFF, BMP) count only where there is none of these, so that the previews beside volumes do not.
    """
    entries = _visible(folder)
    files = [p for p in entries if p.is_file() and p.name.lower().endswith(SCAN_SUFFIXES)]
    series = [p for p in [folder, *(p for p in entries if p.is_dir())] if _is_series(p)]
    return files + series or _pictures(entries)


def _as_paths(path: PathLike | Sequence[PathLike]) -> list[Path]:
    if (
        isinstance(path, str) and path.lstrip().startswith("[") and not os.path.exists(path)
    ):  # false, no error, for a long list
        with contextlib.suppress(ValueError, SyntaxError):
            path = [str(p) for p in ast.literal_eval(path)]
    given = [path] if isinstance(path, (str, os.PathLike)) else path
    return [Path(p).expanduser() for p in given]


def with_stems(items: list[dict[str, str]]) -> list[dict[str, str]]:
    """Add to each item a `stem` that no other item has, so that `a.nii.gz` and `a.mha` give two results.

    Compared without case, as some file systems do: the first keeps its own, the next ones get `_2`, `_3`, ...
    """
    taken: set[str] = set()
    for item in items:
        own = stem = scan_stem(item["image"])
        count = 1
        while stem.casefold() in taken:
            count += 1
            stem = f"{own}_{count}"
        taken.add(stem.casefold())
        item["stem"] = stem
    return items


def _results(folder: Path, scans: list[Path]) -> set[Path]:
    """Files in a folder that its summary calls results of these scans, and maps beside them, of a run before the last too."""
    files = {str(p) for p in scans}
    names = {Path(row["output"]).name for row in read_rows(folder / SUMMARY) if row["file"] in files and row["output"]}
    return {(folder / n).resolve() for name in names for n in (name, scan_stem(name) + UNCERTAINTY_SUFFIX)}


def find_scans(path: PathLike | Sequence[PathLike], output_dir: PathLike | None = None) -> list[dict[str, str]]:
    """Scans at a path as items `{"image": path, "stem": unique name for outputs}`.

    A file is one item. A folder gives its NIfTI, MetaImage and NRRD files (sorted, not the hidden ones), then itself if
    it holds a DICOM series, then each direct sub-folder that does. Only where it has none of them its pictures (PNG,
    JPEG, TIFF, BMP) are the scans, one slice each, without the previews `<name>_preview.png` of a `<name>.png`: in a
    folder of results the pictures beside volumes are previews. Nothing is raised: a path that is missing, or a folder
    without a scan, is an item too, and loading it fails with one clear line while other items go on.

    Args:
        path: file, folder, list of them, or such a list as text (`"['a.nii.gz', 'b']"`), as a command line hands it.
        output_dir: where results go. Those that a run before made there of scans at this path are no scans, so that the same call
            again does not take them for such when they lie beside the scans.
    """
    found: list[Path] = []
    for entry in _as_paths(path):
        scans: list[Path] = []
        if entry.is_dir():
            with contextlib.suppress(OSError):  # a folder that may not be read: loading it says so
                scans = scans_in(entry)
        found += scans or [entry]
    results = set() if output_dir is None else _results(Path(output_dir).expanduser(), found)
    return with_stems([{"image": str(p)} for p in dict.fromkeys(found) if not results or p.resolve() not in results])
