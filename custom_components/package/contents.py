"""What lies in a packaged bundle: its own files, the overlays that lie on it, and a copy of the components they need.

The components are copied, not required by a pinned version: this project is on no package index, so that a requirement would
be an address that may go away, and a process could hold one version of it only, while two bundles may have been made with
two. The copy lies in `<bundle>_v<version>/`, a name that no other bundle and no other version of this one has.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import ScanError, one_line
from .configs import full_names, imported, outside, rewritten
from .modules import NAME, SOURCE, distributions, reached

KINDS = {"configs": {".json", ".conf"}, "docs": {".md", ".txt", ".csv", ".png"}, "models": {".pt"}}
NEEDED = ("LICENSE", "configs/inference.json", "docs/README.md", "models/model.pt")
ZOO_NAMES = {"multi_gpu.json": "multi_gpu_train.json"}  # by which MONAI Label finds it
# what `python -m monai.bundle` and its `onnx_export` need beyond the components
COMMANDS = {"fire", "onnx", "onnxscript"}
_VERSIONS = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
_NOTE = """
> Packaged from the project's repository: bundle `{bundle}`, version {version}. It needs the packages of `configs/metadata.json`
> and nothing else; its components are in `{package}/`. From any folder, with the path of this bundle in place of `BUNDLE`:
> ```
> python -m monai.bundle run --config_file BUNDLE/configs/inference.json --bundle_root BUNDLE --dataset_dir IN --output_dir OUT
> ```
> Below, `bundles/{bundle}` is `BUNDLE` and `configs/...` are `BUNDLE/configs/...`; commands of `custom_components` and
> baselines need the repository.
"""


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ScanError(f"{file}: expected a file of the bundle, got: {one_line(error)}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(file))
    except ValueError as error:
        raise ScanError(f"{file}: expected JSON, got: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ScanError(f"{file}: expected a JSON object, got a {type(config).__name__}")
    return config


def _text(config: dict[str, Any]) -> bytes:
    return f"{json.dumps(config, indent=4, ensure_ascii=False)}\n".encode()


def _own_files(bundle: Path) -> dict[str, Path]:
    """Path in the package -> file, without what training, inference and exports leave in a bundle."""
    files = {path: bundle / path for path in NEEDED}
    for folder, suffixes in KINDS.items():
        for file in sorted((bundle / folder).rglob("*")):
            path = file.relative_to(bundle)
            if file.is_file() and file.suffix in suffixes and not any(part.startswith(".") for part in path.parts):
                files[path.as_posix()] = file
    return files


def _overlays(bundle: Path, configs: Path) -> dict[str, Path]:
    """Path in the package -> overlay: those of all bundles, and of this one those in the folder named for its last part."""
    own = configs / bundle.name.rpartition("_")[2]
    shared = {f"configs/{ZOO_NAMES.get(file.name, file.name)}": file for file in configs.glob("*.json")}
    return shared | {f"configs/{own.name}/{file.name}": file for file in own.glob("*.json")}


def _pins(root: Path, names: set[str]) -> dict[str, str]:
    """Name -> version in constraints.txt, of the newest Python where there are several."""
    lines = [line.partition(";") for line in _read(root / "constraints.txt").decode().splitlines() if "==" in line]
    pins = dict(line.strip().split("==") for line, _, marker in lines if "<" not in marker)
    if missing := sorted(names - pins.keys()):
        raise ScanError(
            f"{root / 'constraints.txt'}: expected the version of each package in use, got none of {missing}"
        )
    return {name: pins[name] for name in sorted(names)}


def version_of(bundle: Path) -> str:
    """The version in the metadata.

    Raises:
        ScanError: when it is missing, is none as `1.2.3`, or does not stand in the changelog.
    """
    metadata = _json(file := bundle / "configs" / "metadata.json")
    version = str(metadata.get("version", ""))
    if not re.fullmatch(r"\d+(\.\d+)*", version) or version not in metadata.get("changelog", {}):
        raise ScanError(f"{file}: expected a version such as 1.2.3 that the changelog speaks of, got {version!r}")
    return version


def package_name(bundle: Path) -> str:
    """Of the components in a packaged bundle: `brain_mri_sr_recnn_v0_1_0`."""
    return f"{bundle.name}_v{version_of(bundle).replace('.', '_')}"


def contents(bundle: Path) -> dict[str, bytes]:
    """Files of a packaged bundle: path -> content.

    Args:
        bundle: folder in a checkout, `<root>/bundles/<name>`, beside which are `<root>/configs` and `<root>/constraints.txt`.

    Raises:
        ScanError: when a file is missing or not as expected, a checkpoint holds more than tensors, or two files have one path.
        ValueError: when a config cannot be rewritten.
    """
    package, root = package_name(bundle), bundle.parents[1]
    own, overlays = _own_files(bundle), _overlays(bundle, root / "configs")
    if twice := sorted(own.keys() & overlays.keys()):
        raise ScanError(f"{bundle}: expected overlays of other names than the bundle's own configs, got {twice}")
    sources = own | overlays
    configs = {path: _json(file) for path, file in sources.items() if file.suffix == ".json"}
    metadata = configs.pop("configs/metadata.json")

    for (name, path), target in outside(configs.values()).items():
        sources[target] = bundle.parent / name / path
        sources[f"docs/data_license_{name}.txt"] = bundle.parent / name / "docs" / "data_license.txt"
    files = {path: _read(file) for path, file in sources.items() if path not in configs}
    for path in sorted(files):
        if path.endswith(".pt") and NAME.encode() in files[path]:
            raise ScanError(f"{sources[path]}: expected tensors alone, got a pickled component of {NAME}")

    names = imported(configs.values())
    files |= {path: _text(rewritten(config, names, package)) for path, config in configs.items()}
    modules = reached(full_names(configs.values()))
    for file in modules:  # the name everywhere: in imports, and in what docstrings and `python -m ... --help` say
        source = re.sub(rf"\b{NAME}\b", package, _read(file).decode())
        files[f"{package}/{file.relative_to(SOURCE).as_posix()}"] = source.encode()
    files[f"{package}/LICENSE"] = _read(root / "LICENSE")

    needed = distributions(modules) | COMMANDS | metadata.get("required_packages_version", {}).keys()
    pins = _pins(root, needed | _VERSIONS.keys())
    metadata |= {key: pins.pop(name) for name, key in _VERSIONS.items()}
    files["configs/metadata.json"] = _text({**metadata, "required_packages_version": pins})
    readme = re.sub(r"\[([^\]]*)\]\(\.\./\.\./[^)]*\)", r"\1", files["docs/README.md"].decode())  # no such place here
    title, _, rest = readme.partition("\n")
    note = _NOTE.format(bundle=bundle.name, version=version_of(bundle), package=package)
    files["docs/README.md"] = f"{title}\n{note}{rest}".encode()
    return files
