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
        scale_factor: instead, one number or one per axis of the file; 1 keeps an axis.
        in_plane_only: whether slices stay as thick as they are.
        stage: of the weights, where a bundle has stages.
        factor: of the weights, there too.
        denoising_strength: part of the noise to take away, 0 to 1, where a bundle can.
    """

    target_spacing: tuple[float, ...] | None = None
    scale_factor: tuple[float, ...] | None = None
    in_plane_only: bool | None = None
    stage: str | None = None
    factor: str | None = None
    denoising_strength: float | None = None


def parse_spacing(text: str) -> tuple[float, ...] | None:
    """`1`, `1 1 2.5` or `[1, 1, 2.5]` in mm; nothing for none.

    Raises:
        ValueError: on anything else, and on numbers below 0 or not finite.
    """
    values = _numbers(text)
    if values is None or not all(0 <= v < float("inf") for v in values) or (values and not any(values)):
        raise ValueError(f"target spacing must be one number in mm or three such as 1 1 2.5, got {text!r}")
    return values or None


def parse_factor(text: str) -> tuple[float, ...] | None:
    """`2`, `1.5 1.5 3` or `[1, 1, 3]`; nothing for none.

    Raises:
        ValueError: on anything else, and on numbers below 1 or not finite.
    """
    values = _numbers(text)
    if values is None or not all(1 <= v < float("inf") for v in values):
        raise ValueError(f"scale factor must be one number >= 1 or three such as 1 1 3, got {text!r}")
    return values or None


def _numbers(text: str) -> tuple[float, ...] | None:
    """None, one or three numbers as people write them; None for anything else."""
    try:
        values = tuple(float(part) for part in re.sub(r"[\[\](),;]", " ", text or "").split())
    except ValueError:
        return None
    return values if len(values) in (0, 1, 3) else None


def command(bundle: Bundle, scan: PathLike, output_dir: PathLike, options: Options, folder: PathLike = "") -> list[str]:
    """Arguments of `python` that sharpen a scan: those that the README gives, and the options that differ from the bundle's.

    Args:
        bundle: the bundle.
        scan: file, or folder of a DICOM series.
        output_dir: folder of the results.
        options: what was chosen.
        folder: of the bundle, another way to write it, for people to read.

    Raises:
        ValueError: when a voxel size and a factor are chosen, or a stage that the bundle has no weights of.
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
    if options.target_spacing is not None and options.scale_factor is not None:
        raise ValueError("expected a target voxel size or a scale factor, got both")
    for name, values in (("target_spacing", options.target_spacing), ("scale_factor", options.scale_factor)):
        if values is not None:
            listed = ",".join(f"{v:g}" for v in values)
            arguments += [f"--{name}", listed if len(values) == 1 else f"[{listed}]"]
    if bundle.denoising_strength is not None and options.denoising_strength not in (None, bundle.denoising_strength):
        arguments += ["--denoising_strength", f"{options.denoising_strength:g}"]
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
