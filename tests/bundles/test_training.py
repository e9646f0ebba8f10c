"""Training by `train.json` and the overlays in configs/, on small scans."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines.utils import IterationEvents
from scipy.ndimage import gaussian_filter

from custom_components.inferers import AutocastInferer

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundles" / "brain_mri_sr_recnn"
TRAIN = BUNDLE / "configs" / "train.json"
CONFIGS = ROOT / "configs"
SMOKE = CONFIGS / "smoke.json"
OVERLAYS = sorted((CONFIGS / "recnn").glob("*.json"))
SHORT = CONFIGS / "short_training.json"
NETWORK = {"network_def::num_layers": 3, "network_def::num_filters": 4}  # with smoke.json
EACH_EPOCH = {"val_interval": 1}


def head(seed, shape=(18, 20, 16)):
    """A smooth volume with detail in it, positive, of int16 as scanners give it."""
    rng = np.random.default_rng(seed)
    volume = gaussian_filter(rng.random(shape), 2) + 0.15 * gaussian_filter(rng.random(shape), 0.7)
    return (1000 * (volume - volume.min()) / np.ptp(volume)).astype(np.int16)


def write_scan(path, seed, **kwargs):
    nibabel.save(nibabel.Nifti1Image(head(seed, **kwargs), np.diag([1, 1.1, 0.9, 1])), path)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A plain folder: three subjects, one of which the seed takes for validation."""
    folder = tmp_path_factory.mktemp("plain")
    for i in range(3):
        write_scan(folder / f"s{i}_T1w.nii.gz", i)
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """With dataset.json: 12 adult and 4 fetal subjects for training, 2 for validation."""
    folder = tmp_path_factory.mktemp("decathlon")
    contrasts = ["T2w"] * 3 + ["FLAIR"] + ["T1w"] * 8
    adults = [
        {"image": f"a{i}.nii.gz", "subject": f"a{i}", "population": "adult", "modality": modality}
        for i, modality in enumerate(contrasts)
    ]
    names = ("sta-25", "sta-30", "sta-33", "sta-36")
    fetuses = [{"image": f"{name}.nii.gz", "subject": name, "population": "fetal"} for name in names]
    held_out = [{"image": f"v{i}.nii.gz", "subject": f"v{i}"} for i in range(2)]
    for seed, entry in enumerate([*adults, *fetuses, *held_out]):
        write_scan(folder / entry["image"], seed, shape=(10, 12, 8))
    (folder / "dataset.json").write_text(json.dumps({"training": adults + fetuses, "validation": held_out}))
    return folder


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Build a training run in this process; `smoke=False` leaves the sizes of the config."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back what a workflow sets
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.chdir(ROOT)

    def make(dataset_dir, *overlays, output="out", smoke=True, **options):
        files = [str(TRAIN), *map(str, overlays), *([str(SMOKE)] if smoke else [])]
        given = {
            "bundle_root": str(BUNDLE),
            "dataset_dir": str(dataset_dir),
            "output_dir": str(tmp_path / output),
            "device": "$torch.device('cpu')",
            **(NETWORK | EACH_EPOCH if smoke else {}),
            **options,
        }
        workflow = ConfigWorkflow(files, logging_file=False, workflow_type="train", **given)
        workflow.initialize()
        return workflow

    return make


@pytest.fixture
def train(prepare):
    """Run a training in this process and give its weights."""

    def run(*args, **options):
        workflow = prepare(*args, **options)
        workflow.run()
        return dict(workflow.parser.get_parsed_content("network_def").state_dict())

    return run


