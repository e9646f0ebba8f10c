"""VGG19 with its weights, from torchvision or from a file."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import ScanError, one_line
from ..handlers.weights_loader import read_state
from ..networks.vgg import VGG19, vgg19_place, vgg19_places

_ADDRESS = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


def vgg19(weights: str | Path | None = None, layer: str = "conv5_4") -> VGG19:
    """VGG19 as torchvision's weights have it, up to a layer, for `custom_components.losses.VGGPerceptualLoss`.

    Args:
        weights: file with torchvision's state dict of VGG19 (keys `features.0.weight` to `features.34.bias`, others are left
            alone); torchvision itself is then not needed. None lets torchvision download it or take it from its cache.
        layer: the last, `conv1_1` to `relu5_4`; what is behind it is not read.

    Raises:
        ScanError: when the weights are not to be had, or are of another network.
        ValueError: on another layer.

    Example:
        >>> network = vgg19("vgg19-dcbb9e9d.pth")
    """
    last = vgg19_place(layer)
    state = _from_torchvision() if weights is None else _from_file(weights)
    source = "torchvision" if weights is None else weights
    widths: list[int] = []
    for name, n in vgg19_places().items():
        if name.startswith("conv") and n <= last:
            widths.append(_width(state, n, widths[-1] if widths else 3, source))
    network = VGG19(layer, widths)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return network


def _from_file(path: str | Path) -> Mapping[str, Any]:
    if not Path(path).is_file():
        raise ScanError(f"{path}: expected the weights of VGG19 (of torchvision: {_ADDRESS}), got no such file")
    state = read_state(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ScanError(f"{path}: expected a state dict of tensors, got {type(state).__name__}")
    return state


def _from_torchvision() -> Mapping[str, Any]:
    try:
        models: Any = importlib.import_module("torchvision.models")
        state: Mapping[str, Any] = models.VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: it was built for another torch
        raise ScanError(
            "expected torchvision and a network connection to get VGG19's weights, got "
            f"{type(error).__name__}: {one_line(error)}. Without them: download {_ADDRESS} elsewhere and give weights=FILE"
        ) from error
    return state


def _width(state: Mapping[str, Any], n: int, channels: int, source: str | Path) -> int:
    """Filters of the convolution at place n, which must fit the channels before it."""
    weight, bias = (state.get(f"features.{n}.{kind}") for kind in ("weight", "bias"))
    shapes = [None if value is None else tuple(value.shape) for value in (weight, bias)]
    if weight is None or bias is None or shapes != [(len(bias), channels, 3, 3), (len(bias),)]:
        raise ScanError(
            f"{source}: expected torchvision's weights of VGG19 with features.{n}.weight of shape "
            f"(*, {channels}, 3, 3) and features.{n}.bias, got {shapes[0]} and {shapes[1]}"
        )
    return len(bias)
