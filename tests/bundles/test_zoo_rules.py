"""What MONAI's model zoo and this project ask of a bundle, for each folder in bundles/ and each overlay in configs/."""

from __future__ import annotations

import inspect
import json
import os
import pydoc
import re
import sys
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ConfigWorkflow, ckpt_export, onnx_export
from monai.bundle import verify_net_in_out as verify_network
from monai.transforms import RandomizableTrait

from custom_components.compare.config import read_study
from custom_components.compare.definition import definition
from custom_components.networks import acquisition_condition

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path for path in (ROOT / "bundles").glob("*") if path.is_dir())


BASELINES = sorted((ROOT / "configs" / "baselines").glob("*.json"))
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.json"))
ON_INFERENCE = sorted((ROOT / "configs" / "inference").glob("*.json"))


def overlays(bundle):
    """What lies on a train.json: its evaluate.json and train_*.json, configs/*.json and, for ..._recnn, configs/recnn/*.json."""
    folders = [
        ROOT / "configs",
        *(path for path in (ROOT / "configs").glob("*/") if f"_{bundle.name}".endswith(f"_{path.name}")),
    ]
    return [
        bundle / "configs" / "evaluate.json",
        *sorted((bundle / "configs").glob("train_*.json")),
        *(file for folder in folders for file in sorted(folder.glob("*.json"))),
    ]


OVERLAYS = [(bundle, file) for bundle in BUNDLES for file in overlays(bundle)]
FILES = (
    "LICENSE",
    "configs/metadata.json",
    "configs/train.json",
    "configs/evaluate.json",
    "configs/inference.json",
    "configs/logging.conf",
    "docs/README.md",
    "docs/data_license.txt",
    "models/model.pt",
)
# of one name in train.json and inference.json, yet of each workflow its own; tables are made without rounding, whatever the machine
EACH_ITS_OWN = {"imports", "dataset_dir", "output_dir", "initialize", "run", "progress_bar", "num_workers", "amp_dtype"}
# what a paper, or the scans that its weights have seen, fixes in a bundle
OF_THE_PAPER = {
    "network_def",
    "loss",
    "p",
    "optimizer",
    "parameter_groups",
    "lr_scheduler",
    "learning_rate",
    "acquisition",
}
OF_THE_PAPER |= {"scale_factors", "val_scale_factors", "patch_size", "patches_per_scan", "batch_size", "iterations"}
OF_THE_PAPER |= {"max_epochs", "trained_range", "spatial_dims", "network_input", "default_factor"}
OF_THE_PAPER |= {
    "alpha",
    "beta",
    "gamma",
    "sharpness",
    "filter_patches",
    "network_factor",
    "stage",
    "weights",
    "checkpoint",
}
OF_THE_PAPER |= {"in_plane_only", "val_in_plane_only", "val_protocol", "load_training_scan", "informative_slices"}
OF_THE_PAPER |= {"notice_text"}
# where a bundle may differ from the others beside that: paths as `differences` gives them
ANY_INFERENCE = {"imports", "all_axes", "memory_format", "amp_dtype", "known_noise_std", "slice_thickness"}
ANY_INFERENCE |= {"denoising_strength", "uncertainty", "self_ensemble", "estimate_acquisition", "estimator"}
ANY_INFERENCE |= {"preprocessing::transforms::DescribeAcquisitiond"}
ANY_INFERENCE |= {f"inferer::{name}" for name in ("_target_", "spatial_dims", "all_axes", "denoising_strength")}
ANY_INFERENCE |= {"inferer::uncertainty", "inferer::self_ensemble", "postprocessing::transforms::SplitUncertaintyd"}
ANY_INFERENCE |= {"postprocessing::transforms::RestoreUncertaintyd"}
ANY_INFERENCE |= {
    f"postprocessing::transforms::SaveScand::{name}" for name in ("keys", "postfix", "dtype", "allow_missing_keys")
}
ANY_TRAIN = {"imports", "known_noise_std", "memory_format", "margin", "num_workers", "augmentation::transforms"}
ANY_TRAIN |= {"val_interval", "self_ensemble", "validate::inferer::self_ensemble", "estimate_acquisition", "estimator"}
ANY_TRAIN |= {
    "scale_weights",
    "profiles",
    "profile_weights",
    "lr_handler::epoch_level",
    "gradient_clipping::_disabled_",
}
ANY_TRAIN |= {f"hr_patch::{name}" for name in ("coarsen", "prob", "least_std")}
ANY_TRAIN |= {"train::trainer::prepare_batch"}
ANY_TRAIN |= {
    f"train::preprocessing::transforms::{name}" for name in ("%acquisition", "EnsureTyped", "SelectItemsd::keys")
}
ANY_TRAIN |= {"validate::preprocessing::transforms::DescribeAcquisitiond"}
ANY_TRAIN |= {f"validate::inferer::{name}" for name in ("_target_", "spatial_dims")}
OF_ITS_OWN = {("brain_mri_sr_any", "inference"): ANY_INFERENCE, ("brain_mri_sr_any", "train"): ANY_TRAIN}
WORKFLOW_IDS = {"initialize", "run", "finalize"}  # what ConfigWorkflow itself looks for
LOCATOR = ComponentLocator()
MACHINE_PATH = re.compile(r"(?<![\w.@:/-])/(?:home|root|tmp|mnt|media|opt|data|scratch|Users|work)/")