def rows(folder):
    with (folder / "losses.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def load(path):
    return torch.load(path, weights_only=True)


# The run


def test_smoke_training_writes_what_a_user_looks_at(train, scans, tmp_path, capsys):
    weights = train(scans, learning_rate=0.003, max_epochs=4)
    out = tmp_path / "out"
    names = {re.sub(r"tfevents.*", "tfevents", path.name) for path in out.iterdir()}
    assert names == {"losses.csv", "losses.png", "last.pt", "model.pt", "events.out.tfevents"}
    course = rows(out)
    assert [(row["epoch"], row["iteration"]) for row in course] == [(1, 4), (2, 8), (3, 12), (4, 16)]
    assert course[-1]["loss"] < 0.5 * course[0]["loss"]
    assert course[-1]["psnr"] > course[0]["psnr"] + 0.3
    assert all(0 < row["ssim"] < 1 and 0 <= row["data_share"] < 1 for row in course)
    assert len({row["spline_psnr"] for row in course}) == 1
    best = max(course, key=lambda row: row["psnr"])
    state = load(out / "last.pt")
    assert (state["best_metric_epoch"], state["epoch"]) == (best["epoch"], 4)
    assert state["best_metric"] == pytest.approx(best["psnr"])
    assert equal(state["network"], weights)
    model = load(out / "model.pt")
    assert equal(model, weights) == (best["epoch"] == 4)
    assert {(v.device.type, v.dtype) for v in model.values()} == {("cpu", torch.float32)}
    assert re.search(r"Epoch \[4/4\]: \[4/4\] 100%.*loss=", capsys.readouterr().err)


def test_tensorboard_holds_loss_and_metrics(train, scans, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(scans)
    events = {}
    for file in (tmp_path / "out").glob("events*"):
        accumulator = EventAccumulator(str(file))
        accumulator.Reload()
        events |= {tag: accumulator.Scalars(tag) for tag in accumulator.Tags()["scalars"]}
    assert [event.step for event in events["train_loss"]] == list(range(1, 9))
    assert [e.value for e in events["psnr"]] == pytest.approx([r["psnr"] for r in rows(tmp_path / "out")], rel=1e-5)


@pytest.mark.slow
def test_equal_seeds_give_equal_weights(train, scans):
    given = {
        name: train(scans, output=name, **options)
        for name, options in {
            "a": {},
            "again": {},
            "seed": {"seed": 1},
            "workers": {"num_workers": 2},
            "workers again": {"num_workers": 2},
        }.items()
    }
    assert equal(given["a"], given["again"])
    assert equal(given["workers"], given["workers again"])
    assert not equal(given["a"], given["seed"])


def at_kill(tmp_path, event, action):
    """An overlay that lets a run do something to itself at an event."""
    path = tmp_path / "kill.json"
    run = [f"$@train::trainer.add_event_handler({event}, lambda: {action})", "$@train::trainer.run()"]
    path.write_text(json.dumps({"+imports": ["$import os", "$import ignite"], "run": run}))
    return path


KILL = "os.kill(os.getpid(), 9)"
HALF = "setattr(torch, 'save', lambda state, path: (open(path, 'wb').write(b'PK half of it'), " + KILL + "))"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "action", "workers"),
    [
        ("ignite.engine.Events.ITERATION_COMPLETED(once=6)", KILL, 0),
        ("ignite.engine.Events.ITERATION_COMPLETED(once=7)", KILL, 2),
        ("ignite.engine.Events.EPOCH_STARTED(once=2)", HALF, 0),  # in the middle of the checkpoint of epoch 2
    ],
    ids=["iteration", "iteration with workers", "checkpoint"],
)
def test_a_killed_run_ends_as_the_uninterrupted_one(train, start, scans, tmp_path, event, action, workers):
    options = {"max_epochs": 3, "num_workers": workers}  # an epoch has 4 iterations
    whole = train(scans, output="whole", **options)
    files = [str(TRAIN), str(SMOKE), str(at_kill(tmp_path, event, action))]
    killed = start(scans, tmp_path / "out", config_file=files, **NETWORK, **EACH_EPOCH, **options)
    assert killed.wait() == -signal.SIGKILL, killed.stderr
    out = tmp_path / "out"
    first = load(out / "last.pt")
    assert first["epoch"] == 1
    assert load(out / "model.pt").keys() == whole.keys()
    assert equal(train(scans, **options), whole)
    for name in ("best_metric", "best_metric_epoch", "epoch", "iteration"):
        assert load(out / "last.pt")[name] == load(tmp_path / "whole/last.pt")[name]
    assert equal(load(out / "model.pt"), load(tmp_path / "whole/model.pt"))
    course, expected = rows(out), rows(tmp_path / "whole")
    assert [row["epoch"] for row in course] == [1, 2, 3]
    same = ("iteration", "loss", "psnr", "ssim", "learning_rate")
    assert [[row[n] for n in same] for row in course] == [[row[n] for n in same] for row in expected]
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


