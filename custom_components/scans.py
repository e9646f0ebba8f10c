"""Scans on disk: which files are scans, how subjects are split, and files that are written whole or not at all."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import random
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PathLike = str | os.PathLike[str]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
SCAN_SUFFIXES = (*NIFTI_SUFFIXES, ".mha", ".mhd", ".nrrd", ".nhdr")
EXPECTED = "NIfTI (.nii, .nii.gz), MetaImage (.mha, .mhd), NRRD (.nrrd, .nhdr) or the files of one DICOM series"
_HOST = socket.gethostname() or "localhost"  # in the name, as a process id means nothing on another machine
_serial = itertools.count()


class ScanError(ValueError):
    """A scan cannot be used or a result cannot be written; the message is one line that names the file."""


def one_line(error: BaseException) -> str:
    """The reason in an exception as one short line, without the path an `OSError` repeats."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200] or type(error).__name__


def scan_stem(path: PathLike) -> str:
    """Name of a scan without its scan suffix: `t1.nii.gz` -> `t1`; a DICOM folder keeps its whole name."""
    name = Path(path).name or Path(path).resolve().name
    if Path(path).is_dir():
        return name
    for suffix in (*SCAN_SUFFIXES, ".dcm", ".ima"):
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


def _scans_in(folder: Path) -> list[Path]:
    """Scan files of a folder, the folder itself and its direct sub-folders where they hold DICOM slices."""
    entries = _visible(folder)
    files = [p for p in entries if p.is_file() and p.name.lower().endswith(SCAN_SUFFIXES)]
    series = [p for p in [folder, *(p for p in entries if p.is_dir())] if _is_series(p)]
    return files + series


def _as_paths(path: PathLike | Sequence[PathLike]) -> list[Path]:
    if isinstance(path, str) and path.lstrip().startswith("[") and not Path(path).exists():
        with contextlib.suppress(ValueError, SyntaxError):
            path = [str(p) for p in ast.literal_eval(path)]
    given = [path] if isinstance(path, (str, os.PathLike)) else path
    return [Path(p).expanduser() for p in given]


def _with_stems(items: list[dict[str, str]]) -> list[dict[str, str]]:
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


def find_scans(path: PathLike | Sequence[PathLike]) -> list[dict[str, str]]:
    """Scans at a path as items `{"image": path, "stem": unique name for outputs}`.

    A file is one item. A folder gives its NIfTI, MetaImage and NRRD files (sorted, not the hidden ones), then itself if
    it holds a DICOM series, then each direct sub-folder that does. Nothing is raised: a path that is missing, or a
    folder without a scan, is an item too, and loading it fails with one clear line while other items go on.

    Args:
        path: file, folder, list of them, or such a list as text (`"['a.nii.gz', 'b']"`), as a command line hands it.
    """
    found: list[Path] = []
    for entry in _as_paths(path):
        scans: list[Path] = []
        if entry.is_dir():
            with contextlib.suppress(OSError):  # a folder that may not be read: loading it says so
                scans = _scans_in(entry)
        found += scans or [entry]
    return _with_stems([{"image": str(p)} for p in dict.fromkeys(found)])


def _subject(path: PathLike) -> str:
    return scan_stem(path).split("_", 1)[0] or scan_stem(path)


def _listed(root: Path, section: object, name: str) -> list[dict[str, str]]:
    """Entries of a section of `dataset.json` with text values only and the image's path made whole."""
    if not isinstance(section, list):
        raise ScanError(f"{root / 'dataset.json'}: expected a list under '{name}', got {type(section).__name__}")
    entries = []
    for raw in section:
        fields = raw if isinstance(raw, dict) else {"image": raw}
        if not isinstance(fields.get("image"), str):
            raise ScanError(f"{root / 'dataset.json'}: expected a path under 'image' in '{name}', got {raw!r}")
        entry = {k: str(v) for k, v in fields.items() if isinstance(v, (str, int, float))}
        image = root / entry["image"]
        if not image.exists():
            raise ScanError(f"{root / 'dataset.json'}: no such file in '{name}': {image}")
        entry |= {"image": str(image), "subject": entry.get("subject") or _subject(image)}
        entries.append({"modality": "", "population": "adult", **entry})
    return entries


def _sections(root: Path) -> dict[str, list[dict[str, str]]]:
    index = root / "dataset.json"
    if not index.is_file():
        scans = [str(p) for p in _scans_in(root)]
        return {"": [{"image": p, "subject": _subject(p), "modality": "", "population": "adult"} for p in scans]}
    try:
        content = json.loads(index.read_text())
    except (OSError, ValueError) as error:
        raise ScanError(f"{index}: expected a JSON dataset list, got {one_line(error)}") from error
    names = [n for n in ("training", "validation", "test") if isinstance(content, dict) and n in content]
    if not names:
        raise ScanError(f"{index}: expected a section 'training', 'validation' or 'test', got none of them")
    return {n: _listed(root, content[n], n) for n in names}


