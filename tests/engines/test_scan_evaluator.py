import logging
import weakref

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, MetaTensor
from monai.data.utils import no_collation
from monai.inferers import SimpleInferer
from monai.transforms import Lambdad
from torch import nn

from custom_components.datasets import ScanDataset
from custom_components.engines import ScanEvaluator
from custom_components.engines.scan_evaluator import scan_file
from custom_components.errors import ScanError
from custom_components.inferers import ExactInferer


class Double(nn.Module):
    """Twice the sum over channels; a value above 100 is more than it can take."""

    def forward(self, x):
        if x.max() > 100:
            raise RuntimeError("out of memory:\nTried to allocate 9 GiB")
        return 2 * x.sum(1, keepdim=True)


def load(item):
    """`v3.nii` becomes a volume of threes of its own shape."""
    if item["image"] == "broken.nii":
        raise ScanError("broken.nii: expected a scan, got an empty file")
    value = float(item["image"][1:-4])
    image = MetaTensor(torch.full((1, 2, 3, 2 + int(value) % 5), value), meta={"filename_or_obj": item["image"]})
    item = {**item, "image": image}
    if item.get("with") == "target":
        item["target"] = image.as_tensor() + 1
    if item.get("with") == "reference":
        item["reference"] = torch.full(image.shape, 10.0)
    return item


def evaluator(names, network=None, transform=load, **kwargs):
    data = [n if isinstance(n, dict) else {"image": n} for n in names]
    loader = DataLoader(ScanDataset(data, transform), batch_size=1, collate_fn=no_collation, num_workers=0)
    return ScanEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=Double() if network is None else network,
        **{"inferer": SimpleInferer(), **kwargs},
    )


@pytest.fixture
def record():
    """Run an evaluator and note per scan its value, or its error, as a handler sees them."""

    def run(engine):
        seen = []

        @engine.on(Events.ITERATION_COMPLETED)
        def _(e):
            (output,) = e.state.output
            seen.append(output["error"] if "error" in output else float(output["pred"].mean()))

        engine.run()
        return seen

    return run


class TestOutput:
    def test_scans_of_unlike_shape_one_after_the_other(self, record):
        assert record(evaluator(["v1.nii", "v2.nii", "v3.nii"])) == [2, 4, 6]

    def test_content(self):
        engine = evaluator([{"image": "v3.nii", "stem": "v3", "with": "target"}])
        engine.run()
        (output,), (item,) = engine.state.output, engine.state.batch
        assert set(output) == {"image", "pred", "label"}
        assert output["pred"].shape == (1, 2, 3, 5)
        assert output["image"] is item["image"]
        assert torch.equal(output["label"], item["target"])
        assert item["stem"] == "v3"
        assert output["pred"].is_inference() or not output["pred"].requires_grad

    def test_references_are_further_channels(self, record):
        assert record(evaluator([{"image": "v3.nii", "with": "reference"}])) == [26]

    def test_without_target_no_label(self):
        engine = evaluator(["v3.nii"])
        engine.run()
        assert set(engine.state.output[0]) == {"image", "pred"}

    def test_postprocessing_sees_item_and_prediction(self):
        def post(d):
            return {**d, "pred": d["pred"] + d["bonus"], "extra": 5}

        engine = evaluator([{"image": "v3.nii", "bonus": 0.5}], postprocessing=post)
        engine.run()
        (output,) = engine.state.output
        assert float(output["pred"].max()) == 6.5
        assert output["extra"] == 5
        assert engine.state.batch[0]["bonus"] == 0.5

    def test_network_is_in_evaluation_mode_and_without_gradient(self):
        network = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Dropout(0.99)).train()
        states = []
        network.register_forward_hook(lambda m, *_: states.append((m.training, torch.is_grad_enabled())))
        evaluator(["v3.nii"], network).run()
        assert states == [(False, False)]


class TestFailures:
    def test_the_others_go_on(self, record, caplog):
        names = ["v1.nii", "broken.nii", "v2.nii", "v200.nii", "v3.nii"]
        engine = evaluator(names)
        with caplog.at_level(logging.ERROR):
            seen = record(engine)
        load_error, run_error = (
            "expected a scan, got an empty file",
            "RuntimeError: out of memory: Tried to allocate 9 GiB",
        )
        assert seen == [2, load_error, 4, run_error, 6]
        assert engine.failed == [("broken.nii", load_error), ("v200.nii", run_error)]
        assert [r.getMessage() for r in caplog.records] == [f"broken.nii: {load_error}", f"v200.nii: {run_error}"]

    def test_failure_of_the_postprocessing(self, record):
        def post(image):
            if image.max() == 2:
                raise ScanError("v2.nii: expected to write the file, got: No space left on device")
            return image

        engine = evaluator(["v1.nii", "v2.nii", "v3.nii"], postprocessing=Lambdad("image", post))
        assert record(engine) == [2, "expected to write the file, got: No space left on device", 6]
        assert engine.failed == [("v2.nii", "expected to write the file, got: No space left on device")]

    def test_item_of_a_failed_scan_says_so(self):
        engine = evaluator([{"image": "broken.nii", "stem": "broken"}])
        engine.run()
        (item,) = engine.state.batch
        assert item["stem"] == "broken"
        assert item["error"] == "expected a scan, got an empty file"
        assert engine.state.output == [{"error": item["error"]}]

    def test_first_last_and_all(self, record):
        error = "expected a scan, got an empty file"
        assert record(evaluator(["broken.nii", "v1.nii"])) == [error, 2]
        assert record(evaluator(["v1.nii", "broken.nii"])) == [2, error]
        assert record(evaluator(["broken.nii"] * 2)) == [error] * 2

    def test_a_new_run_starts_with_no_failures(self):
        engine = evaluator(["broken.nii", "v1.nii"])
        engine.run()
        engine.run()
        assert len(engine.failed) == 1

    def test_exit_code(self):
        engine = evaluator(["v1.nii", "broken.nii"])
        engine.exit_if_failed()
        engine.run()
        with pytest.raises(SystemExit) as end:
            engine.exit_if_failed()
        assert end.value.code == 1

    def test_a_wish_to_stop_stops(self):
        class Interrupt(nn.Module):
            def forward(self, x):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            evaluator(["v1.nii"], Interrupt()).run()


