"""The package as a whole: cheap to import, one version, and arrows that point one way."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import custom_components

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "custom_components"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"itk", "matplotlib", "torchvision", "nilearn"}
FILES = {"nibabel", "itk", "os", "io", "pathlib", "shutil", "tempfile", "json", "csv"}
# Ground floor 0, then what is built on it; parts that are not listed are on the upper floor.
FLOOR = {"acquisition": 0, "networks": 1, "losses": 1, "metrics": 1, "baselines": 1}
UPPER = 2


def module_name(file):
    """`custom_components/networks/recnn.py` -> `custom_components.networks.recnn`."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source, package, anywhere=True):
    """Full names of what a module of `package` imports; with `anywhere=False` only what its own import runs."""
    found = set()

    def visit(node):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            found.update(
                ".".join([*above, *([node.module] if node.module else []), alias.name]) for alias in node.names
            )
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if anywhere or not (inside or typing_only):
            for child in ast.iter_child_nodes(node):
                visit(child)

    visit(ast.parse(source))
    return found


def imports_of(file, anywhere=True):
    package = module_name(file) if file.name == "__init__.py" else module_name(file).rpartition(".")[0]
    return imports(file.read_text(), package, anywhere)


def floor(name):
    """Floor of a module of the package by its full name."""
    part = f"{name}.".split(".")[1]
    return FLOOR.get(part, UPPER) if part else 0


def roots(names):
    return {name.split(".")[0] for name in names}


def test_imports_are_read_as_python_does():
    source = "import a.b\nfrom .x import y\nfrom ..z import w\nfrom . import v\ndef f():\n    import itk\n"
    everywhere = {"a.b", "p.q.x.y", "p.z.w", "p.q.v", "itk"}
    assert imports(source, "p.q") == everywhere
    assert imports(source, "p.q", anywhere=False) == everywhere - {"itk"}


def loaded_by(module):
    code = f"import sys, {module}; print(*sorted(name for name in sys.modules if '.' not in name))"
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_import_of_the_package_is_cheap():
    assert loaded_by("custom_components") & (HEAVY | {"torch", "monai"}) == set()
    assert loaded_by("custom_components.acquisition") & (HEAVY | {"monai"}) == set()


def test_no_module_imports_heavy_packages_when_it_is_imported():
    """Read from the source: monai itself imports itk and matplotlib, so that sys.modules cannot tell who did."""
    found = {module_name(file): roots(imports_of(file, anywhere=False)) & (HEAVY | {"skimage"}) for file in MODULES}
    assert {name: heavy for name, heavy in found.items() if heavy} == {}


def test_no_part_needs_torchvision_or_nilearn():
    parts = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert {"acquisition", "networks", "transforms"} <= set(parts)
    loaded = loaded_by(", ".join(f"custom_components.{part}" for part in parts))
    assert "monai" in loaded
    assert loaded & {"torchvision", "nilearn"} == set()


@pytest.mark.parametrize("file", MODULES, ids=module_name)
def test_arrows_point_one_way(file):
    here, names = floor(module_name(file)), imports_of(file)
    assert {name for name in names if roots([name]) == {"custom_components"} and floor(name) > here} == set()
    if here < UPPER and module_name(file) != "custom_components":
        assert roots(names) & FILES == set(), "expected no file access in this part"
        monai_parts = {".".join(name.split(".")[:2]) for name in names if name.startswith("monai.")}
        assert monai_parts <= {"monai.networks", "monai.losses", "monai.metrics", "monai.utils"}
    if here == 0:
        assert roots(names) - sys.stdlib_module_names <= {"torch", "custom_components"}


def test_one_version():
    (declared,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    released = re.findall(r"^## \[(\d.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert custom_components.__version__ == declared == released[0]
