"""Networks that start from a checkpoint, for configs, in which losses and networks read no files themselves."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..batches.fingerprint import content
from ..handlers.weights_loader import load_weights
from ..networks.progressive import ProgressiveRRDBNet


def with_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """The network itself, with the weights of a file that is one of `custom_components.handlers.load_weights`.

    It has the file's `content` as its attribute `weights_sha256`, so that results of other weights have another fingerprint.

    Raises:
        ScanError: as there.

    Example:
        In a config::

            "network": {
                "_target_": "custom_components.pretrained.with_weights",
                "network": "@feature_network",
                "path": "@feature_weights"
            }
    """
    load_weights(network, path)
    network.weights_sha256 = content(path)  # type: ignore[assignment]
    return network


def load_steps(network: ProgressiveRRDBNet, path: str | Path) -> None:
    """Load the weights of one x2 network into each step of a progressive one.

    Raises:
        ScanError: as `custom_components.handlers.load_weights`.
    """
    for step in network.steps:
        load_weights(step, path)