@pytest.mark.parametrize(
    "names", [["v1.nii"] * 4, ["v1.nii", "v200.nii", "v1.nii", "v200.nii"]], ids=["good", "failing"]
)
def test_a_scan_is_let_go_before_the_next_is_loaded(names):
    alive, most = weakref.WeakSet(), []

    class Loaded(dict):
        """A dictionary that can be referred to weakly."""

    def watch(item):
        most.append(len(alive))
        item = load(item)
        holder = nn.Identity()  # lives as long as the meta data of the image, which goes with image and prediction
        item["image"].meta["holder"] = holder
        alive.add(holder)
        return item

    engine = evaluator(names, transform=watch, postprocessing=lambda d: d)
    engine.run()
    assert most == [0] * 4


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ({"image": "a.nii", "stem": "a"}, "a.nii"),
        ({"image": MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "b.nii"}), "stem": "b"}, "b.nii"),
        ({"image": MetaTensor(torch.zeros(1, 2, 2, 2)), "stem": "c"}, "c"),
        ({"image": torch.zeros(1, 2, 2, 2), "stem": "d"}, "d"),
        ({}, ""),
    ],
)
def test_file_of_an_item(item, expected):
    assert scan_file(item) == expected


def test_a_network_of_the_lr_grid_gets_the_scan_and_the_shape_that_is_wanted(record):
    """Its result stands on the grid of the interpolated image."""

    class Upsample(nn.Module):
        def forward(self, lr, shape):
            seen.append((tuple(lr.shape), shape))
            return lr.mean() + torch.zeros(1, 1, *shape)

    def interpolate(item):
        item = load(item)
        return {**item, "lowres": item["image"][:1, :1] + 5, "target": item["image"]}

    seen = []
    engine = evaluator(["v1.nii", "v2.nii"], Upsample(), interpolate, network_input="lowres")
    preds = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: preds.append(e.state.output[0]["pred"]))
    engine.run()
    assert seen == [((1, 1, 1, 3, 3), (2, 3, 3)), ((1, 1, 1, 3, 4), (2, 3, 4))]
    assert [(tuple(pred.shape), pred.unique().tolist()) for pred in preds] == [((1, 2, 3, 3), [6]), ((1, 2, 3, 4), [7])]


class TestMeta:
    """The inferer may ask for the meta data of the scan; the prediction is plain."""

    @staticmethod
    def item(item):
        item = load(item)
        item["image"].meta["slice_axis"] = 1
        item["lowres"] = MetaTensor(item["image"].as_tensor(), meta={"slice_axis": 0})
        return item

    @pytest.mark.parametrize(("network_input", "axis"), [("image", 1), ("lowres", 0)])
    def test_reaches_the_inferer(self, network_input, axis):
        def inferer(inputs, network, *shape):
            seen.append((type(inputs), tuple(inputs.shape), inputs.meta["slice_axis"], shape))
            return network(inputs)

        seen = []
        engine = evaluator(["v1.nii"], transform=self.item, inferer=inferer, network_input=network_input)
        engine.run()
        wanted = ((2, 3, 3),) if network_input == "lowres" else ()
        assert seen == [(MetaTensor, (1, 1, 2, 3, 3), axis, wanted)]
        assert type(engine.state.output[0]["pred"]) is torch.Tensor

    def test_is_that_of_the_image_with_a_reference(self):
        def inferer(inputs, network):
            seen.append((inputs.shape[1], inputs.meta["slice_axis"]))
            return network(inputs)

        def with_reference(item):
            item = self.item(item)
            return {**item, "reference": MetaTensor(item["image"].as_tensor(), meta={"slice_axis": 2})}

        seen = []
        engine = evaluator(["v1.nii"], transform=with_reference, inferer=inferer)
        engine.run()
        assert seen == [(2, 1)]
        assert type(engine.state.output[0]["pred"]) is torch.Tensor

    @pytest.mark.parametrize(("network_input", "axis"), [("image", 1), ("lowres", 0)])
    def test_a_2d_network_runs_across_the_slices(self, network_input, axis):
        network = nn.Conv2d(1, 1, 3, padding=1).eval()
        scan = torch.rand(1, 4, 5, 6)

        def random(item):
            image = MetaTensor(scan.clone(), meta={"slice_axis": 1})
            return {**item, "image": image, "lowres": MetaTensor(scan.clone(), meta={"slice_axis": 0})}

        inferer = ExactInferer(spatial_dims=2)
        engine = evaluator(["v1.nii"], network, random, inferer=inferer, network_input=network_input)
        engine.run()
        with torch.inference_mode():
            expected = torch.stack([network(scan.select(axis + 1, i)) for i in range(scan.shape[axis + 1])], axis + 1)
        torch.testing.assert_close(engine.state.output[0]["pred"], expected)
