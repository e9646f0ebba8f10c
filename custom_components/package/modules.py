"""Which modules of this package a bundle needs, and which packages of others these import, read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

NAME = __name__.partition(".")[0]  # custom_components
SOURCE = Path(__file__).resolve().parents[1]  # of the package
DISTRIBUTIONS = {
    "PIL": "pillow",
    "ignite": "pytorch-ignite",
    "skimage": "scikit-image",
}  # not installed by their own name


def files_of(name: str) -> list[Path]:
    """Source files that an import of a full name runs: `__init__.py` of each package on the way, and the module.

    Args:
        name: of a module, or of what is in one, say `custom_components.networks.ReCNN`.
    """
    folder, files = SOURCE, [SOURCE / "__init__.py"]
    for part in name.split(".")[1:]:
        package, module = folder / part / "__init__.py", folder / f"{part}.py"
        if package.is_file():
            folder = package.parent
            files.append(package)
        else:
            return [*files, module] if module.is_file() else files
    return files


def imports(file: Path) -> Iterator[str]:
    """Full names of what a module of this package imports anywhere, inside of functions too."""
    package = [NAME, *file.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = [*above, *([node.module] if node.module else [])]
            yield from (".".join([*origin, alias.name]) for alias in node.names)


def reached(names: Iterable[str]) -> list[Path]:
    """Source files of this package that full names need, with all that these import in turn, sorted.

    Raises:
        ValueError: when a name is in no module of this package.
    """
    found: set[Path] = set()
    waiting: set[Path] = set()
    for name in names:
        if len(files := files_of(name)) < 2:
            raise ValueError(f"expected the name of a component of {NAME}, got {name}")
        waiting.update(files)
    while waiting:
        file = waiting.pop()
        found.add(file)
        ours = (name for name in imports(file) if name.partition(".")[0] == NAME)
        waiting.update({needed for name in ours for needed in files_of(name)} - found)
    return sorted(found)


def distributions(files: Iterable[Path]) -> set[str]:
    """Names, as in `pip install`, of what modules of this package import from others."""
    roots = {name.partition(".")[0] for file in files for name in imports(file)}
    return {DISTRIBUTIONS.get(root, root) for root in roots - sys.stdlib_module_names - {NAME}}
