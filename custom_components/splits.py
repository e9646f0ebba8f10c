"""How the scans of a folder or of a dataset list are split into training, validation and test, by subject."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import ScanError, one_line
from .files import PathLike
from .scans import scan_stem, scans_in, with_stems


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
        scans = [str(p) for p in scans_in(root)]
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
    return with_stems([{k: e[k] for k in keys} for e in entries])
