"""Which scans of a call are still to do: not those that a call before has finished, nor those of other machines."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..files import PathLike
from .fingerprint import content, described, fingerprint, result_state, scan_state
from .summary_file import NAME, read_rows

logger = logging.getLogger(__name__)


def part_of(scans: Sequence[Any], part: Sequence[int]) -> list[Any]:
    """Every n-th scan from the k-th on, for `part` = `[k, n]`: the n parts together are all scans, each once.

    Raises:
        ValueError: unless 0 <= k < n.
    """
    try:
        k, n = (int(v) for v in part)
    except (TypeError, ValueError):
        k, n = -1, 0
    if not 0 <= k < n:
        raise ValueError(f"part must be [k, n] with 0 <= k < n, got {part!r}")
    return list(scans[k::n])


def _version(bundle_root: PathLike) -> Any:
    """Version of a bundle by its metadata; None where there are none."""
    try:
        return json.loads((Path(bundle_root) / "configs" / "metadata.json").read_text(encoding="utf-8")).get("version")
    except (OSError, ValueError, AttributeError):
        return None


def result_fingerprint(item: Mapping[str, Any], *states: Any) -> str:
    """Fingerprint of a scan's result, and of a map beside it, by its item of `unfinished_scans` and `fingerprint.result_state`.

    It is empty without one of them.
    """
    return fingerprint(item["fingerprint"], *states) if all(states) and item.get("fingerprint") else ""


def _stands(row: Mapping[str, str], folder: Path, item: Mapping[str, Any]) -> bool:
    """Whether what a line of the summary tells of, result and map, is there and is what would be made again."""
    states = [result_state(folder / Path(row[name]).name) for name in ("output", "uncertainty") if row[name]]
    wanted = result_fingerprint(item, *states) if row["output"] else ""
    return bool(wanted) and wanted == row["fingerprint"]


def unfinished_scans(
    scans: Sequence[Mapping[str, Any]],
    output_dir: PathLike,
    made_by: Iterable[Any],
    checkpoint: PathLike,
    bundle_root: PathLike,
    overwrite: bool = False,
    part: Sequence[int] = (0, 1),
) -> list[dict[str, Any]]:
    """Scans without a result in `output_dir` that these settings would make again, each with its `fingerprint`.

    A scan is done when its line in `summary.csv` says ok and has the fingerprint of the same weights, components, versions, name
    of the result, scan (size and time of change) and result (size and checksum). One that failed is tried again.

    Args:
        scans: items of `custom_components.scans.find_scans`; their stems are given before any is left out.
        output_dir: folder of the results and of `summary.csv`.
        made_by: what shapes a result: transforms, network, inferer, options. See `fingerprint.described`.
        checkpoint: file of the weights; its content counts, not its place.
        bundle_root: folder of the bundle, whose version counts.
        overwrite: do all scans, those that are done too.
        part: `[k, n]`: every n-th scan from the k-th on, so that n calls, on as many machines, share the scans.

    Raises:
        ValueError: unless `part` is `[k, n]` with 0 <= k < n.
    """
    folder = Path(output_dir).expanduser()
    rows = {row["file"]: row for row in read_rows(folder / NAME) if row["status"] == "ok"}
    settings = fingerprint(__version__, _version(bundle_root), content(checkpoint), described(list(made_by)))
    own = part_of(scans, part)
    left = []
    for scan in own:
        item = {**scan, "fingerprint": fingerprint(settings, scan.get("stem"), scan_state(scan["image"]))}
        row = rows.get(scan["image"])
        if overwrite or row is None or not _stands(row, folder, item):
            left.append(item)
    if len(left) < len(own):
        logger.info(
            "%d of %d scans are done already (--overwrite True does them again)", len(own) - len(left), len(own)
        )
    return left
