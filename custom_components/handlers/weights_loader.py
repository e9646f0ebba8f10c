"""Load weights before an engine starts, and refuse what does not belong to the network."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..caffe import caffe_state_dict
from ..errors import ScanError
from ..networks.wrapping import unwrapped

logger = logging.getLogger(__name__)


def load_weights(network: torch.nn.Module, path: str | Path, new: str | None = None) -> None:
    """Load a state dict into a network, strictly.

    MONAI's `CheckpointLoader` gives a traceback where a file is missing or foreign; here it is one line.

    Args:
        network: a network, wrapped or not (see `custom_components.networks.wrapping`).
        path: a file of `torch.save`: a flat state dict, or one under the key `network` or `model`; or a Caffe model, of which the
            name ends with `.caffemodel` (see `custom_components.caffe`).
        new: regular expression, found in the names of tensors that the file may lack: these stay as they are.

    Raises:
        ScanError: when the file is missing, no checkpoint, or of another network.
    """
    if not Path(path).is_file():
        raise ScanError(
            f"{path}: expected the weights of the network, got no such file (train first, or give --checkpoint FILE)"
        )
    target = unwrapped(network)
    state = caffe_state_dict(target, path) if Path(path).suffix.lower() == ".caffemodel" else read_state(path)
    own = target.state_dict()
    if not isinstance(state, Mapping):
        raise ScanError(f"{path}: expected a state dict, got {type(state).__name__}")
    kept = {name: tensor for name, tensor in own.items() if new is not None and re.search(new, name)}
    missing = [name for name in own if name not in state and name not in kept]
    foreign = [name for name in state if name not in own]
    other = [name for name in own if name in state and tuple(state[name].shape) != tuple(own[name].shape)]
    if missing or foreign or other:
        kinds = {"missing": missing, "foreign": foreign, "of another shape": other}
        counts = [f"{len(names)} {kind} (say {names[0]})" for kind, names in kinds.items() if names]
        raise ScanError(f"{path}: expected the weights of {type(target).__name__}, got tensors {', '.join(counts)}")
    target.load_state_dict({**kept, **state})
    logger.info("weights from %s", path)


def read_state(path: str | Path) -> Any:
    """What a checkpoint of tensors holds, without what stands around the network's.

    Raises:
        ScanError: when `torch.load` does not read it as tensors alone.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ScanError(f"{path}: expected a checkpoint of tensors, got a file that torch.load refuses") from error
    for key in ("network", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    return state


class WeightsLoader:
    """Handler that calls `load_weights` when the engine starts."""

    def __init__(self, network: torch.nn.Module, path: str | Path) -> None:
        self.network, self.path = network, path

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or evaluator."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _: Any = None) -> None:
        """Load the weights."""
        load_weights(self.network, self.path)
