"""A packaged bundle: what is in it, the same bytes each time, and that it runs where this repository is not."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from modulefinder import ModuleFinder
from pathlib import Path

import monai.bundle.scripts
import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigParser, push_to_hf_hub, verify_metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from custom_components.errors import ScanError
from custom_components.package.__main__ import main, package_bundle
from custom_components.package.archive import write_zip
from custom_components.package.configs import full_names, imported, outside, refer, rewritten
from custom_components.package.contents import contents, package_name, version_of
from custom_components.package.modules import distributions, reached

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path for path in (ROOT / "bundles").glob("*") if path.is_dir())
NAMES = [bundle.name for bundle in BUNDLES]
RECNN = ROOT / "bundles" / "brain_mri_sr_recnn"
ON_ONE_IMAGE = [name for name in NAMES if name != "brain_mri_sr_any"]  # a network that takes the image and no more
TO_ONNX = ("brain_mri_sr_pnorm", "brain_mri_sr_rrlsrn")  # of volumes and of slices; the others would take long
# what ends in a bundle by running it, or by editing it
LITTER = ("output/scan_sr.nii.gz", "evaluation/metrics.csv", "models/model.ts", "models/.partial-host-1-0.pt")
LITTER += ("docs/.DS_Store", "configs/__pycache__/x.pyc", "docs/README.md~")

per_bundle = pytest.mark.parametrize("name", NAMES)


# Which modules


@pytest.mark.parametrize("part", ["handlers", "transforms.LoadScand", "sharp_patches.select_patches", "acquisition"])
def test_the_modules_that_a_component_imports_are_reached(part):
    """The standard library's finder reads the compiled code; those of others are not on its path."""
    finder = ModuleFinder([str(ROOT)])
    finder.import_hook(f"custom_components.{part}".removesuffix(f".{part.partition('.')[2]}"))
    expected = {Path(module.__file__) for name, module in finder.modules.items() if module.__file__}
    assert len(expected) > 8
    assert set(reached([f"custom_components.{part}"])) == expected


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(ValueError, match=r"expected the name of a component of custom_components, got .*nowhere\.Net"):
        reached(["custom_components.nowhere.Net"])


def test_distributions_are_called_as_pip_calls_them():
    files = reached(["custom_components.transforms.LoadScand", "custom_components.metrics.VolumeSSIM"])
    assert {"torch", "monai", "nibabel", "itk", "numpy", "pillow"} <= distributions(files)
    assert not distributions(files) & {"PIL", "math", "custom_components", "__future__"}


# Configs


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("$f(@x)", "$@f(@x)"),
        ("$f", "$@f"),
        ("$f(g(1), f=2, g == 3)", "$@f(@g(1), f=2, @g == 3)"),
        ("$a.f(@f, @x::f, 'f', \"g\")", "$a.f(@f, @x::f, 'f', \"g\")"),
        ("$[f for _ in ff]", "$[@f for _ in ff]"),
    ],
)
def test_refer(expression, expected):
    assert refer(expression, ["f", "g"]) == expected


