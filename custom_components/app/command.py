"""The command that a run is: that of the README, with what was chosen."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..compare.study import ROOT
from ..files import PathLike
from .bundles import Bundle


@dataclass(frozen=True)
class Options:
    """What a user may choose; what is not chosen is left to the bundle.

    Attributes:
        target_spacing: in mm, one number or one per axis of the file; 0 keeps an axis.
        in_plane_only: whether slices stay as thick as they are.
        stage: of the weights, where a bundle has stages.
        factor: of the weights, there too.
    """

    target_spacing: tuple[float, ...] | None = None
    in_plane_only: bool | None = None
    stage: str | None = None
    factor: str | None = None


def parse_spacing(text: str) -> tuple[float, ...] | None:
    """`1`, `1 1 2.5` or `[1, 1, 2.5]` in mm; nothing for none.

    Raises:
        ValueError: on anything else, and on numbers below 0 or not finite.
    """
    parts = re.sub(r"[\[\](),;]", " ", text or "").split()
    expected = f"target spacing must be one number in mm or three such as 1 1 2.5, got {text!r}"
    try:
        values = tuple(float(p) for p in parts)
    except ValueError:
        raise ValueError(expected) from None  # the page shows the innermost reason
    if len(values) not in (0, 1, 3) or not all(0 <= v < float("inf") for v in values) or (values and not any(values)):
        raise ValueError(expected)
    return values or None


def command(bundle: Bundle, scan: PathLike, output_dir: PathLike, options: Options, folder: PathLike = "") -> list[str]:
    """Arguments of `python` that sharpen a scan: those that the README gives, and the options that differ from the bundle's.

    Args:
        bundle: the bundle.
        scan: file, or folder of a DICOM series.
        output_dir: folder of the results.
        options: what was chosen.
        folder: of the bundle, another way to write it, for people to read.
    """
    root = Path(folder or bundle.folder)
    given = {
        "config_file": root / "configs" / "inference.json",
        "bundle_root": root,
        "dataset_dir": scan,
        "output_dir": output_dir,
    }
    arguments = ["-m", "monai.bundle", "run"]
    for key, value in given.items():
        arguments += [f"--{key}", str(value)]
    if options.target_spacing is not None:
        spacing = [f"{v:g}" for v in options.target_spacing]
        arguments += ["--target_spacing", spacing[0] if len(spacing) == 1 else f"[{','.join(spacing)}]"]
    if options.in_plane_only not in (None, bundle.in_plane_only):
        arguments += ["--in_plane_only", str(options.in_plane_only)]
    if bundle.stages:
        stage, factor = options.stage or bundle.stage, options.factor or f"{bundle.factor:g}"
        if factor not in bundle.stages.get(stage, ()):
            raise ValueError(f"stage must be one of {dict(bundle.stages)}, got {stage!r} at {factor!r}")
        arguments += ["--stage", stage] if stage != bundle.stage else []
        arguments += ["--network_factor", factor] if float(factor) != bundle.factor else []
    return arguments


def shown_command(bundle: Bundle, scan: PathLike, options: Options) -> str:
    """The command for people, with the scan's name and `OUT`, to be run from the root of the repository."""
    inside = bundle.folder.is_relative_to(ROOT)
    folder = bundle.folder.relative_to(ROOT) if inside else bundle.folder
    return shlex.join(["python", *command(bundle, Path(scan).name, "OUT", options, folder)])