# The data


def subjects(workflow, part):
    return {item["subject"] for item in workflow.parser.get_parsed_content(f"{part}::scans")}


def test_a_plain_folder_is_split_by_the_seed(prepare, scans):
    held_out = set()
    for seed in range(6):
        workflow = prepare(scans, seed=seed)
        training, validation = subjects(workflow, "train"), subjects(workflow, "validate")
        assert training | validation == {"s0", "s1", "s2"} and len(validation) == 1 and not training & validation
        held_out |= validation
    assert len(held_out) > 1


def test_dataset_json_gives_the_split(prepare, many):
    workflow = prepare(many)
    assert subjects(workflow, "validate") == {"v0", "v1"}
    assert len(subjects(workflow, "train")) == 16


def test_scale_factors_are_drawn_and_a_batch_has_its_size(prepare, scans):
    options = {"scale_factors": [2, 3, [1, 1, 2.5]], "patches_per_scan": 64, "batch_size": 8}
    workflow = prepare(scans, **options)
    acquire = next(
        t.acquire
        for t in workflow.parser.get_parsed_content("train::preprocessing").transforms
        if hasattr(t, "acquire")
    )
    dataset = workflow.parser.get_parsed_content("train::dataset")
    assert len(dataset) == 128
    drawn = {acquire.factors for i in range(128) if dataset[i]}
    assert drawn == {(2, 2, 2), (3, 3, 3), (1, 1, 2.5), (1, 2.5, 1), (2.5, 1, 1)}
    batch = next(iter(workflow.parser.get_parsed_content("train::dataloader")))
    assert {name: tuple(value.shape) for name, value in batch.items()} == dict.fromkeys(
        ("image", "target"), (8, 1, 9, 9, 9)
    )


def test_biases_learn_at_a_tenth(prepare, scans):
    workflow = prepare(scans)
    network = workflow.parser.get_parsed_content("network")
    groups = workflow.parser.get_parsed_content("optimizer").param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    named = dict(network.named_parameters())
    assert len(rate) == len(named) == 6
    for name, parameter in named.items():
        assert rate[id(parameter)] == pytest.approx(1e-5 if name.endswith("bias") else 1e-4)


# The overlays. Each says what it changes; a new one needs a line here.

TABLE_1 = [2, [2, 2, 3], [2, 2.5, 2], [2, 3, 3], 2.5, 3]


def optimiser(kind, **expected):
    def check(get):
        optimizer = get("optimizer")
        assert type(optimizer) is kind
        rates = sorted({group["lr"] for group in optimizer.param_groups})
        assert rates == pytest.approx([0.1 * expected["lr"], expected["lr"]])
        for group in optimizer.param_groups:
            assert {name: group[name] for name in expected.keys() - {"lr"}} == {
                name: value for name, value in expected.items() if name != "lr"
            }

    return check


def convolutions(number=10, filters=48, size=3):
    def check(get):
        layers = [m for m in get("network").modules() if isinstance(m, torch.nn.Conv3d)]
        assert len(layers) == number
        assert {layer.out_channels for layer in layers[:-1]} == {filters}
        assert {layer.kernel_size for layer in layers} == {(size,) * 3}

    return check


def spread(std, uniform=False):
    def check(get):
        weight = get("network").body[2].weight
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert (weight.abs().max().item() < 1.8 * std) == uniform

    return check


