"""What a method of a study is: the config that it runs with and its weights, so that a change is seen."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import monai
from monai.bundle import ConfigParser
from monai.bundle.utils import merge_kv

from .. import __version__
from ..errors import ScanError, one_line
from .notes import read_json
from .results import factor_values
from .study import Method, Study

OWN_IDS = ("bundle_root", "dataset_dir", "output_dir", "output_dtype", "scale_factor")  # of a bundle's config, set here


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def overlay(study: Study, factor: str, name: str, scans: Sequence[str]) -> dict[str, Any]:
    """The last config of a run: what is the same for each method, then the method's own options.

    The bundle draws no pictures: they are no part of the result, and the report has its own.
    """
    method = study.methods[name]
    paths = [str(study.lowres_path(factor, scan)) for scan in scans]
    values = (str(method.bundle), paths, str(study.folder(factor, name)), "float32", factor_values(factor))
    inference = read_json(method.bundle / "configs" / "inference.json")
    calm = {"preview::_disabled_": True} if "preview" in inference else {}
    return {**dict(zip(OWN_IDS, values, strict=True)), **calm, **method.options_at(factor)}


def config_files(method: Method) -> list[str]:
    """The bundle's inference config and what the method lays over it."""
    return [str(method.bundle / "configs" / "inference.json"), *map(str, method.overlays)]


def _merge(parser: ConfigParser, key: str, value: Any) -> None:
    """Lay one id over a config, as `monai.bundle` does with a further config file.

    Raises:
        ValueError: when the config has no such id.
    """
    config: Any = parser.config
    known = list(config)
    top = key.removeprefix("+").replace("#", "::").split("::")[0]
    try:
        if top not in known:
            raise KeyError(top)
        merge_kv(parser, key, copy.deepcopy(value))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        near = get_close_matches(top, known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near and near[0] != top else ""
        raise ValueError(f"expected an id of the bundle's config, got {key!r}{hint}") from error


def definition(study: Study, factor: str, name: str) -> dict[str, Any]:
    """What a method is at a scale factor, so that a change is seen: the config that it runs with, its weights, versions.

    Raises:
        ValueError: when an option has no place in the bundle's config, or is for the study to set.
        ScanError: when a config cannot be read or weights are missing.
    """
    method, where = study.methods[name], f"method {name!r} at scale factor {factor}"
    parser = ConfigParser()
    try:
        parser.read_config(config_files(method))
    except Exception as error:
        raise ScanError(f"{where}: expected configs of a bundle, got: {one_line(error)}") from error
    taken = sorted(set(method.options_at(factor)) & set(OWN_IDS))
    if taken:
        raise ValueError(
            f"{where}: expected options other than {', '.join(OWN_IDS)}, which are the study's, got {taken}"
        )
    try:
        for key, value in overlay(study, factor, name, []).items():
            _merge(parser, key, value)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None  # the reason that a user reads is this one
    config = copy.deepcopy(parser.get())
    weights = _weights(parser, where)
    for place in ("bundle_root", "dataset_dir", "output_dir", *(["checkpoint"] if weights else [])):
        config.pop(place, None)  # a study that was moved is the same study
    versions = {"custom_components": __version__, "monai": monai.__version__}
    content = {"config": config, "weights": sha256(weights) if weights else None, "versions": versions}
    same: dict[str, Any] = json.loads(json.dumps(content, default=str))
    return same


def _weights(parser: ConfigParser, where: str) -> Path | None:
    """The file that the config's `WeightsLoader` reads; None for a method without weights."""
    try:
        parser.parse()
        handlers = dict(enumerate(parser.get("handlers") or []))
        used = {i: h for i, h in handlers.items() if isinstance(h, dict) and not h.get("_disabled_")}
        loaders = [i for i, h in used.items() if str(h.get("_target_", "")).endswith("WeightsLoader")]
        paths = [Path(str(parser.get_parsed_content(f"handlers::{i}::path"))) for i in loaders]
    except Exception as error:
        raise ScanError(f"{where}: expected a config that can be read, got: {one_line(error)}") from error
    if paths and not paths[0].is_file():
        raise ScanError(f"{where}: expected the checkpoint {paths[0]}, got: no such file")
    return paths[0] if paths else None
