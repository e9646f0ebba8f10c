"""Whole scans through a network, one after the other: validation, evaluation and inference use the same engine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys

from ..errors import reason
from ..tensors import plain

logger = logging.getLogger(__name__)


def scan_file(item: Mapping[str, Any]) -> str:
    """The file an item came from, before and after it was loaded."""
    image = item.get(Keys.IMAGE)
    if isinstance(image, torch.Tensor):
        image = image.meta.get("filename_or_obj") if isinstance(image, MetaTensor) else None
    return str(image or item.get("stem", ""))


def _is_news(record: logging.LogRecord) -> bool:
    """Not one of Ignite's notes on start and end of a run, one pass over some scans, or on an exception that it raises."""
    return record.module != "engine"


class ScanEvaluator(SupervisedEvaluator):
    """A `SupervisedEvaluator` for whole scans, one per iteration, that goes on after a scan that failed.

    The loader gives a list of one item (`batch_size=1, collate_fn=monai.data.utils.no_collation`). The item's `image`
    `(1, *spatial)` may stay on the CPU: the inferer moves what it needs. After the postprocessing `state.output` is a list of one
    dictionary with `image`, `pred` and, where there is one, `label` (the item's `target`); a failed scan has `error` instead, also
    noted in `state.batch[0]`. Failures are collected in `failed` as (file, reason).

    Metrics attached to the engine see the scans that succeeded. Args are those of `SupervisedEvaluator`, and

    Args:
        network_input: key of the item that the network gets: `image`, the scan interpolated to the HR grid, or `lowres`, the scan
            itself, for networks and methods that upsample. With these the inferer is called as `inferer(lowres, network, shape)`
            with the spatial HR shape that is wanted, the one of `image`. The inferer gets the input's meta data too.
    """

    def __init__(self, *args: Any, network_input: str = Keys.IMAGE, **kwargs: Any) -> None:
        kwargs["decollate"] = False
        super().__init__(*args, **kwargs)
        self.network_input = network_input
        self.logger.addFilter(_is_news)
        self.failed: list[tuple[str, str]] = []
        self.add_event_handler(Events.EPOCH_STARTED, lambda _: self.failed.clear())
        self.add_event_handler(Events.GET_BATCH_STARTED, self._release)

    def _release(self, _: Any = None) -> None:
        """Let go of the scan before, so that two are never in memory."""
        self.state.batch = self.state.output = None

    def _iteration(self, engine: Any, batchdata: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:  # type: ignore[override]
        item = batchdata[0]
        try:
            if "error" in item:
                self._fail(item, item["error"])
            else:
                self._infer(engine, item)
        except Exception as error:  # one scan must not stop the others
            logger.debug("traceback of the failure below", exc_info=True)
            self._fail(item, reason(error))
        output: list[dict[str, Any]] = engine.state.output
        return output

    def _infer(self, engine: Any, item: dict[str, Any]) -> None:
        image = item[self.network_input]
        if "reference" in item:
            image = torch.cat([image, item["reference"]])
        network = self.network
        network.eval()
        with torch.inference_mode():
            batch = MetaTensor(image.as_tensor()[None], meta=image.meta)  # an inferer may ask for the slice axis
            if self.network_input == Keys.IMAGE:
                pred = plain(engine.inferer(batch, network))[0]
            else:
                wanted = tuple(item[Keys.IMAGE].shape[1:])
                pred = plain(engine.inferer(batch.to(engine.state.device), network, wanted))[0].cpu()
            output = {Keys.IMAGE: item[Keys.IMAGE], Keys.PRED: pred}
            if "target" in item:
                output[Keys.LABEL] = item["target"]
            engine.state.batch, engine.state.output = [item], [output]
            engine.fire_event(IterationEvents.FORWARD_COMPLETED)
            engine.fire_event(IterationEvents.MODEL_COMPLETED)

    def exit_if_failed(self) -> None:
        """End the program with exit code 1 when any scan failed: the last line of a config's `run`.

        In a distributed run all processes wait here for each other, as `torchrun` stops the others when one ends so, and end alike.
        """
        failed = [bool(self.failed)]
        if dist.is_available() and dist.is_initialized():
            failed *= dist.get_world_size()
            dist.all_gather_object(failed, bool(self.failed))
        if any(failed):
            raise SystemExit(1)

    def _fail(self, item: dict[str, Any], why: str) -> None:
        name = scan_file(item)
        why = why.removeprefix(f"{name}: ")  # the loader names the file too
        self.failed.append((name, why))
        logger.error("%s: %s", name, why)
        self.state.batch = [{**item, "error": why}]
        self.state.output = [{"error": why}]