def patch(size):
    def check(get):
        assert get("train::dataset")[0]["image"].shape == (1, size, size, size)

    return check


def number_of_subjects(number):
    def check(get):
        assert len({item["subject"] for item in get("train::scans")}) == number == len(get("train::scans"))

    return check


def scales(factors, patches=3200):
    def check(get):
        assert get("scale_factors") == factors
        assert len(get("train::dataset")) == 10 * patches
        assert [item["scale_factor"] for item in get("validate::scans")[: len(TABLE_1)]] == TABLE_1
        convolutions(20, 64)(get)

    return check


def residual(expected):
    def check(get):
        network = get("network")
        for parameter in network.parameters():
            torch.nn.init.zeros_(parameter)
        x = torch.rand(1, 1, 5, 5, 5)
        assert torch.equal(network(x), x if expected else torch.zeros_like(x))

    return check


def clipping(get):
    optimiser(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=False)(get)
    assert get("gradient_clipping").optimizer is get("optimizer")


def baseline(get):
    convolutions(10, 64)(get)
    number_of_subjects(10)(get)
    assert get("scale_factors") == [2]


def shipped(get):
    found = [item["subject"] for item in get("train::scans")]
    assert len(found) == 2 * 12 + 3 * 4 + 4 and len(set(found)) == 16
    assert isinstance(get("train::inferer"), AutocastInferer)
    assert get("lr_scheduler").total_steps == 28 * 40 * 64 / 4
    patch(32)(get)


HE = (2 / (27 * 48)) ** 0.5
CHECKS = {
    "baseline": baseline,
    "depth_3": convolutions(3),
    "depth_7": convolutions(7),
    "depth_12": convolutions(12),
    "depth_20": convolutions(20),
    "filter_size_5": convolutions(size=5),
    "filters_16": convolutions(filters=16),
    "filters_32": convolutions(filters=32),
    "initialisation_normal_0.001": spread(0.001),
    "initialisation_normal_0.01": spread(0.01),
    "initialisation_xavier": spread((1 / (27 * 48)) ** 0.5, uniform=True),
    "non_residual": residual(False),
    "optimiser_nag": optimiser(torch.optim.SGD, lr=1e-4, momentum=0.9, nesterov=True),
    "optimiser_rmsprop": optimiser(torch.optim.RMSprop, lr=1e-4),
    "optimiser_sgd_gc": clipping,
    "patch_size_11": patch(11),
    "patch_size_17": patch(17),
    "patch_size_31": patch(31),
    "scales_2": scales([2]),
    "scales_2_3": scales([2, 3]),
    "scales_2_3_double": scales([2, 3], 6400),
    "scales_3": scales([3]),
    "shipped_weights": shipped,
    "subjects_1": number_of_subjects(1),
    "subjects_5": number_of_subjects(5),
    "twenty_layers": convolutions(20, 64),
}


@pytest.mark.parametrize("file", OVERLAYS, ids=lambda file: file.stem)
def test_an_overlay_does_what_its_name_says(prepare, many, file):
    below = [SHORT] if file.stem == "shipped_weights" else []
    workflow = prepare(many, *below, file, smoke=False, num_workers=0)
    assert workflow.parser.get_parsed_content("train::trainer").optimizer is workflow.parser.get_parsed_content(
        "optimizer"
    )
    CHECKS[file.stem](workflow.parser.get_parsed_content)


def test_without_overlay(prepare, many):
    """The paper's training, and the checks of the overlays do not hold by themselves."""
    get = prepare(many, smoke=False, num_workers=0).parser.get_parsed_content
    optimiser(torch.optim.Adam, lr=1e-4, betas=(0.9, 0.999))(get)
    convolutions()(get)
    spread(HE)(get)
    patch(25)(get)
    assert get("train::dataloader").batch_size == 64
    assert isinstance(get("train::trainer").loss_function, torch.nn.MSELoss)
    residual(True)(get)


