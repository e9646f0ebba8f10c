"""The folder that the server works on: a copy of the user's scans, as the server writes into it and may delete from it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from ..errors import ScanError, one_line
from ..files import PathLike
from ..scans import PICTURE_SUFFIXES, SCAN_SUFFIXES, find_scans

logger = logging.getLogger(__name__)

SERIES_SUFFIX = ".dicom"  # of a folder with a DICOM series: the server finds scans by their suffix
APART = (".mhd", ".nhdr")  # headers that name a second file
SUFFIXES = (*(s for s in SCAN_SUFFIXES if s not in APART), *PICTURE_SUFFIXES, SERIES_SUFFIX)
PATTERNS = tuple(f"*{suffix}" for suffix in SUFFIXES)


def copy_studies(source: PathLike, target: PathLike) -> list[str]:
    """Copy the scans that `find_scans` finds; their ids, which are their names without suffix.

    Scans whose voxels are in a second file (`.mhd`, `.nhdr`) are left out, with a line in the log.

    Args:
        source: a scan, or a folder of scans and DICOM series; it is read only.
        target: a folder; it is made where it is missing.

    Raises:
        ScanError: when there is no such source, or a scan cannot be copied.
    """
    out = Path(target)
    out.mkdir(parents=True, exist_ok=True)
    if not Path(source).expanduser().exists():
        raise ScanError(f"{source}: expected a folder of scans, got: no such file or folder")
    ids = []
    for item in find_scans(source):
        scan = Path(item["image"])
        suffix = SERIES_SUFFIX if scan.is_dir() else next((s for s in SUFFIXES if scan.name.lower().endswith(s)), None)
        if suffix is None:
            logger.warning("%s: left out, expected a scan in one file (%s)", scan, ", ".join(SUFFIXES[:-1]))
            continue
        try:
            if scan.is_dir():
                files = [p for p in scan.iterdir() if p.is_file()]  # sub-folders are series of their own
                (out / f"{item['stem']}{suffix}").mkdir()
                for file in files:
                    shutil.copyfile(file, out / f"{item['stem']}{suffix}" / file.name)
            else:
                shutil.copyfile(scan, out / f"{item['stem']}{suffix}")
        except OSError as error:
            raise ScanError(f"{scan}: expected to copy the scan to {out}, got: {one_line(error)}") from error
        ids.append(item["stem"])
    return ids