def test_a_rewritten_config_finds_its_components_by_the_bundle_root(tmp_path, monkeypatch):
    """Run by MONAI: a module that lies in the bundle only, found at the first use of any of its items."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = {
        "imports": [
            "$import math",
            "$from custom_components.deep.mod import double",
            "$from custom_components.mod import one as uno",
        ],
        "bundle_root": ".",
        "four": "$double(2)",
        "own": {"_target_": "custom_components.mod.Own", "value": "$uno() + math.floor(0.5)", "double": 3},
        "file": "$@bundle_root + '/../other_bundle/models/sub/w.pt'",
    }
    names = imported([config])
    assert names == {"double": "custom_components.deep.mod.double", "uno": "custom_components.mod.one"}
    assert full_names([config]) == {*names.values(), "custom_components.mod.Own"}
    new = rewritten(config, names, "toy_v1")
    assert "custom_components" not in json.dumps(new)
    (tmp_path / "toy_v1" / "deep").mkdir(parents=True)
    own = "class Own:\n    def __init__(self, value, double):\n        self.value, self.double = value, double\n"
    (tmp_path / "toy_v1" / "mod.py").write_text(f"def one():\n    return 1\n{own}")
    (tmp_path / "toy_v1" / "deep" / "mod.py").write_text("def double(x):\n    return 2 * x\n")
    for item, expected in (("four", 4), ("own", (1, 3))):
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
        parser = ConfigParser({**new, "bundle_root": str(tmp_path)})
        value = parser.get_parsed_content(item)
        assert (value if item == "four" else (value.value, value.double)) == expected
        assert sys.path[-1] == str(tmp_path)
    assert parser.get_parsed_content("file") == f"{tmp_path}/models/other_bundle_w.pt"
    assert outside([config]) == {("other_bundle", "models/sub/w.pt"): "models/other_bundle_w.pt"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"imports": ["$import custom_components.errors"]}, "import one_name"),
        ({"imports": ["$from custom_components.a import b, c"]}, "import one_name"),
        (
            {"imports": ["$from custom_components.a import f"], "+imports": ["$from custom_components.b import f"]},
            "one meaning of f",
        ),
        ({"imports": ["$from custom_components.a import f"], "f": 1}, "ids other than .* got f"),
        ({"components": 1}, "ids other than .* got components"),
    ],
)
def test_imports_that_cannot_be_rewritten(config, message):
    with pytest.raises(ValueError, match=message):
        imported([config])


def test_a_requirement_of_its_own_is_refused():
    with pytest.raises(ValueError, match="without `_requires_`"):
        rewritten({"a": {"_target_": "custom_components.networks.SRCNN", "_requires_": "@b"}}, {}, "toy_v1")


@pytest.mark.parametrize("path", ["$@bundle_root + '/../x/' + @y", "../x.pt", "$@bundle_root + '/../x/../y'"])
def test_other_ways_out_of_the_bundle_are_refused(path):
    with pytest.raises(ValueError, match="a path in the bundle"):
        outside([{"a": {"b": [path]}}])


def test_another_class_in_a_block_requires_the_components():
    config = {"network_def::_target_": "custom_components.networks.SRCNN", "x#_target_": "torch.nn.ReLU"}
    new = {"network_def::_target_": "toy_v1.networks.SRCNN", "network_def::_requires_": "@components"}
    assert rewritten(config, {}, "toy_v1") == new | {"x#_target_": "torch.nn.ReLU"}


# The archive


def test_an_archive_of_given_bytes(tmp_path):
    """The same on each machine: nothing of zlib, of the clock or of the file system is in it."""
    digest = write_zip(tmp_path / "b.zip", "toy", {"b": b"2", "a/c": b"1"})
    assert digest == hashlib.sha256((tmp_path / "b.zip").read_bytes()).hexdigest()
    assert (tmp_path / "b.zip.sha256").read_text() == f"{digest}  b.zip\n"
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        entries = [
            (e.filename, e.date_time, e.external_attr >> 16, e.compress_type, e.create_system)
            for e in archive.infolist()
        ]
        sums = archive.read("toy/SHA256SUMS").decode()
    assert entries == [(f"toy/{name}", (1980, 1, 1, 0, 0, 0), 0o100644, 0, 3) for name in ("SHA256SUMS", "a/c", "b")]
    assert sums == "".join(
        f"{hashlib.sha256(text).hexdigest()}  {name}\n" for name, text in (("a/c", b"1"), ("b", b"2"))
    )


@pytest.fixture
def checkout(tmp_path):
    """A checkout with one bundle, as someone has it who has run it."""
    root = tmp_path / "checkout"
    shutil.copytree(RECNN, root / "bundles" / RECNN.name)
    shutil.copytree(ROOT / "configs", root / "configs")
    for name in ("LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, root / name)
    for name in LITTER:
        file = root / "bundles" / RECNN.name / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("litter")
    for file in root.rglob("*"):
        os.utime(file, (0, 10**9))
    return root


def test_the_same_files_give_the_same_bytes(checkout, tmp_path, capsys, monkeypatch):
    """By the command line, from another folder, of other dates and permissions, beside what a run leaves behind."""
    for file in checkout.rglob("*.json"):
        file.chmod(0o600)
    first = package_bundle(RECNN, tmp_path / "a")
    monkeypatch.chdir(checkout / "bundles")
    main(["--bundle", RECNN.name, "--output_dir", str(tmp_path / "b")])
    second = tmp_path / "b" / f"{RECNN.name}_v{version_of(RECNN)}.zip"
    assert capsys.readouterr().out == f"{second}\n"
    assert first.name == second.name
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in second.parent.iterdir()) == [second.name, f"{second.name}.sha256"]
    (checkout / "bundles" / RECNN.name / "docs" / "README.md").write_text("# Other\n")
    assert package_bundle(checkout / "bundles" / RECNN.name, tmp_path / "c").read_bytes() != first.read_bytes()


def test_the_readme_says_how_to_run_and_points_at_nothing_outside(checkout):
    bundle = checkout / "bundles" / RECNN.name
    (bundle / "docs" / "README.md").write_text("# Title\n\nSee [a](../../other/docs/a.md), [b](losses.png).\n")
    title, note, text = contents(bundle)["docs/README.md"].decode().split("\n\n")
    assert (title, text) == ("# Title", "See a, [b](losses.png).\n")
    assert all(line.startswith(">") for line in note.splitlines())
    assert "--config_file BUNDLE/configs/inference.json --bundle_root BUNDLE" in note


def edit_metadata(bundle, **changes):
    file = bundle / "configs" / "metadata.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def pickle_a_component(bundle):
    from custom_components.networks import SRCNN

    torch.save(SRCNN(3), bundle / "models" / "whole.pt")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda bundle: edit_metadata(bundle, version="99.0"),
            r"expected a version .* changelog speaks of, got '99\.0'",
        ),
        (
            lambda bundle: edit_metadata(bundle, version="../1", changelog={"../1": ""}),
            r"such as 1\.2\.3 .* got '\.\./1'",
        ),
        (
            lambda bundle: edit_metadata(bundle, required_packages_version={"left-pad": "1"}),
            r"constraints\.txt: .*\['left-pad'\]",
        ),
        (lambda bundle: (bundle / "LICENSE").unlink(), r"LICENSE: expected a file of the bundle, got: No such file"),
        (lambda bundle: (bundle / "docs" / "README.md").unlink(), r"README\.md: expected a file of the bundle, got: "),
        (lambda bundle: (bundle / "configs" / "amp.json").write_text("{}"), r"other names .*\['configs/amp\.json'\]"),
        (lambda bundle: (bundle / "configs" / "train.json").write_text("{"), r"train\.json: expected JSON, got: "),
        (
            lambda bundle: (bundle / "configs" / "train.json").write_text("[]"),
            r"train\.json: expected a JSON object, got a list",
        ),
        (pickle_a_component, r"whole\.pt: expected tensors alone, got a pickled component"),
    ],
)
def test_a_bundle_that_is_not_as_expected(damage, message, checkout):
    bundle = checkout / "bundles" / RECNN.name
    damage(bundle)
    with pytest.raises(ScanError, match=message):
        contents(bundle)


def test_a_refusal_is_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "custom_components.package",
        "--bundle",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.fullmatch(
        r"error: \S+metadata\.json: expected a file of the bundle, got: No such file or directory\n", ran.stderr
    )
    assert not (tmp_path / "out").exists()


# What is in a package


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """All bundles, packaged and unzipped into one empty folder."""
    folder = tmp_path_factory.mktemp("packages")
    for bundle in BUNDLES:
        with zipfile.ZipFile(package_bundle(bundle, folder / "dist")) as archive:
            assert archive.testzip() is None
            archive.extractall(folder / "unzipped")
    return folder / "unzipped"


def component_folder(package):
    return package / package_name(ROOT / "bundles" / package.name)


@per_bundle
def test_files_and_checksums(name, packages):
    package = packages / name
    bundle = ROOT / "bundles" / name
    lines = [line.split("  ") for line in (package / "SHA256SUMS").read_text().splitlines()]
    assert [path for _, path in lines] == sorted(
        file.relative_to(package).as_posix()
        for file in package.rglob("*")
        if file.is_file() and file.name != "SHA256SUMS"
    )
    assert all(hashlib.sha256((package / path).read_bytes()).hexdigest() == digest for digest, path in lines)
    copied = [file for file in bundle.rglob("*") if file.suffix in {".pt", ".png", ".csv", ".txt", ".conf"}]
    for file in [bundle / "LICENSE", *copied]:
        if not {"output", "evaluation"} & {*file.relative_to(bundle).parts}:
            assert (package / file.relative_to(bundle)).read_bytes() == file.read_bytes()
    assert (component_folder(package) / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@per_bundle
def test_nothing_speaks_of_the_repository(name, packages):
    """Neither imports nor targets; and each link of the README goes to a file of the package."""
    package = packages / name
    sources = [*package.rglob("*.py"), *package.rglob("*.json")]
    assert len(sources) > 50
    assert [file for file in sources if "custom_components" in file.read_text() or "/../" in file.read_text()] == []
    links = re.findall(r"\]\((?!http|#)([^)]*)\)", (package / "docs" / "README.md").read_text())
    assert [link for link in links if not (package / "docs" / link).resolve().is_file()] == []


@per_bundle
def test_directory_version_and_schema_of_the_model_zoo(name, packages, tmp_path):
    """What `ci/verify_bundle.py` of the model zoo asks of every bundle; its other checks are below, run outside."""
    package = packages / name
    needed = ("LICENSE", "configs/metadata.json", "configs/inference.json", "models/model.pt", "docs/README.md")
    assert [file for file in needed if not (package / file).is_file()] == []
    assert [file for file in package.rglob("*") if file.stat().st_size > 25 * 1024**2] == []
    metadata = json.loads((package / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    assert {"name", "task", "authors", "copyright", "network_data_format"} <= metadata.keys()
    schema = tmp_path / "schema.json"  # there already, so that MONAI does not fetch it
    shutil.copy(ROOT / "tests" / "bundles" / "metadata_schema.json", schema)
    digest = hashlib.sha256(schema.read_bytes()).hexdigest()
    meta_file = str(package / "configs" / "metadata.json")
    verify_metadata(meta_file, filepath=str(schema), hash_val=digest, hash_type="sha256")
    (tmp_path / "bad.json").write_text(json.dumps({**metadata, "task": 3}))
    with pytest.raises(ValueError, match="3 is not of type 'string'"):
        verify_metadata(str(tmp_path / "bad.json"), filepath=str(schema), hash_val=digest, hash_type="sha256")


def named_packages(package):
    metadata = json.loads((package / "configs" / "metadata.json").read_text())
    return {"torch", "monai", "numpy", *metadata["required_packages_version"]}


def installed_with(names):
    """Distributions that `pip install` of these names brings along, by their own metadata."""
    found, waiting = {}, list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found[name] = importlib.metadata.distribution(name)
            needed = [Requirement(line) for line in found[name].requires or ()]
            waiting += [need.name for need in needed if not need.marker or need.marker.evaluate({"extra": ""})]
    return found


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 does not tell which package a module is of")
@per_bundle
def test_the_metadata_names_what_the_code_imports(name, packages):
    """By what is installed here; lazy imports too. `custom_components.losses` asks for torchvision by hand, and says so."""
    roots = set()
    for file in component_folder(packages / name).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            roots.update(module.split(".")[0] for module in modules)
    roots -= sys.stdlib_module_names | {component_folder(packages / name).name}
    owners = importlib.metadata.packages_distributions()
    assert {"torch", "monai", "PIL"} <= roots
    named = {canonicalize_name(package) for package in named_packages(packages / name)}
    allowed = named | {
        package for package in installed_with(["itk"]) if package.startswith("itk-")
    }  # itk is made of these
    assert [root for root in sorted(roots) if not {canonicalize_name(owner) for owner in owners[root]} & allowed] == []


def test_weights_of_another_bundle_come_with_their_terms(packages):
    package = packages / "fetal_mri_sr_esrgan"
    other = ROOT / "bundles" / "brain_mri_sr_dnsp"
    assert (package / "models/brain_mri_sr_dnsp_model_np.pt").read_bytes() == (
        other / "models/model_np.pt"
    ).read_bytes()
    terms = package / "docs/data_license_brain_mri_sr_dnsp.txt"
    assert terms.read_bytes() == (other / "docs/data_license.txt").read_bytes()


def test_push_to_the_hugging_face_hub(packages, tmp_path, monkeypatch):
    """The command of the README, without the network: what lies in the repository there, the model card too."""
    uploaded = {}

    class Api:
        def __init__(self, token):
            assert token is None  # the stored one

        def create_repo(self, repo_id, private, exist_ok):
            assert (repo_id, private, exist_ok) == ("me/brain_mri_sr_recnn", True, True)

        def upload_folder(self, repo_id, folder_path):
            uploaded[repo_id] = Path(folder_path)
            return "url"

        def create_tag(self, repo_id, tag, exist_ok):
            assert (repo_id, tag) == ("me/brain_mri_sr_recnn", "0.1.0")

    shutil.copytree(packages / RECNN.name, tmp_path / RECNN.name)
    monkeypatch.setattr(monai.bundle.scripts, "huggingface_hub", types.SimpleNamespace(HfApi=Api))
    push_to_hf_hub(f"me/{RECNN.name}", RECNN.name, str(tmp_path), version="0.1.0")
    card = (uploaded[f"me/{RECNN.name}"] / "README.md").read_text()
    assert card.startswith("---\ntags:\n- monai\n- medical\nlibrary_name: monai\nlicense: apache-2.0\n---\n# Brain MRI")


# Outside of the repository. One Python imports torch and MONAI, then forks a process for each command line.

SERVER = """
import importlib.util, json, os, runpy, sys
found = importlib.util.find_spec("custom_components") is not None
assert found == (sys.argv[1] == "inside"), "expected custom_components inside of the repository only"
import fire, ignite.handlers, itk, matplotlib.figure, monai.bundle, nibabel, torch
torch.set_num_threads(1)
monai.bundle.ComponentLocator().get_component_module_name("Compose")
for line in sys.stdin:
    arguments, folder, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.chdir(folder)