@pytest.mark.parametrize(
    "name", ["optimiser_nag", "optimiser_rmsprop", "initialisation_xavier", "non_residual", "filter_size_5"]
)
def test_overlays_that_change_the_steps_train(train, scans, tmp_path, name):
    options = {"max_epochs": 1, "patches_per_scan": 1}
    changed, plain = (
        train(scans, CONFIGS / "recnn" / f"{name}.json", **options),
        train(scans, output="plain", **options),
    )
    assert not all(value.shape == plain[key].shape and torch.equal(value, plain[key]) for key, value in changed.items())
    assert np.isfinite(rows(tmp_path / "out")[0]["loss"])


def test_gradients_are_clipped_to_theta_over_the_learning_rate(prepare, scans):
    theta, seen = 1e-6, []
    overlay = CONFIGS / "recnn" / "optimiser_sgd_gc.json"
    workflow = prepare(scans, overlay, max_epochs=1, **{"gradient_clipping::theta": theta})
    trainer = workflow.parser.get_parsed_content("train::trainer")
    groups = trainer.optimizer.param_groups

    def record():
        seen.append([max(p.grad.abs().max().item() for p in g["params"]) * g["lr"] / theta for g in groups])

    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, record)  # after the handler of the config
    workflow.run()
    assert len(seen) == 4
    assert np.array(seen) == pytest.approx(1, rel=1e-4)


def test_amp_convolves_in_bfloat16(prepare, scans, tmp_path):
    workflow = prepare(scans, CONFIGS / "amp.json", max_epochs=1)
    trainer, seen = workflow.parser.get_parsed_content("train::trainer"), set()
    hook = workflow.parser.get_parsed_content("network").body[2].register_forward_hook
    handle = hook(lambda _, __, output: seen.add(output.dtype))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.add(("pred", e.state.output["pred"].dtype)))
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=4), handle.remove)
    workflow.run()
    assert seen == {torch.bfloat16, ("pred", torch.float32)}
    assert np.isfinite(rows(tmp_path / "out")[0]["loss"])


def test_fine_tuning_starts_from_given_weights(prepare, train, scans, tmp_path):
    before = train(scans, output="before", max_epochs=1)
    torch.save(before, tmp_path / "weights.pt")
    overlay = CONFIGS / "fine_tune.json"
    workflow = prepare(scans, overlay, start_from=str(tmp_path / "weights.pt"), max_epochs=1)
    assert equal(workflow.parser.get_parsed_content("network_def").state_dict(), before)
    workflow.run()
    after = load(tmp_path / "out" / "last.pt")["network"]
    assert not equal(after, before)
    assert max((after[name] - before[name]).abs().max().item() for name in before) < 0.01


# Several processes


