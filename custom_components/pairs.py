"""Pairs of scans of one head, registered to each other: a poorer one and a better one, as of 3 T and 7 T."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import ScanError
from .files import PathLike
from .scans import scan_stem, scans_in
from .splits import training_scans


def _by_name(folder: Path) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for path in scans_in(folder):
        other = named.setdefault(scan_stem(path), path)
        if other != path:
            raise ScanError(f"{path}: expected one scan of each name in a folder of pairs, got {other.name} too")
    return named


def _same_names(source: Path, target: Path) -> dict[str, Path]:
    if source.resolve() == target.resolve():
        raise ScanError(f"{source}: expected two folders, or a dataset.json that names each target, got one folder")
    sources, targets = _by_name(source), _by_name(target)
    for paths, others, folder in ((sources, targets, target), (targets, sources, source)):
        for stem, path in paths.items():
            if stem not in others:
                raise ScanError(f"{path}: expected a partner named {stem} in {folder}, got none")
    return {str(path): targets[stem] for stem, path in sources.items()}


def _listed(source: Path, target: Path) -> dict[str, Path]:
    """Targets by image path; `training_scans` has read the same list before, so that its form is right."""
    index = source / "dataset.json"
    content = json.loads(index.read_text())
    partners = {}
    for section in ("training", "validation", "test"):
        for raw in content.get(section, []):
            fields = raw if isinstance(raw, dict) else {"image": raw}
            image = source / fields["image"]
            given = fields.get("target", fields.get("label", fields["image"]))
            if not isinstance(given, str):
                raise ScanError(f"{index}: expected a path as target of {fields['image']}, got {given!r}")
            partner = target / given
            if not partner.exists() or partner.resolve() == image.resolve():
                got = "the image itself" if partner.exists() else f"no such file: {partner}"
                raise ScanError(f"{image}: expected a partner by {index.name}, got {got}")
            partners[str(image)] = partner
    return partners


def paired_scans(
    source_dir: PathLike,
    target_dir: PathLike,
    split: str,
    seed: int = 0,
    val_fraction: float = 0.2,
    where: Mapping[str, str | Sequence[str]] | None = None,
    max_subjects: int | None = None,
) -> list[dict[str, str]]:
    """Pairs of a split: the items of `custom_components.splits.training_scans` for `source_dir`, each with its `target`.

    Partners have the same name without suffix in both folders (`a_T1w.nii.gz` and `a_T1w.mha`), and no scan may be without
    one, in either folder. With `dataset.json` in the source folder the list decides: the target of an entry is its `target`, else
    its `label`, else its `image`, relative to the target folder; scans that are not listed do not count. One folder with a
    list of both is given twice. The split is by the subject of the source scan, and the same for the same seed.

    Args:
        source_dir: folder of what the network gets, as scans of 3 T.
        target_dir: folder of what it shall make of it, as scans of 7 T of the same heads, registered.
        split: `training`, `validation`, `test` (only with `dataset.json`), or `all`.
        seed: of the shuffle of subjects.
        val_fraction: share of subjects for validation, in (0, 1).
        where: wanted values per field of the source's entries.
        max_subjects: keep the first subjects in shuffled order only.

    Raises:
        ValueError: on an unknown split or a fraction out of range.
        ScanError: no such folder, section or file, nothing left in the split, or a scan without a partner, which it names.
    """
    source, target = Path(source_dir).expanduser(), Path(target_dir).expanduser()
    scans = training_scans(source, split, seed, val_fraction, where, max_subjects)
    if not target.is_dir():
        raise ScanError(f"target_dir must be a folder of scans, got {target}: no such folder")
    partners = (_listed if (source / "dataset.json").is_file() else _same_names)(source, target)
    return [{**scan, "target": str(partners[scan["image"]])} for scan in scans]