for number, name in enumerate((os.devnull, log, log)):
    os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), number)
if arguments[0].endswith(".py"):
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
else:
    sys.argv = ["monai.bundle", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def machine(packages, tmp_path_factory):
    """A folder for `sys.path` with the packages that the metadata names, and those that they need, alone."""
    folder = tmp_path_factory.mktemp("machine")
    names = {name for package in packages.iterdir() for name in named_packages(package)}
    for distribution in installed_with(names).values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).is_symlink():
                (folder / top).symlink_to(Path(distribution.locate_file(top)).resolve())
    return folder


@pytest.fixture(scope="module")
def servers(machine, tmp_path_factory):
    """`outside`, where nothing but the packages is, and `inside`, with the repository on the path."""
    # -S: no site-packages, nor what an editable installation of this project puts there
    command = [sys.executable, "-S", "-W", "ignore", "-c", SERVER]
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": tmp_path_factory.mktemp("cwd")}
    paths = {"outside": str(machine), "inside": os.pathsep.join([str(machine), str(ROOT)])}
    with contextlib.ExitStack() as stack:
        yield {
            side: stack.enter_context(
                subprocess.Popen([*command, side], env={**environment, "PYTHONPATH": path}, **pipes)
            )
            for side, path in paths.items()
        }


@pytest.fixture(scope="module")
def run(servers, tmp_path_factory):
    """Run command lines one after the other, each in a process of its own and in an empty folder, and give what they said."""

    def run(*commands, side="outside", cwd=None):
        folder = tmp_path_factory.mktemp("run")
        log = folder / "log.txt"
        (folder / "cwd").mkdir()
        for command in commands:
            request = [[str(part) for part in command], str(cwd or folder / "cwd"), str(log)]
            print(json.dumps(request), file=servers[side].stdin, flush=True)
            code = servers[side].stdout.readline().strip()
            assert code == "0", f"exit code {code} of {command}: {log.read_text()[-4000:]}"
        return log.read_text()

    return run


