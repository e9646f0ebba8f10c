"""Read a study from a JSON config and overrides."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ReferenceResolver

from ..errors import ScanError, one_line
from ..files import PathLike
from ..splits import training_scans
from .results import factor_name
from .study import ROOT, Method, Study

SPLINE_OVERLAY = "configs/baselines/bspline.json"
DEFAULTS: dict[str, Any] = {
    "dataset_dir": None,
    "output_dir": "comparison",
    "split": "validation",
    "where": None,
    "max_subjects": None,
    "seed": 0,
    "scale_factors": [2],
    "protocol": "gaussian_spline",
    "noise_std": 0.0,
    "methods": {},
    "reference": None,
    "pairs": [],
    "rank": None,
    "loss_curves": {},
    "pictures": 1,
}
KINDS: dict[str, tuple[type, ...]] = {
    "methods": (dict,),
    "loss_curves": (dict,),
    "scale_factors": (list, tuple),
    "pairs": (list, tuple),
    "noise_std": (float, int),
    "seed": (int,),
    "pictures": (int,),
}


def existing(path: PathLike, what: str) -> Path:
    """A path of a study as a whole one: relative ones are looked for here, then in the repository.

    Raises:
        ScanError: when there is nothing under it.
    """
    given = Path(path).expanduser()
    found = next((p for p in (given, ROOT / given) if p.exists()), None)
    if found is None:
        raise ScanError(f"{given}: expected {what}, got: no such file or folder")
    return found.absolute()


def _assign(config: dict[str, Any], name: str, value: Any) -> None:
    """Set `a::b::c`; what follows `options` of a method is one id of its bundle."""
    keys = name.split("::")
    whole = {"options": 3, "by_scale": 4}.get("".join(keys[2:3]), len(keys)) if keys[0] == "methods" else len(keys)
    if len(keys) > whole:
        keys = [*keys[:whole], "::".join(keys[whole:])]
    for key in keys[:-1]:
        config = config.setdefault(key, {})
        if not isinstance(config, dict):
            raise ValueError(f"expected an id of the study, got {name!r}: {key!r} holds no ids")
    config[keys[-1]] = value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part)


def _references(value: Any) -> set[str]:
    """Top-level ids that expressions in a part of a config refer to."""
    ids = (name for text in _texts(value) for name in ReferenceResolver.match_refs_pattern(text))
    return {name.split("::")[0] for name in ids}


def _evaluated(config: Mapping[str, Any], value: Any, of_bundle: bool = False) -> Any:
    """A value with its expressions evaluated; those of a bundle only if they refer to ids of the study, and to no others."""
    if isinstance(value, dict):
        return {k: _evaluated(config, v, of_bundle) for k, v in value.items()}
    if isinstance(value, list):
        return [_evaluated(config, v, of_bundle) for v in value]
    if not isinstance(value, str) or not value.startswith(("$", "@")):
        return value
    if of_bundle and not (_references(value) and _references(value) <= set(config)):
        return value
    ids = copy.deepcopy({k: v for k, v in config.items() if k != "methods"})
    try:
        return ConfigParser({**ids, "_value": value}).get_parsed_content("_value")
    except Exception as error:
        raise ScanError(f"expected an expression of ids of the study, got {value!r}: {one_line(error)}") from error


def _known(what: str, given: Any, known: Sequence[str]) -> dict[str, Any]:
    """The given keys, if each is known."""
    if not isinstance(given, dict):
        raise ValueError(f"{what} must be a dictionary, got {given!r}")
    for key in given:
        if key not in known:
            near = get_close_matches(key, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{what}: expected keys of {tuple(known)}, got {key!r}{hint}")
    return given


def _options(name: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"options of method {name!r} must be a dictionary, got {given!r}")
    if isinstance(given.get("checkpoint"), str) and not given["checkpoint"].startswith(("$", "@")):
        given["checkpoint"] = str(existing(given["checkpoint"], f"the checkpoint of method {name!r}"))
    return given


def _method(name: str, given: Any, factors: Sequence[str]) -> Method:
    known = _known(f"method {name!r}", given, ("bundle", "overlays", "options", "by_scale"))
    if not isinstance(known.get("bundle"), str):
        raise ValueError(f"method {name!r}: expected the folder of a bundle, got {known.get('bundle')!r}")
    bundle = existing(known["bundle"], f"the bundle of method {name!r}")
    existing(bundle / "configs" / "inference.json", f"the inference config of method {name!r}")
    overlays = known.get("overlays", [])
    paths = [
        existing(p, f"an overlay of method {name!r}") for p in ([overlays] if isinstance(overlays, str) else overlays)
    ]
    by_scale = _known("by_scale", known.get("by_scale", {}), list(known.get("by_scale", {})))
    named = {factor_name(factor): options for factor, options in by_scale.items()}
    at_factors = {factor: _options(name, options) for factor, options in named.items() if factor in factors}
    return Method(bundle, paths, _options(name, known.get("options", {})), at_factors)


def _read(config_file: PathLike | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if config_file is not None:
        try:
            config = json.loads(Path(config_file).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ScanError(f"{config_file}: expected a study in JSON, got: {one_line(error)}") from error
        if not isinstance(config, dict):
            raise ScanError(f"{config_file}: expected a study in JSON, got a {type(config).__name__}")
    # those of the file too, as other methods on the command line may leave an id unused
    named = {"imports", *_references(config)}
    for name, value in overrides.items():
        _assign(config, name, value)
    named |= _references(config)
    _known("study", {k: v for k, v in config.items() if k not in named}, list(DEFAULTS))
    return {**DEFAULTS, **{k: _evaluated(config, v, k == "methods") for k, v in config.items() if k in DEFAULTS}}


def read_study(config_file: PathLike | None = None, command: str = "", **overrides: Any) -> Study:
    """Read a study from a JSON config, with overrides by id as `monai.bundle run` has them.

    `$` expressions and `@` references to other ids of the study are evaluated; in a method, those that refer to other ids are
    left for the bundle. Relative paths of bundles, overlays, checkpoints and loss curves are looked for in the current folder,
    then in the repository. Where no reference is given and no method is called `spline`, spline interpolation becomes the
    first method.

    Args:
        config_file: JSON file with some of the ids in `DEFAULTS`; others may be there for references.
        command: the command line, for the report.
        overrides: id (`a::b` for an inner one) -> value.

    Raises:
        ValueError: on unknown ids, or parts that do not fit together.
        ScanError: when the config, scans, a bundle, an overlay or a checkpoint is not there.
    """
    given = _read(config_file, overrides)
    for key, kinds in KINDS.items():
        if not isinstance(given[key], kinds) or isinstance(given[key], bool):
            raise ValueError(f"{key} must be a {kinds[0].__name__}, got {given[key]!r}")
    if given["dataset_dir"] is None or not given["methods"]:
        missing = "methods" if given["dataset_dir"] else "dataset_dir, a folder of high-resolution scans"
        raise ValueError(f"a study needs {missing}, got none")
    factors = [factor_name(f) for f in given["scale_factors"]]
    methods = {name: _method(name, method, factors) for name, method in given["methods"].items()}
    if given["reference"] is None and "spline" not in methods:
        spline = Method(next(iter(methods.values())).bundle, [existing(SPLINE_OVERLAY, "the overlay of the reference")])
        methods = {"spline": spline, **methods}
    selection = {key: given[key] for key in ("split", "seed", "where", "max_subjects")}
    return Study(
        methods=methods,
        scale_factors=factors,
        output_dir=Path(str(given["output_dir"])).expanduser().absolute(),
        scans=training_scans(str(given["dataset_dir"]), **selection),
        reference=given["reference"] or "spline",
        loss_curves={k: existing(str(v), f"the loss curve of {k!r}") for k, v in given["loss_curves"].items()},
        rank=given["rank"] or [],
        command=command,
        **{key: given[key] for key in ("pairs", "protocol", "noise_std", "seed", "pictures")},
    )