@pytest.mark.slow
def test_two_processes(prepare, scans, tmp_path):
    """torchrun with gloo; of the second process's validation scans all fail, and the first must not wait for it."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("s0", "s1", "s2"):
        (folder / f"{name}.nii.gz").symlink_to(scans / f"{name}_T1w.nii.gz")
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    sections = {"training": ["s0.nii.gz", "s1.nii.gz"], "validation": ["s2.nii.gz", "bad.nii.gz", "s1.nii.gz"]}
    (folder / "dataset.json").write_text(json.dumps(sections))
    extra = tmp_path / "dump.json"
    save = "$torch.save(@network_def.state_dict(), @output_dir + f'/rank{torch.distributed.get_rank()}.pt')"
    names = "[type(h).__name__ for h in @train::handlers]"
    handlers = f"$torch.save({names}, @output_dir + f'/handlers{{torch.distributed.get_rank()}}.pt')"
    extra.write_text(json.dumps({"run": ["$@train::trainer.run()", save, handlers]}))
    files = [str(TRAIN), str(CONFIGS / "multi_gpu.json"), str(SMOKE), str(extra)]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "monai.bundle", "run", "--config_file", str(files), "--bundle_root", str(BUNDLE)]
    command += ["--dataset_dir", str(folder), "--output_dir", str(out)]
    command += [text for key, value in (NETWORK | EACH_EPOCH).items() for text in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    ranks = [load(out / f"rank{rank}.pt") for rank in range(2)]
    assert equal(*ranks)
    assert equal(load(out / "last.pt")["network"], ranks[0])
    handlers = [load(out / f"handlers{rank}.pt") for rank in range(2)]
    writers = {"TensorBoardStatsHandler", "Progress"}
    assert writers <= set(handlers[0]) and set(handlers[1]) == set(handlers[0]) - writers
    assert "Epoch [2/2]: [2/2] 100%" in done.stderr
    names = sorted(re.sub(r"tfevents.*", "tfevents", path.name) for path in out.iterdir())
    events = ["events.out.tfevents"] * 2
    assert names == [
        *events,
        "handlers0.pt",
        "handlers1.pt",
        "last.pt",
        "losses.csv",
        "losses.png",
        "model.pt",
        "rank0.pt",
        "rank1.pt",
    ]

    course = rows(out)
    assert [row["epoch"] for row in course] == [1, 2]
    workflow = prepare(folder)  # the same weights in one process
    workflow.parser.get_parsed_content("network_def").load_state_dict(ranks[0])
    evaluator = workflow.parser.get_parsed_content("validate::evaluator")
    evaluator.run()
    for name, value in evaluator.state.metrics.items():
        assert course[-1][name] == pytest.approx(value, rel=1e-5), name
    assert len(evaluator.failed) == 1


# What a user reads


def ends_with(error):
    """What the interpreter would print at its end."""
    sys.excepthook(type(error), error, error.__traceback__)


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("missing", r"error: dataset_dir must be a folder of scans, got .*missing: no such folder\n"),
        ("empty", r"error: .*empty: expected scans of at least 2 subjects to split, got 0\n"),
        ("few", r"error: max_subjects must be from 1 to 2 in split 'training', got 9\n"),
        ("damaged", r"error: .*b_T1w\.nii\.gz: expected .*\n"),
        (
            "foreign",
            r"error: .*last\.pt: expected the weights of ReCNN, got tensors .*--output_dir, or --resume False\n",
        ),
    ],
    ids=["missing", "empty", "few", "damaged", "foreign"],
)
def test_what_a_user_did_wrong_is_one_line(prepare, scans, tmp_path, capsys, case, line):
    folder, options = {"few": (scans, {"max_subjects": 9}), "foreign": (scans, {})}.get(case, (tmp_path / case, {}))
    if case != "missing":
        folder.mkdir(exist_ok=True)
    if case == "damaged":
        for name in "abc":
            (folder / f"{name}_T1w.nii.gz").write_bytes((scans / "s0_T1w.nii.gz").read_bytes()[:2000])
        (folder / "dataset.json").write_text('{"training": ["b_T1w.nii.gz"], "validation": ["c_T1w.nii.gz"]}')
    if case == "foreign":
        (tmp_path / "out").mkdir()
        torch.save({"network": torch.nn.Conv3d(1, 1, 3).state_dict()}, tmp_path / "out/last.pt")
    workflow = prepare(folder, **options)
    with pytest.raises(Exception) as info:  # noqa: PT011  whatever MONAI wraps it in; the line is what counts
        workflow.run()
    capsys.readouterr()
    ends_with(info.value)
    assert re.fullmatch(line, capsys.readouterr().err)


def test_exit_code_of_the_command(start, tmp_path):
    command = start(tmp_path / "nowhere", tmp_path / "out", config_file=[str(TRAIN), str(SMOKE)])
    assert command.wait() == 1
    (line,) = command.errors
    assert re.fullmatch(r"error: dataset_dir must be a folder of scans, got .*nowhere: no such folder", line)
    assert "Traceback" not in command.stdout + command.stderr
    assert not (tmp_path / "out").exists()
