"""Perceptual losses: the distance of two images in the features of a network that is not trained."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .elementwise import difference

DISTANCES = ("l1", "mse")
_STAGES = (2, 2, 4, 4, 4)  # convolutions of VGG19 before each pooling
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_ADDRESS = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"


class _Reached(Exception):
    """Ends a forward pass at the layer that is asked for."""

    def __init__(self, features: object) -> None:
        self.features = features


def _stop(module: nn.Module, args: object, output: object) -> None:
    raise _Reached(output)


def _read(path: str) -> dict[str, torch.Tensor]:
    """The state dict in a file of `torch.save`: flat, or under the key `network` or `model`."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: expected the weights of the perceptual network, got no such file") from error
    except Exception as error:
        raise ValueError(f"{path}: expected a checkpoint of tensors, got a file that torch.load refuses") from error
    for key in ("network", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict of tensors, got {type(state).__name__}")
    return dict(state)


class FeatureLoss(nn.Module):
    r"""Distance of two images in the features of a layer of any network, say of one that was trained on MRI.

    .. math:: L = \frac1n \sum_i |\phi_i(y) - \phi_i(z)| \quad \text{or} \quad \frac1n \sum_i (\phi_i(y) - \phi_i(z))^2

    over the n values of the features phi of the batch. The layer's output is taken as it comes, before what follows works on it, in
    place or not, and the rest of the network is not run.

    The network is a copy in evaluation mode that stays as it is: it is no submodule, so that it is neither among the loss's
    parameters nor in its state dict, and it goes to the device of the images by itself. Only `pred` gets a gradient. The features
    are computed in the network's precision, or in that of an autocast around the call; their distance at least in float32.

    Args:
        network: maps `(B, C, *spatial)`, its one argument, to anything; it is copied.
        layer: name of a layer as `named_modules` gives it, `body` say; its output must be a tensor.
        checkpoint: file of the network's weights, such as a bundle's `models/model.pt`; None leaves those that it has.
        distance: `l1` or `mse`.

    Shape:
        `pred`, `target`: `(B, C, *spatial)` in the range that the network was trained on; the result is a scalar.

    Raises:
        ValueError: on an unknown layer or distance, a checkpoint that is missing or of another network; on call, when shapes differ
            or the network does not come by the layer.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
        >>> FeatureLoss(network, "0")(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
        tensor(0.)

    Reference:
        J. Johnson, A. Alahi, L. Fei-Fei, Perceptual losses for real-time style transfer and super-resolution, 2016,
        doi:10.1007/978-3-319-46475-6_43.
    """

    def __init__(self, network: nn.Module, layer: str, checkpoint: str | None = None, distance: str = "l1") -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
        names = [name for name, _ in network.named_modules() if name]
        if layer not in names:
            raise ValueError(f"layer must be one of {', '.join(names[:20])}{' ...' * (len(names) > 20)}, got {layer!r}")
        network = copy.deepcopy(network)
        if checkpoint is not None:
            try:
                network.load_state_dict(_read(checkpoint))
            except RuntimeError as error:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{checkpoint}: expected the weights of {type(network).__name__}, got others: {reason}"
                ) from error
        self.layer, self.distance = layer, distance
        self._kept = (network.eval().requires_grad_(False),)  # in a tuple, else it would be a submodule

    @property
    def network(self) -> nn.Module:
        """The network that the features are from."""
        return self._kept[0]

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Features `(B, ...)` of images `(B, C, *spatial)`, with their gradient."""
        network = self.network
        parameter = next(network.parameters(), None)
        if parameter is not None:
            if parameter.device != image.device:
                network.to(image.device)
            image = image.to(parameter.dtype)
        handle = network.get_submodule(self.layer).register_forward_hook(_stop)
        try:
            network(image)
        except _Reached as reached:
            if not isinstance(reached.features, torch.Tensor):
                raise ValueError(f"layer {self.layer!r} must give a tensor, got {type(reached.features)}") from None
            return reached.features
        finally:
            handle.remove()
        raise ValueError(f"expected a network that comes by its layer {self.layer!r}, got one that does not")

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Distance of the features of `pred` and `target`, both `(B, C, *spatial)`."""
        if pred.shape != target.shape:
            raise ValueError(f"expected a target of shape {tuple(pred.shape)}, got {tuple(target.shape)}")
        with torch.no_grad():
            wanted = self.features(target)
        error = difference(self.features(pred), wanted)
        return error.abs().mean() if self.distance == "l1" else error.square().mean()

    def extra_repr(self) -> str:
        """What `print` shows of the loss."""
        return f"{type(self.network).__name__}, layer={self.layer}, distance={self.distance}"


def _layers() -> dict[str, int]:
    """Places of VGG19's layers in torchvision's stack: `conv1_1` 0, `relu1_1` 1, ... `conv5_4` 34, `relu5_4` 35."""
    places: dict[str, int] = {}
    n = 0
    for stage, convolutions in enumerate(_STAGES, 1):
        for i in range(1, convolutions + 1):
            places |= {f"conv{stage}_{i}": n, f"relu{stage}_{i}": n + 1}
            n += 2
        n += 1  # the pooling
    return places


