"""Zip archives that are the same bytes for the same files, and their checksums."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from ..files import PathLike, atomic_write

CHECKSUMS = "SHA256SUMS"  # read by `sha256sum -c`
_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_UNIX = 3  # the system by whose rules the permissions are read


def checksums(files: Mapping[str, bytes]) -> bytes:
    """Lines `<SHA-256>  <path>`, sorted by path."""
    return "".join(f"{hashlib.sha256(files[path]).hexdigest()}  {path}\n" for path in sorted(files)).encode()


def write_zip(path: PathLike, folder: str, files: Mapping[str, bytes]) -> str:
    """Write `<path>` and `<path>.sha256`, each whole or not at all; the SHA-256 of the archive.

    Sorted names, one date, one permission, no compression: the deflate of zlib differs between its versions, and weights and
    pictures, most of a bundle, hardly shrink.

    Args:
        path: of the archive.
        folder: the one at the top of the archive, as `monai.bundle.download` expects.
        files: path in that folder -> content; their checksums are added.

    Raises:
        ScanError: when a file cannot be written.
    """
    files = {**files, CHECKSUMS: checksums(files)}
    with atomic_write(path) as partial:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(f"{folder}/{name}", _TIME)
                entry.create_system = _UNIX
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, files[name])
        digest = hashlib.sha256(partial.read_bytes()).hexdigest()
    with atomic_write(f"{path}.sha256") as partial:
        partial.write_text(f"{digest}  {Path(path).name}\n", encoding="utf-8")
    return digest
