"""Bundle configs that find their components beside themselves, in place of an installed package.

MONAI evaluates every `$from ... import ...` of a config before anything else, when nothing has told Python yet where the bundle
is; `ConfigWorkflow.run` does so too late for `initialize`, and `ckpt_export` and its kind never do. So a packaged config imports
nothing of ours: each block with a `_target_` of ours requires the item `components`, which adds `bundle_root` to the end of
`sys.path`, once and as an absolute path, and what was imported becomes such a block with `_mode_: callable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from .modules import NAME

COMPONENTS = "components"
_IMPORT = re.compile(rf"\$from ({NAME}[\w.]*) import (\w+)(?: as (\w+))?")
_OURS = re.compile(rf"\b{NAME}\b")
_FULL_NAME = re.compile(rf"\b{NAME}(?:\.\w+)+")
_OUTSIDE = re.compile(r"@bundle_root \+ '/\.\./(\w+)/([^']+)'")


def _strings(node: Any) -> Iterable[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _strings(child)


def imported(configs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Name in expressions -> full name, of what the `imports` of configs take from this package.

    Raises:
        ValueError: when an import is no `$from ... import one_name`, one name stands for two things, or is an id as well.
    """
    names: dict[str, str] = {}
    configs = list(configs)
    for line in (text for config in configs for text in _strings(config) if re.match(r"\$(from|import)\b", text)):
        if not _OURS.search(line):
            continue
        if not (match := _IMPORT.fullmatch(line)):
            raise ValueError(f"expected `$from {NAME}.module import one_name`, got {line}")
        name, full = match[3] or match[2], f"{match[1]}.{match[2]}"
        if names.setdefault(name, full) != full:
            raise ValueError(f"expected one meaning of {name} in the configs of a bundle, got {names[name]} and {full}")
    if taken := {*names, COMPONENTS} & {key for config in configs for key in config}:
        raise ValueError(f"expected ids other than the names of imported components, got {', '.join(sorted(taken))}")
    return names


def full_names(configs: Iterable[Mapping[str, Any]]) -> set[str]:
    """Full names of the components of this package that configs speak of."""
    texts = [text for config in configs for text in _strings(config)]
    named = {name for text in texts for name in _FULL_NAME.findall(text) if not _IMPORT.fullmatch(text)}
    return named | {f"{match[1]}.{match[2]}" for text in texts if (match := _IMPORT.fullmatch(text))}


def outside(configs: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """Files of other bundles that configs read, (bundle, path) -> its path in the package.

    Raises:
        ValueError: when a config leaves its bundle in another way than by `@bundle_root + '/../<bundle>/<file>'`.
    """
    found: dict[tuple[str, str], str] = {}
    for text in (text for config in configs for text in _strings(config) if "../" in text):
        if not (match := _OUTSIDE.search(text)) or "../" in match[2]:
            raise ValueError(f"expected a path in the bundle or `@bundle_root + '/../bundle/file'`, got {text}")
        found[match[1], match[2]] = _inside(match)
    return found


def _inside(match: re.Match[str]) -> str:
    """Where in the package a file of another bundle lies."""
    return f"models/{match[1]}_{match[2].rpartition('/')[2]}"


def refer(expression: str, names: Iterable[str]) -> str:
    """An expression that takes names from the config (`@name`), in place of what was imported."""
    pattern = rf"@\w*(?:::\w*)*|'[^']*'|\"[^\"]*\"|(?<![\w.])({'|'.join(map(re.escape, names))})\b(?!\s*=[^=])"
    return re.sub(pattern, lambda match: f"@{match[1]}" if match[1] else match[0], expression)


def rewritten(config: Mapping[str, Any], names: Mapping[str, str], package: str) -> dict[str, Any]:
    """A config of a packaged bundle.

    Args:
        config: as the repository has it.
        names: name -> full name, of all that the configs of this bundle import from this package (see `imported`).
        package: name of the copy.
    """

    def text(value: str) -> str:
        value = _OUTSIDE.sub(lambda match: f"@bundle_root + '/{_inside(match)}'", value)
        return _OURS.sub(package, refer(value, names) if names and value.startswith("$") else value)

    def walk(node: Any) -> Any:
        if isinstance(node, list):
            return [walk(item) for item in node if not (isinstance(item, str) and _IMPORT.fullmatch(item))]
        if not isinstance(node, Mapping):
            return text(node) if isinstance(node, str) else node
        block = {key: walk(value) for key, value in node.items()}
        return _with_requirement(block) if _FULL_NAME.match(str(node.get("_target_", ""))) else block

    def callable_of(full: str) -> dict[str, Any]:
        return _with_requirement({"_target_": _OURS.sub(package, full), "_mode_": "callable"})

    result: dict[str, Any] = {}
    for key, value in config.items():
        result[key] = walk(value)
        if re.search("(::|#)_target_$", key) and _FULL_NAME.match(str(value)):
            # an overlay puts another class into a block
            result[key.removesuffix("_target_") + "_requires_"] = f"@{COMPONENTS}"
        if key == "bundle_root":
            result[COMPONENTS] = {"_target_": "site.addsitedir", "sitedir": "@bundle_root"}
        if key in ("imports", "+imports"):
            result |= {name: callable_of(names[name]) for name in imported([{key: value}])}
            if not result[key]:
                del result[key]
    return result


def _with_requirement(block: dict[str, Any]) -> dict[str, Any]:
    if "_requires_" in block:
        raise ValueError(f"expected a block without `_requires_`, as it gets one here, got {block['_target_']}")
    return {"_target_": block.pop("_target_"), "_requires_": f"@{COMPONENTS}", **block}