def _vgg_weights(path: str | None) -> dict[str, torch.Tensor]:
    if path is not None:
        return _read(path)
    try:
        models: Any = importlib.import_module("torchvision.models")
        state: dict[str, torch.Tensor] = models.VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=False)
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # RuntimeError: a torchvision that was built for another torch
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            "expected torchvision and a network connection to get VGG19's weights, got "
            f"{type(error).__name__}: {reason}. Without them: download {_ADDRESS} elsewhere and give weights=FILE"
        ) from error
    return state


def _vgg_stack(state: Mapping[str, torch.Tensor], last: int, source: str) -> nn.Sequential:
    """VGG19 up to the layer at `last`, as wide as its weights, from a state dict with torchvision's names."""
    convolutions = {n for name, n in _layers().items() if name.startswith("conv")}
    rectifiers = {n + 1 for n in convolutions}
    stack, channels = nn.Sequential(), 3
    for n in range(last + 1):
        if n in rectifiers:
            stack.append(nn.ReLU(inplace=True))
        elif n not in convolutions:
            stack.append(nn.MaxPool2d(2))
        else:
            weight, bias = (state.get(f"features.{n}.{kind}") for kind in ("weight", "bias"))
            shapes = [None if value is None else tuple(value.shape) for value in (weight, bias)]
            if weight is None or bias is None or shapes != [(len(bias), channels, 3, 3), (len(bias),)]:
                raise ValueError(
                    f"{source}: expected torchvision's weights of VGG19 with features.{n}.weight of shape "
                    f"(*, {channels}, 3, 3) and features.{n}.bias, got {shapes[0]} and {shapes[1]}"
                )
            convolution = nn.Conv2d(channels, len(bias), 3, padding=1)
            convolution.load_state_dict({"weight": weight, "bias": bias})
            stack.append(convolution)
            channels = len(bias)
    return stack


class VGGPerceptualLoss(FeatureLoss):
    r"""Distance of two images in the features of VGG19, by default before the activation of its last convolution, as ESRGAN has it.

    .. math:: L = \frac{1}{n} \sum_{c, x, y} |\phi_{5,4}(y)_{c,x,y} - \phi_{5,4}(z)_{c,x,y}|

    Before the activation features are dense, and the brightness of the result agrees better with the truth. A grey image is
    given to all three colours, normalised by ImageNet's mean and standard deviation.

    The thesis says L1 and writes a square (equation 9): `mse` is the latter. It divides by the size of the feature maps and leaves
    the sum over channels open; here, as in ESRGAN's code, it is the mean over channels, too.

    VGG19 is not trained on MRI, nor on volumes: these are cut into slices. `FeatureLoss` takes a network of one's own choice.

    Args:
        weights: file with torchvision's state dict of VGG19 (keys `features.0.weight` to `features.34.bias`, others are left
            alone); torchvision itself is then not needed. None lets torchvision download it or take it from its cache.
        layer: `conv1_1` to `conv5_4`, or `relu1_1` to `relu5_4` after the activation.
        distance: `l1` or `mse`.
        slice_axis: spatial axis of a volume, 0 to 2 or -3 to -1, across which it is cut into slices; no part in 2D.

    Shape:
        `pred`, `target`: `(B, C, X, Y)` or `(B, C, X, Y, Z)` in [0, 1] with one channel or three; the result is a scalar. A slice
        needs 16 pixels per axis for `conv5_4`, half of that for each pooling less.

    Raises:
        ValueError: on another layer, distance or axis, weights that are not to be had or of another network; on call, on shapes
            that differ, that are none of the above or too small.

    Example:
        >>> loss = VGGPerceptualLoss("vgg19-dcbb9e9d.pth")

    References:
        K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015, arXiv:1409.1556.
        X. Wang et al., ESRGAN: enhanced super-resolution generative adversarial networks, 2018, arXiv:1809.00219.
    """

    def __init__(
        self, weights: str | None = None, layer: str = "conv5_4", distance: str = "l1", slice_axis: int = -1
    ) -> None:
        places = _layers()
        if layer not in places:
            raise ValueError(f"layer must be conv1_1 to conv5_4 or relu1_1 to relu5_4, got {layer!r}")
        if slice_axis not in range(-3, 3):
            raise ValueError(f"slice_axis must be from -3 to 2, got {slice_axis}")
        place = places[layer]
        source = "torchvision" if weights is None else weights
        super().__init__(_vgg_stack(_vgg_weights(weights), place, source), str(place), distance=distance)
        self.slice_axis = slice_axis
        self.least = 2 ** sum(isinstance(module, nn.MaxPool2d) for module in self.network.modules())

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """Features `(slices, channels, *)` of images `(B, C, X, Y)` or `(B, C, X, Y, Z)`, with their gradient."""
        if image.ndim not in (4, 5) or image.shape[1] not in (1, 3):
            raise ValueError(
                f"expected images (B, C, X, Y) or (B, C, X, Y, Z) of 1 or 3 channels, got the shape {tuple(image.shape)}"
            )
        if image.ndim == 5:
            image = image.movedim(2 + self.slice_axis % 3, 1).flatten(0, 1)
        if min(image.shape[2:]) < self.least:
            raise ValueError(f"expected at least {self.least} pixels per axis of a slice, got {tuple(image.shape[2:])}")
        mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (_MEAN, _STD))
        return super().features((image - mean) / std)
