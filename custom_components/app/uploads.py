"""What a browser sends: taken into a session's folder within limits, zips unpacked with care."""

from __future__ import annotations

import lzma
import mmap
import os
import re
import shutil
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import ScanError, one_line
from ..files import PathLike
from ..scans import PICTURE_SUFFIXES, scans_in

MIB = 2**20
_CHUNK = 2**20
# RuntimeError: a password, or a compression that zipfile does not know
_BROKEN = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError, ValueError)


@dataclass(frozen=True)
class Limits:
    """What an upload may hold.

    Attributes:
        upload_mib: size of a file in MiB.
        unzipped_mib: size in MiB of all that comes out of a zip; the bytes are counted, not what the zip says.
        files: number of entries of a zip.
    """

    upload_mib: int = 512
    unzipped_mib: int = 2048
    files: int = 10_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")


def safe_name(name: str) -> str:
    """A file name of letters, digits and `._-+() `, without a folder and not hidden: `../a$.nii` -> `a_.nii`."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.+() -]", "_", base).lstrip(". ")[-128:].strip() or "scan"


def _inside(entry: zipfile.ZipInfo, name: str) -> Path:
    """Where an entry goes, below the folder of the zip."""
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", entry.filename):
        raise ScanError(f"{name}: expected files below the zip's own folder, got {entry.filename!r}")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ScanError(f"{name}: expected plain files in the zip, got the link or device {entry.filename!r}")
    return Path(*path.parts)


def unzip(path: PathLike, folder: PathLike, limits: Limits) -> None:
    """Unpack the files of a zip into a folder; hidden ones and those of macOS are left out.

    Raises:
        ScanError: in one line, when it is no zip, is damaged or has a password, has more or larger files than the limits let, or
            has an entry that leads out of the folder or is no plain file. What was unpacked until then is removed.
    """
    source, target = Path(path), Path(folder)
    try:
        _check_count(source, limits)
        with zipfile.ZipFile(source) as archive:
            places = [(entry, _inside(entry, source.name)) for entry in archive.infolist()]
            left = limits.unzipped_mib * MIB
            for entry, place in places:
                if not entry.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in place.parts):
                    left -= _unpack(archive, entry, target / place, left)
                if left < 0:
                    raise ScanError(f"{source.name}: expected at most {limits.unzipped_mib} MiB in the zip, got more")
    except BaseException as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, _BROKEN) and not isinstance(error, ScanError):
            why = f"expected a whole zip without a password, got: {one_line(error)}"
            raise ScanError(f"{source.name}: {why}") from error
        raise


def _check_count(path: Path, limits: Limits) -> None:
    """Count the records of entries before `zipfile` makes an object of each, whatever their number."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        count = sum(1 for _ in re.finditer(b"PK\x01\x02", data))
    if count > limits.files:
        raise ScanError(f"{path.name}: expected at most {limits.files} files in the zip, got {count}")


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, left: int) -> int:
    """Unpack one entry until it is done or the bytes that are left are used up; the bytes it took."""
    path.parent.mkdir(parents=True, exist_ok=True)
    taken = 0
    with archive.open(entry) as packed, path.open("xb") as file:
        while taken <= left and (block := packed.read(_CHUNK)):
            taken += len(block)
            file.write(block)
    return taken


def scan_of(folder: PathLike, name: str) -> Path:
    """The one scan in a folder and those below it: a file, or the folder of a DICOM series; the folder itself where there is none.

    Raises:
        ScanError: when there are several.
    """
    root = Path(folder)
    found = sorted({scan for place, _, _ in os.walk(root) for scan in scans_in(Path(place))})
    volumes = [p for p in found if not p.name.lower().endswith(PICTURE_SUFFIXES)] or found
    if len(volumes) > 1:
        names = ", ".join(str(p.relative_to(root)) for p in volumes[:3]) + (", ..." if len(volumes) > 3 else "")
        raise ScanError(f"{name}: expected one scan or DICOM series in the zip, got {len(volumes)}: {names}")
    return volumes[0] if volumes else root


def take_upload(path: PathLike, folder: PathLike, limits: Limits) -> Path:
    """Move an uploaded file into an empty folder, unpack it if it is a zip, and give the path of the scan.

    Whether the scan can be used is for the bundle to say.

    Raises:
        ScanError: in one line, when it is larger than the limits let or is no zip that can be used.
    """
    source, target = Path(path), Path(folder)
    name = safe_name(source.name)
    size = source.stat().st_size
    if size > limits.upload_mib * MIB:
        source.unlink()
        raise ScanError(f"{name}: expected at most {limits.upload_mib} MiB, got {size / MIB:.0f} MiB")
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    own = target / name
    shutil.move(source, own)
    own.chmod(0o600)
    if own.suffix.lower() != ".zip":
        return own
    try:
        unpacked = target / own.stem
        unzip(own, unpacked, limits)
        return scan_of(unpacked, name)
    finally:
        own.unlink()
