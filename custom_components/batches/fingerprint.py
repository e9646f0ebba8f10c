"""What a result was made of, in a few letters: by them a later run sees that it is there already."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import PathLike, sidecar

# where results go and how much memory and talk making them takes: another value gives the same voxels
NO_PART_OF_IT = ("output_dir", "inputs", "memory_gib", "progress", "training")
_HEADERS = (".mhd", ".nhdr")  # their voxels are in a file beside them
_TAIL = 24  # bytes: the checksum of a gzip file is in its last 8, that of a PNG's pixels in the 8 before its last 12


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that differ when a part does; the parts are numbers, texts, lists and dictionaries of them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def described(thing: Any, leave_out: Collection[str] = NO_PART_OF_IT) -> Any:
    """An object as plain lists, dictionaries and values, the same in each process: its class and its public attributes.

    Of a network there are the modules inside too, and no weights, but for the name that `custom_components.pretrained.with_weights`
    gives them. Functions and what has no attributes give their names.

    Args:
        thing: say a transform, a `Compose` of them, an inferer, a network.
        leave_out: names of attributes that do not count, at any depth.
    """
    seen: list[Any] = []  # holds them, as an id may be given anew

    def walk(node: Any) -> Any:
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        if isinstance(node, (torch.dtype, torch.device, os.PathLike)):
            return str(node)
        if isinstance(node, Mapping):
            return {str(key): walk(value) for key, value in node.items() if key not in leave_out}
        if isinstance(node, (list, tuple)):
            return [walk(value) for value in node]
        if isinstance(node, (set, frozenset)):
            return sorted((walk(value) for value in node), key=str)
        if isinstance(node, torch.Tensor):
            return [str(node.dtype), node.detach().cpu().tolist()]
        if hasattr(node, "__qualname__"):
            return f"{node.__module__}.{node.__qualname__}"
        name = f"{type(node).__module__}.{type(node).__qualname__}"
        if any(node is other for other in seen):
            return name
        seen.append(node)
        own = {key: value for key, value in getattr(node, "__dict__", {}).items() if not key.startswith("_")}
        inside = dict(node.named_children()) if isinstance(node, nn.Module) else {}
        return [name, walk(own), walk(inside)]

    return walk(thing)


def content(path: PathLike) -> str | None:
    """SHA-256 of a file; None where there is none."""
    try:
        with Path(path).expanduser().open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
            return digest.hexdigest()
    except OSError:
        return None


def scan_state(path: PathLike) -> list[list[Any]]:
    """Name, size and time of change of the files that a scan is made of: a file, its voxels or facts beside it, a DICOM folder."""
    source = Path(path).expanduser()
    files, state = [source], []
    with contextlib.suppress(OSError):  # what cannot be read fails when it is loaded
        if source.is_dir():
            files = sorted(source.iterdir())
        elif source.suffix.lower() in _HEADERS:
            files = sorted(source.parent.glob(f"{glob.escape(source.stem)}.*"))
        elif (beside := sidecar(source)) is not None:
            files = [source, beside]
        for file in files:
            found = file.stat()
            if stat.S_ISREG(found.st_mode):
                state.append([file.name, found.st_size, found.st_mtime_ns])
    return state


def result_state(path: PathLike) -> list[Any] | None:
    """Size and last bytes of a result, gzip or PNG: they hold a checksum of its content; None where there is no file."""
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            return [size, file.read().hex()]
    except OSError:
        return None