per_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)


def load(file):
    return json.loads(file.read_text())


def config(bundle, name):
    return load(bundle / "configs" / f"{name}.json")


def json_files():
    return sorted([*ROOT.glob("bundles/*/**/*.json"), *ROOT.glob("configs/**/*.json")])


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(node):
    """Each dictionary with a `_target_` in a config, at any depth."""
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for child in children:
        yield from blocks(child)


def differences(one, other, path=""):
    """Paths (`train::inferer`) at which two configs differ; blocks in a list are called by their class, a further block by itself.

    Where one of them has another class, or no block, the path is that of the block.
    """
    if isinstance(one, list) and isinstance(other, list):
        first, second = (_by_name(items) for items in (one, other))
        if not first or not second or [n for n in first if n in second] != [n for n in second if n in first]:
            return set() if one == other else {path}
        one, other = first, second
    if not (isinstance(one, dict) and isinstance(other, dict)) or ("_target_" in one) != ("_target_" in other):
        return set() if one == other else {path}
    absent = object()
    pairs = {key: (one.get(key, absent), other.get(key, absent)) for key in one.keys() | other.keys()}
    return {p for key, pair in pairs.items() for p in differences(*pair, f"{path}::{key}" if path else key)}


def _by_name(items):
    """Blocks and references of a list by their names; empty where it has other things, or one name twice."""
    named = {}
    for item in items:
        name = item.get("_target_", "").split(".")[-1] if isinstance(item, dict) else str(item)
        if not (isinstance(item, dict) or name.startswith(("%", "@"))) or not name or name in named:
            return {}
        named[name] = item
    return named


def test_differences_of_configs():
    block = {"_target_": "a.Load", "keys": "image"}
    assert differences({"a": [block, "%b"], "c": 1}, {"a": [block, "%b"], "c": 1}) == set()
    assert differences({"a": [block, "%b"]}, {"a": ["%b", block]}) == {"a"}
    assert differences({"a": [block, "%b"]}, {"a": [block | {"keys": "label"}, "%c", "%b"]}) == {
        "a::Load::keys",
        "a::%c",
    }
    assert differences({"a": ["$x", "$y"]}, {"a": ["$x"]}) == {"a"}
    assert differences({"a": {"b": [1, 2], "c": None}}, {"a": {"b": [1, 3]}, "d": 0}) == {"a::b", "a::c", "d"}
    assert differences({"a": block}, {"a": {"x": block}}) == {"a"}


def test_bundles_and_overlays_are_found():
    """An empty list would skip the other tests of this file."""
    assert BUNDLES and BASELINES and STUDIES and ON_INFERENCE
    laid_over = {file for _, file in OVERLAYS if file.is_relative_to(ROOT / "configs")}
    assert {*(ROOT / "configs").rglob("*.json")} == {*laid_over, *BASELINES, *STUDIES, *ON_INFERENCE}


