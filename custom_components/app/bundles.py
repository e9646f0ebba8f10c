"""The bundles that a page offers, and what its user may choose of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ScanError
from ..files import PathLike, read_json

DEFAULT = "brain_mri_sr_any"
Value = bool | int | float | str
WARNINGS = {"gan": "The stage gan invents texture: what looks like detail may never have been in the head."}


@dataclass(frozen=True)
class Bundle:
    """A bundle, by its configs.

    Attributes:
        folder: of the bundle.
        title: its `name` in `metadata.json`.
        description: of `metadata.json`.
        factor: the scale factor where no target is given.
        stages: stage -> scale factors that there are weights of; empty where a bundle has no stages.
        stage: the one where nothing is chosen, empty for none.
        values: id of `inference.json` that holds a plain value -> that value, where nothing is chosen.
    """

    folder: Path
    title: str
    description: str
    factor: float
    stages: Mapping[str, tuple[str, ...]]
    stage: str
    values: Mapping[str, Value | None]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name


def _value(config: Mapping[str, Any], name: str, default: Any) -> Any:
    """What an id `a::b` holds, `@` references followed; nothing is evaluated."""
    value: Any = config
    for key in name.split("::"):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return _value(config, value[1:], default) if isinstance(value, str) and value.startswith("@") else value


def read_bundle(folder: PathLike) -> Bundle:
    """Read a bundle's `metadata.json` and `inference.json`.

    Raises:
        ScanError: when one of them is not there or is no JSON object.
    """
    root = Path(folder).expanduser().absolute()
    about, config = (read_json(root / "configs" / f"{name}.json") for name in ("metadata", "inference"))
    weights = config.get("weights", {}) if "stage" in config else {}
    return Bundle(
        folder=root,
        title=str(about.get("name", root.name)),
        description=str(about.get("description", "")),
        factor=float(_value(config, "default_factor", 2)),
        stages={stage: tuple(files) for stage, files in weights.items()},
        stage=str(config.get("stage", "")),
        values={name: value for name in config if isinstance(value := _value(config, name, None), Value | None)},
    )


def first_choice(bundles: Mapping[str, Bundle]) -> str:
    """Name of the bundle that is offered first: the one for any scan, where it is there."""
    return DEFAULT if DEFAULT in bundles else next(iter(bundles))


def find_bundles(folder: PathLike) -> dict[str, Bundle]:
    """Bundles in a folder by their names, those with an `inference.json`.

    Raises:
        ScanError: when there are none.
    """
    root = Path(folder).expanduser()
    found = sorted(p.parents[1] for p in root.glob("*/configs/inference.json"))
    if not found:
        raise ScanError(f"{root}: expected a folder of bundles, got none with configs/inference.json")
    return {path.name: read_bundle(path) for path in found}
