"""The command that a run is: that of the README, with what was chosen."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from ..compare.study import ROOT
from ..files import PathLike
from .bundles import Bundle

Value = bool | float | str | tuple[float, ...] | None
# of each pair one at most, and what they are called on the page
EITHER = {
    ("target_spacing", "scale_factor"): "a target voxel size or a scale factor",
    ("slice_thickness", "known_acquisition"): "a slice thickness or a protocol, which has its own",
}


@dataclass(frozen=True)
class Options:
    """What a user may choose; what is not chosen is left to the bundle.

    Attributes:
        values: id of `inference.json` -> value, None for none; a bundle gets those of which it has the id.
        stage: of the weights, where a bundle has stages.
        factor: of the weights, there too.
    """

    values: Mapping[str, Value] = field(default_factory=lambda: MappingProxyType({}))
    stage: str | None = None
    factor: str | None = None


def _text(value: Value) -> str:
    """A value as the command line takes it."""
    if isinstance(value, tuple):
        listed = ",".join(f"{v:g}" for v in value)
        return listed if len(value) == 1 else f"[{listed}]"
    return str(value) if isinstance(value, (bool, str)) else f"{value:g}"


def command(bundle: Bundle, scan: PathLike, output_dir: PathLike, options: Options, folder: PathLike = "") -> list[str]:
    """Arguments of `python` that sharpen a scan: those that the README gives, and the options that differ from the bundle's.

    Args:
        bundle: the bundle.
        scan: file, or folder of a DICOM series.
        output_dir: folder of the results.
        options: what was chosen.
        folder: of the bundle, another way to write it, for people to read.

    Raises:
        ValueError: when both of a pair in `EITHER` are chosen, or a stage that the bundle has no weights of.
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
    chosen = {k: v for k, v in options.values.items() if k in bundle.values and v not in (None, bundle.values[k])}
    for pair, words in EITHER.items():
        if all(name in chosen for name in pair):
            raise ValueError(f"expected {words}, got both")
    for name, wish in chosen.items():
        arguments += [f"--{name}", _text(wish)]
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