# Files


@per_bundle
def test_name_and_files(bundle):
    assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)+", bundle.name), (
        "expected snake_case with task and data in the name"
    )
    assert [file for file in FILES if not (bundle / file).is_file() or not (bundle / file).stat().st_size] == []


@per_bundle
def test_no_file_over_25_mb(bundle):
    parts = [
        "LICENSE",
        *(bundle / "configs").rglob("*"),
        *(bundle / "docs").rglob("*"),
        *(bundle / "models").rglob("*"),
    ]
    assert [str(file) for file in parts if (bundle / file).stat().st_size > 25 * 1024**2] == []


def wrong_indents(text):
    """Lines of JSON that do not stand 4 columns in per list or dictionary around them; a short list may fill a line."""
    wrong, depth = [], 0
    for line in text.splitlines():
        plain = re.sub(r'"(\\.|[^"\\])*"', '""', line)
        closing = len(re.match(r"\s*([\]}\s]*)", plain)[1].replace(" ", ""))
        if line != " " * 4 * (depth - closing) + line.strip():
            wrong.append(line)
        depth += len(re.findall(r"[\[{]", plain)) - len(re.findall(r"[\]}]", plain))
    return wrong


def test_wrong_indents_are_found():
    assert (
        wrong_indents(
            '{\n    "a": [1, [2, 3]],\n    "b]": {\n        "c": [\n            "}\\"["\n        ]\n    }\n}\n'
        )
        == []
    )
    assert wrong_indents('{\n  "a": [\n        1\n    ]\n}') == ['  "a": [']
    assert wrong_indents('{\n    "a": [\n    1\n    ] \n}') == ["    1", "    ] "]


@pytest.mark.parametrize("file", json_files(), ids=name_of)
def test_json_is_indented_by_4_and_has_no_key_twice(file, monkeypatch):
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    assert ConfigParser.load_config_file(file)
    assert wrong_indents(file.read_text(encoding="utf-8")) == []
    assert file.read_text(encoding="utf-8").endswith("}\n")


def test_a_key_that_stands_twice_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_FAIL_ON_DUPLICATE_CONFIG", "1")
    (tmp_path / "train.json").write_text('{"seed": 0, "seed": 1}')
    with pytest.raises(ValueError, match="seed"):
        ConfigParser.load_config_file(tmp_path / "train.json")