def inference(bundle, scans, output):
    files = ["--config_file", bundle / "configs" / "inference.json", "--bundle_root", bundle]
    options = ["--dataset_dir", scans, "--output_dir", output, "--device", "$torch.device('cpu')"]
    return ["run", *files, *options]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """One small oblique scan of smooth spots."""
    folder = tmp_path_factory.mktemp("scans")
    values = np.random.default_rng(0).random((18, 16, 14))
    values = 1000 * (values + np.roll(values, 1, 0) + np.roll(values, 1, 1) + np.roll(values, 1, 2))
    affine = np.array([[0.9, 0.1, 0, 5], [-0.1, 0.9, 0, -9], [0, 0, 1.2, 40], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), folder / "head.nii.gz")
    return folder


@pytest.fixture(scope="module")
def own_results(run, scans, tmp_path_factory):
    """What the repository's own bundles make of the scan: name -> image."""
    folder = tmp_path_factory.mktemp("own")
    run(*(inference(bundle, scans, folder / bundle.name) for bundle in BUNDLES), side="inside")
    return {bundle.name: nibabel.load(folder / bundle.name / "head_sr.nii.gz") for bundle in BUNDLES}


def assert_same_image(file, expected):
    image = nibabel.load(file)
    np.testing.assert_array_equal(np.asarray(image.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_array_equal(image.affine, expected.affine)
    assert image.get_data_dtype() == expected.get_data_dtype()


@pytest.mark.slow
def test_the_bundles_give_different_images(own_results):
    """Or the comparisons below would say little."""
    images = [np.asarray(image.dataobj) for image in own_results.values()]
    assert len({image.tobytes() for image in images}) == len(BUNDLES)


@pytest.mark.slow
def test_inference_outside_gives_the_same_voxels(packages, run, scans, own_results, tmp_path):
    run(*(inference(packages / name, scans, tmp_path / name) for name in NAMES))
    for name in NAMES:
        assert_same_image(tmp_path / name / "head_sr.nii.gz", own_results[name])


@pytest.mark.slow
@pytest.mark.parametrize("cwd", ["inside_of_the_bundle", "beside_it"])
def test_inference_by_relative_paths(cwd, packages, run, scans, own_results, tmp_path):
    """Inside of the bundle `--bundle_root` can be left out, as MONAI has it."""
    package = packages / RECNN.name
    if cwd == "beside_it":
        run(inference(Path(RECNN.name), scans, tmp_path / "out"), cwd=packages)
    else:
        command = inference(Path(), scans, tmp_path / "out")
        at = command.index("--bundle_root")
        run(command[:at] + command[at + 2 :], cwd=package)
    assert_same_image(tmp_path / "out" / "head_sr.nii.gz", own_results[RECNN.name])


IN_ONE_PROCESS = """
import json, sys
from monai.bundle import ConfigWorkflow
workflows = []
for root, scans, output in json.loads(sys.argv[1]):
    options = {"bundle_root": root, "dataset_dir": scans, "output_dir": output, "device": "$torch.device('cpu')"}
    workflow = ConfigWorkflow(f"{root}/configs/inference.json", logging_file=False, workflow_type="infer", **options)
    workflow.initialize()
    assert workflow.check_properties() == []
    workflows.append(workflow)
for workflow in workflows:
    workflow.run()
    workflow.finalize()
print("packages:", *sorted(name for name in sys.modules if "_mri_sr_" in name and "." not in name))
"""


@pytest.mark.slow
def test_packages_run_in_one_process(packages, run, scans, own_results, checkout, tmp_path):
    """All bundles, each asked for its properties, and one of them in a second version with other arithmetic."""
    bundle = checkout / "bundles" / RECNN.name
    edit_metadata(bundle, version="99.0", changelog={"99.0": "other"})
    with zipfile.ZipFile(package_bundle(bundle, tmp_path / "dist")) as archive:
        archive.extractall(tmp_path / "second")
    second = tmp_path / "second" / RECNN.name
    network = second / "brain_mri_sr_recnn_v99_0" / "networks" / "recnn.py"
    source = network.read_text()
    assert "def forward(" in source
    network.write_text(
        source.replace("def forward(", "def forward(self, x):\n        return 0 * x\n\n    def _forward(")
    )
    (tmp_path / "script.py").write_text(IN_ONE_PROCESS)
    runs = [(str(packages / name), str(scans), str(tmp_path / name)) for name in NAMES]
    runs.insert(1, (str(second), str(scans), str(tmp_path / "zero")))
    said = run([tmp_path / "script.py", json.dumps(runs)])
    assert said.split("packages: ")[1].split() == sorted(
        [*(package_name(bundle) for bundle in BUNDLES), "brain_mri_sr_recnn_v99_0"]
    )
    for name in NAMES:
        assert_same_image(tmp_path / name / "head_sr.nii.gz", own_results[name])
    assert np.ptp(np.asarray(nibabel.load(tmp_path / "zero" / "head_sr.nii.gz").dataobj)) == 0


@pytest.mark.slow
def test_shapes_and_exports_outside(packages, run, tmp_path):
    """`verify_net_in_out`, `ckpt_export` and `onnx_export`; the exported networks give what the repository's network gives."""
    commands, shapes = [], {}
    for name in ON_ONE_IMAGE:
        package, config = (
            packages / name,
            ConfigParser.load_config_file(ROOT / "bundles" / name / "configs" / "inference.json"),
        )
        shapes[name] = [1, 1, *(8, 10, 12)[: config["spatial_dims"]]]
        axes = {"x": {axis + 2: letter for axis, letter in enumerate("dhw"[: config["spatial_dims"]])}}
        given = ["--config_file", package / "configs/inference.json", "--bundle_root", package]
        given += ["--meta_file", package / "configs/metadata.json"]
        checkpoint = ["--ckpt_file", package / "models/model.pt", "--input_shape", shapes[name]]
        converter = {"input_names": ["x"], "dynamic_axes": axes}
        commands += [
            ["verify_net_in_out", "network_def", *given, "--device", "cpu", "--any", "9"],
            ["ckpt_export", "network_def", *given, *checkpoint, "--filepath", tmp_path / f"{name}.ts"],
        ]
        if name in TO_ONNX:
            onnx = ["--filepath", tmp_path / f"{name}.onnx", "--converter_kwargs", converter]
            commands.append(["onnx_export", "network_def", *given, *checkpoint, *onnx])
    run(*commands)
    for name in ON_ONE_IMAGE:
        config = ConfigParser.load_config_file(ROOT / "bundles" / name / "configs" / "inference.json")
        network = ConfigParser(config).get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(ROOT / "bundles" / name / "models/model.pt", weights_only=True))
        x = torch.rand(1, 1, *(9, 14, 11)[: len(shapes[name]) - 2], generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = network(x).numpy()
            np.testing.assert_array_equal(torch.jit.load(tmp_path / f"{name}.ts")(x).numpy(), expected)
        if name in TO_ONNX:
            session = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"])
            np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_training_outside_gives_the_same_weights(packages, run, tmp_path):
    """Both stages of the ESRGAN: the second reads weights of another bundle, which are in the package."""
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for subject in "abc":
        image = nibabel.Nifti1Image(0.5 + rng.random((32, 30, 28), dtype=np.float32), np.eye(4))
        nibabel.save(image, tmp_path / "scans" / f"{subject}_T1w.nii.gz")
    options = [
        "--dataset_dir",
        tmp_path / "scans",
        "--device",
        "$torch.device('cpu')",
        "--max_epochs",
        "1",
        "--val_interval",
        "1",
    ]
    options += ["--network_def::num_blocks", "1", "--network_def::num_filters", "8", "--network_def::growth", "4"]
    name = "fetal_mri_sr_esrgan"
    for side, bundle, shared in (
        ("own", ROOT / "bundles" / name, ROOT / "configs"),
        ("packaged", packages / name, None),
    ):
        folder = bundle / "configs"
        files = [folder / "train.json", folder / "train_gan.json", (shared or folder) / "smoke.json"]
        given = ["--config_file", str([str(file) for file in files]), "--bundle_root", bundle]
        run(["run", *given, *options, "--output_dir", tmp_path / side], side="inside" if side == "own" else "outside")
    for file in ("model.pt", "gan/model.pt"):
        own, packaged = (torch.load(tmp_path / side / file, weights_only=True) for side in ("own", "packaged"))
        assert own.keys() == packaged.keys()
        assert all(torch.equal(own[key], packaged[key]) for key in own)