def _shuffled_subjects(entries: Sequence[Mapping[str, str]], seed: int) -> list[str]:
    subjects = sorted({e["subject"] for e in entries})
    random.Random(seed).shuffle(subjects)
    return subjects


def _split(
    root: Path, sections: dict[str, list[dict[str, str]]], split: str, seed: int, val_fraction: float
) -> list[dict[str, str]]:
    if split == "all":
        return [entry for section in sections.values() for entry in section]
    pool = sections.get("", sections.get("training"))
    if pool is not None and split in ("training", "validation") and "validation" not in sections:
        subjects = _shuffled_subjects(pool, seed)
        if len(subjects) < 2:
            raise ScanError(f"{root}: expected scans of at least 2 subjects to split, got {len(subjects)}")
        held_out = subjects[: min(max(round(val_fraction * len(subjects)), 1), len(subjects) - 1)]
        return [entry for entry in pool if (entry["subject"] in held_out) == (split == "validation")]
    if split not in sections:
        here = f"only {', '.join(sections)}" if "" not in sections else "no dataset.json"
        raise ScanError(f"{root}: expected a section '{split}' in dataset.json, got {here}")
    return sections[split]


def training_scans(
    dataset_dir: PathLike,
    split: str,
    seed: int = 0,
    val_fraction: float = 0.2,
    where: Mapping[str, str | Sequence[str]] | None = None,
    max_subjects: int | None = None,
) -> list[dict[str, str]]:
    """Scans of a split as items with `image`, `stem`, `subject`, `modality` and `population`, all text.

    With `dataset.json` in the folder (Medical Segmentation Decathlon form: sections of entries with `image` relative to
    the folder, or plain paths) the split is its section. Without it, or where it has `training` but no `validation`,
    subjects are shuffled by the seed and `val_fraction` of them, at least one, are the validation split: two scans of
    one head never stand on both sides. A subject is the entry's `subject`, else the file's name up to its first `_`.

    Args:
        dataset_dir: folder of scans, with or without `dataset.json`.
        split: `training`, `validation`, `test` (only with `dataset.json`), or `all`.
        seed: of the shuffle.
        val_fraction: share of subjects for validation, in (0, 1).
        where: wanted values per field, e.g. `{"population": "adult", "modality": ["T1w", "T2w"]}`; an entry that does
            not say its population is adult. It applies after the split.
        max_subjects: keep the first subjects in shuffled order only (study of the number of subjects).

    Raises:
        ValueError: on an unknown split or a fraction out of range.
        ScanError: no such folder, section, file or subject, or nothing left in the split.
    """
    root = Path(dataset_dir).expanduser()
    if not root.is_dir():
        raise ScanError(f"dataset_dir must be a folder of scans, got {root}: no such folder")
    if split not in ("training", "validation", "test", "all"):
        raise ValueError(f"split must be 'training', 'validation', 'test' or 'all', got {split!r}")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction must be between 0 and 1, got {val_fraction}")
    entries = _split(root, _sections(root), split, seed, val_fraction)
    for field, wanted in (where or {}).items():
        values = [wanted] if isinstance(wanted, str) else [str(w) for w in wanted]
        entries = [e for e in entries if e.get(field, "") in values]
    if not entries:
        wish = f" where {dict(where)}" if where else ""
        raise ScanError(f"{root}: expected scans in split '{split}'{wish}, got none")
    if max_subjects is not None:
        subjects = _shuffled_subjects(entries, seed)
        if not 1 <= max_subjects <= len(subjects):
            raise ScanError(f"max_subjects must be from 1 to {len(subjects)} in split '{split}', got {max_subjects}")
        entries = [e for e in entries if e["subject"] in subjects[:max_subjects]]
    keys = ("image", "subject", "modality", "population")
    return _with_stems([{k: e[k] for k in keys} for e in entries])


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it runs as another user
        return True
    return True


def _remove_stale(folder: Path) -> None:
    """Remove what a killed process of this machine left half-written."""
    pattern = re.compile(rf"\.partial-{re.escape(_HOST)}-(\d+)-\d+(\..*)?")
    for left in folder.glob(".partial-*"):
        match = pattern.fullmatch(left.name)
        if match and not _is_running(int(match[1])):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a hidden temporary path beside `path`, with its suffix, that becomes `path` when the block ends well.

    The file is flushed to the disk before it takes its name; after any error it is removed, and what stood under `path`
    stays as it was. Leftovers of dead processes in the folder are removed. The folder is made where it is missing.

    Raises:
        ScanError: when the file system refuses (full, not writable): one line with the file and the reason.
    """
    final = Path(path)
    suffix = ".nii.gz" if final.name.lower().endswith(".nii.gz") else final.suffix
    partial = final.with_name(f".partial-{_HOST}-{os.getpid()}-{next(_serial)}{suffix}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final.parent)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, final)
    except OSError as error:
        raise ScanError(f"{final}: expected to write the file, got: {one_line(error)}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