def machine_paths(text):
    return [line.strip() for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_no_paths_of_one_machine():
    texts = [*json_files(), *ROOT.glob("bundles/*/configs/*.conf"), *ROOT.glob("bundles/*/docs/**/*.*")]
    found = {
        name_of(file): lines for file in texts if file.suffix != ".png" and (lines := machine_paths(file.read_text()))
    }
    assert found == {}
    assert machine_paths('"dataset_dir": "/home/me/scans"') and not machine_paths(
        '"/path/to/scans", "a/home/b", "x + \'/eval\'"'
    )


# Metadata


@per_bundle
def test_metadata_against_the_schema(bundle):
    metadata = config(bundle, "metadata")
    jsonschema.validate(metadata, load(Path(__file__).with_name("metadata_schema.json")))
    assert metadata["version"] in metadata["changelog"]


@per_bundle
def test_metadata_names_the_tested_versions(bundle):
    """`constraints.txt` and the metadata say the same; Python 3.10 has constraints of its own and is left out."""
    lines = [line.partition(";") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {tuple(pin.strip().split("==")) for pin, _, marker in lines if "<" not in marker}
    metadata = config(bundle, "metadata")
    named = {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    named |= metadata["required_packages_version"]
    assert {name.lower().replace("_", "-"): version for name, version in named.items()}.items() <= tested


def more_arguments(bundle):
    """What a network takes beside the image: a target and what is known of the acquisition, for one."""
    if config(bundle, "inference")["network_def"]["_target_"] != "custom_components.networks.AnyScaleSR":
        return {}
    return {"shape": (13, 20, 26), "condition": acquisition_condition((1, 20 / 13, 2), (1, 1, 1))[None]}


@per_bundle
def test_documented_shapes(bundle):
    """The output for the documented input has the documented channels, sizes and type, at an odd free size."""
    configs = {
        "meta_file": str(bundle / "configs/metadata.json"),
        "config_file": str(bundle / "configs/inference.json"),
    }
    more = more_arguments(bundle)
    verify_network("network_def", device="cpu", any=13, extra_forward_args=more, **configs)
    formats = config(bundle, "metadata")["network_data_format"]
    (given, expected) = formats["inputs"]["image"], formats["outputs"]["pred"]

    def sizes(shape):
        return [13 if n == "*" else n if isinstance(n, int) else eval(n, {"p": 1, "n": 1}) for n in shape]

    network = ConfigParser(config(bundle, "inference")).get_parsed_content("network_def").eval()
    with torch.inference_mode():
        output = network(torch.rand(1, given["num_channels"], *sizes(given["spatial_shape"])), **more)
    assert list(output.shape) == [1, expected["num_channels"], *more.get("shape", sizes(expected["spatial_shape"]))]


# Configs


def unknown_ids(overlay, base):
    """Ids of an overlay that stand nowhere in the config below: MONAI would add them in silence.

    Allowed are new ids that the overlay itself refers to (`@id`, `%id`) or that MONAI runs, and an argument that the
    class or function of an existing block takes.
    """
    text = json.dumps(overlay)
    unknown = []
    for key in overlay.keys() - WORKFLOW_IDS:
        *parents, leaf = re.split("::|#", key.removeprefix("+"))
        node = base
        for parent in parents:
            node = node[int(parent) if isinstance(node, list) else parent] if has(node, parent) else None
        referred = not key.startswith("+") and not parents and re.search(rf"[@%]{re.escape(key)}(?![\w])", text)
        if not (has(node, leaf) or referred or (not key.startswith("+") and takes(node, leaf))):
            unknown.append(key)
    return sorted(unknown)


def has(node, key):
    return key in node if isinstance(node, dict) else isinstance(node, list) and key.isdigit() and int(key) < len(node)


def takes(block, argument):
    """Whether the `_target_` of a block has a parameter of this name."""
    if not isinstance(block, dict) or "_target_" not in block:
        return False
    target = pydoc.locate(ConfigComponent(block, locator=LOCATOR).resolve_module_name())
    return argument == "_disabled_" or argument in inspect.signature(target).parameters


def test_unknown_ids_finds_what_is_misspelt():
    base = {"amp": False, "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}, "train": {"handlers": [{"a": 1}]}}
    good = {
        "amp": True,
        "optimizer::lr": 1,
        "optimizer#momentum": 0.9,
        "+train::handlers": ["%clip"],
        "clip": {},
        "optimizer::_disabled_": True,
        "train::handlers::0::a": 2,
    }
    assert unknown_ids(good, base) == []
    bad = {
        "Amp": True,
        "optimizer::momentun": 0.9,
        "train::handler": [],
        "+optimiser": {},
        "trian::handlers": [],
        "clip": {},
    }
    assert unknown_ids(bad, base) == sorted(bad)


@pytest.mark.parametrize(("bundle", "file"), OVERLAYS, ids=name_of)
def test_an_overlay_changes_only_what_is_there(bundle, file):
    """A bundle's own overlay may lie on the further stages of its training too, `train_*.json`."""
    ids = config(bundle, "train")
    if file.parent.parent == ROOT / "configs":
        for stage in sorted((bundle / "configs").glob("train_*.json")):
            ids |= load(stage)
    assert unknown_ids(load(file), ids) == []


@pytest.mark.parametrize("file", ON_INFERENCE, ids=name_of)
@per_bundle
def test_an_overlay_on_inference_changes_only_what_is_there(bundle, file):
    assert unknown_ids(load(file), config(bundle, "inference")) == []


@pytest.mark.parametrize("file", BASELINES, ids=name_of)
@per_bundle
def test_a_baseline_lies_on_inference(bundle, file):
    """It takes the network's place: its other ids are there, and it reads no weights."""
    assert unknown_ids(load(file), config(bundle, "inference")) == []
    assert load(file)["network_def"]["_target_"].startswith("custom_components.baselines.")
    assert "%weights_loader" not in load(file)["handlers"]


@pytest.mark.parametrize("file", STUDIES, ids=name_of)
def test_a_study_can_be_read_and_its_methods_run(file, scans, monkeypatch, tmp_path):
    """Each bundle, overlay, option and checkpoint of it is there; those that are not part of the project are stood in for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "authors").mkdir()
    for name in re.findall(r"[\w.]+\.caffemodel", file.read_text()):
        (tmp_path / "authors" / name).write_bytes(b"stand-in")
    given = {"dataset_dir": str(scans), "authors": str(tmp_path / "authors")}
    study = read_study(file, **{name: value for name, value in given.items() if name in load(file)})
    for factor in study.scale_factors:
        for method in study.methods:
            assert definition(study, factor, method)["config"]["network_def"]


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
@per_bundle
def test_handlers_are_named_at_the_top(bundle, name):
    """So that an overlay can drop or change one by `"name::_disabled_": true`."""
    base = config(bundle, "train") if name == "evaluate" else {}
    merged = ConfigParser(base | {key: value for key, value in config(bundle, name).items() if "::" not in key}).config
    lists = [merged.get("handlers", [])]
    lists += [merged.get(part, {}).get("handlers", []) for part in ("train", "validate")]
    lists += [value for key, value in config(bundle, name).items() if key.endswith("::handlers")]
    handlers = [handler for handlers in lists for handler in handlers]
    assert handlers
    for handler in handlers:
        assert isinstance(handler, str) and handler.startswith("%"), f"expected '%name', got {handler}"
        assert "_target_" in merged[handler[1:]]


@per_bundle
def test_train_and_inference_share_what_has_one_name(bundle):
    train, inference = config(bundle, "train"), config(bundle, "inference")
    shared = (train.keys() & inference.keys()) - EACH_ITS_OWN
    assert {"bundle_root", "device", "network_def", "network"} <= shared
    assert {key: train[key] for key in shared} == {key: inference[key] for key in shared}


@pytest.mark.parametrize("name", ["train", "evaluate", "inference"])
def test_bundles_share_what_is_not_their_own(name):
    """What a paper fixes may differ; the rest stands in each bundle, as each is whole in itself, and must not drift."""
    configs = {b.name: {k: v for k, v in config(b, name).items() if k not in OF_THE_PAPER} for b in BUNDLES}
    first = configs.pop("brain_mri_sr_recnn")
    assert len(first) > 3 and configs
    for bundle, other in configs.items():
        assert differences(other, first) <= OF_ITS_OWN.get((bundle, name), set()), bundle


@per_bundle
def test_training_scans_are_loaded_once(bundle):
    """CacheDataset keeps what comes before the first random transform, and counts a Compose inside another as one."""
    parser = ConfigParser(config(bundle, "train"))
    assert parser["train"]["cached_scans"]["transform"] == "@load_training_scan"
    transform = parser.get_parsed_content("load_training_scan")
    assert transform.transforms
    assert [t for t in transform.transforms if isinstance(t, RandomizableTrait)] == []


@per_bundle
def test_validation_uses_the_components_of_inference(bundle):
    """A number in a table is a number that a user gets: what both use has the same arguments.

    `keys` may differ, as validation has no LR scan to write, and so may arguments that only one of the two gives.
    """
    train, inference = config(bundle, "train"), config(bundle, "inference")
    parts = ("preprocessing", "inferer", "postprocessing")
    used = {block["_target_"]: block for part in parts for block in blocks(inference[part])}
    validation = {block["_target_"]: block for part in parts for block in blocks(train["validate"][part])}
    both = (used.keys() & validation.keys()) - {"Compose"}
    assert used[inference["inferer"]["_target_"]]["_target_"] in both
    for target in both:
        arguments = (used[target].keys() & validation[target].keys()) - {"keys"}
        assert {a: validation[target][a] for a in arguments} == {a: used[target][a] for a in arguments}, target


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three small scans of three subjects, with the sections of a data set in Decathlon form."""
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for subject in ("a", "b", "c"):
        image = nibabel.Nifti1Image(0.5 + rng.random((56, 52, 50), dtype=np.float32), np.eye(4))
        nibabel.save(image, folder / f"{subject}_T1w.nii.gz")
    sections = {"training": ["a"], "validation": ["b"], "test": ["c"]}
    entries = {name: [{"image": f"{s}_T1w.nii.gz", "subject": s} for s in names] for name, names in sections.items()}
    (folder / "dataset.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize(
    ("workflow", "names"), [("train", ["train"]), ("train", ["train", "evaluate"]), ("inference", ["inference"])]
)
@per_bundle
def test_property_ids(bundle, workflow, names, scans, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what a bundle's `initialize` may set
    monkeypatch.setattr(sys, "path", list(sys.path))
    options = {"bundle_root": str(bundle), "dataset_dir": str(scans), "output_dir": str(tmp_path)}
    options["device"] = "$torch.device('cpu')"
    if workflow == "train":
        options["num_workers"] = 0
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    assert options.keys() <= ConfigParser.load_config_files(files).keys()
    run = ConfigWorkflow(config_file=files, logging_file=False, workflow_type=workflow, **options)
    run.initialize()
    assert run.check_properties() == []
    # what is optional in MONAI is there as well, but for the training's own post-processing and metric
    optional = {"train_postprocessing", "train_key_metric", "handlers" if workflow == "train" else "key_metric"}
    absent = [
        name for name, prop in run.properties.items() if run._get_prop_id(name, prop | {"required": False}) is None
    ]
    assert set(absent) - optional == set()


# Weights


@per_bundle
def test_weights_load_strictly_and_lie_on_the_cpu(bundle):
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    assert {(value.device.type, value.dtype) for value in state.values()} == {("cpu", torch.float32)}
    network = ConfigParser(config(bundle, "inference")).get_parsed_content("network_def")
    network.load_state_dict(state, strict=True)


# torch speaks of its own exporters and of what they use inside; MONAI calls them so
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*dynamic_axes")
@pytest.mark.parametrize("export", ["torchscript", "onnx"])
@pytest.mark.parametrize(
    "bundle", [bundle for bundle in BUNDLES if not more_arguments(bundle)], ids=lambda bundle: bundle.name
)
def test_exports_give_the_same_output(bundle, export, tmp_path, monkeypatch):
    """On a size that is not the one of the export: the free sizes are really free.

    Networks that take more than the image have an export of their own, `custom_components.runtimes.export_any_scale`.
    """
    monkeypatch.setattr(sys, "path", list(sys.path))
    definition = config(bundle, "inference")
    network = ConfigParser(definition).get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models/model.pt", weights_only=True))
    channels = config(bundle, "metadata")["network_data_format"]["inputs"]["image"]["num_channels"]
    dims = definition["spatial_dims"]
    x = torch.rand(1, channels, *(9, 14, 11)[:dims], generator=torch.Generator().manual_seed(0))
    file = tmp_path / ("model.ts" if export == "torchscript" else "model.onnx")
    files = {"filepath": str(file), "ckpt_file": str(bundle / "models/model.pt")}
    files |= {"config_file": str(bundle / "configs/inference.json"), "meta_file": str(bundle / "configs/metadata.json")}
    shape = [1, channels, *(8, 10, 12)[:dims]]
    if export == "torchscript":
        ckpt_export("network_def", input_shape=shape, **files)
        with torch.inference_mode():
            y = torch.jit.load(file)(x).numpy()
    else:
        axes = {"x": {axis + 2: name for axis, name in enumerate("dhw"[:dims])}}
        onnx_export(
            "network_def", input_shape=shape, converter_kwargs={"input_names": ["x"], "dynamic_axes": axes}, **files
        )
        y = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"]).run(
            None, {"x": x.numpy()}
        )[0]
    with torch.inference_mode():
        np.testing.assert_allclose(y, network(x).numpy(), atol=1e-4, rtol=0)
