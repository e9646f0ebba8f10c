"""Perceptual losses: the distance of two images in the features of a network that is not trained."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..networks.vgg import vgg19_place
from .elementwise import difference

DISTANCES = ("l1", "mse")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Reached(Exception):
    """Ends a forward pass at the layer that is asked for."""

    def __init__(self, features: object) -> None:
        self.features = features


def _stop(module: nn.Module, args: object, output: object) -> None:
    raise _Reached(output)


class FeatureLoss(nn.Module):
    r"""Distance of two images in the features of a layer of any network, say of one that was trained on MRI.

    .. math:: L = \frac1n \sum_i |\phi_i(y) - \phi_i(z)| \quad \text{or} \quad \frac1n \sum_i (\phi_i(y) - \phi_i(z))^2

    over the n values of the features phi of the batch. The layer's output is taken as it comes, before what follows works on it, in
    place or not, and the rest of the network is not run.

    The network is a copy in evaluation mode that stays as it is: it is no submodule, so that it is neither among the loss's
    parameters nor in its state dict, and it goes to the device of the images by itself. Only `pred` gets a gradient. The features
    are computed in the network's precision, or in that of an autocast around the call; their distance at least in float32.

    Args:
        network: maps `(B, C, *spatial)`, its one argument, to anything; it is copied. Its weights are those that it has:
            `custom_components.pretrained.with_weights` reads them from a file, such as a bundle's `models/model.pt`.
        layer: name of a layer as `named_modules` gives it, `body` say; its output must be a tensor.
        distance: `l1` or `mse`.

    Shape:
        `pred`, `target`: `(B, C, *spatial)` in the range that the network was trained on; the result is a scalar.

    Raises:
        ValueError: on an unknown layer or distance; on call, when shapes differ or the network does not come by the layer.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
        >>> FeatureLoss(network, "0")(torch.ones(1, 1, 8, 8), torch.ones(1, 1, 8, 8))
        tensor(0.)

    Reference:
        J. Johnson, A. Alahi, L. Fei-Fei, Perceptual losses for real-time style transfer and super-resolution, 2016,
        doi:10.1007/978-3-319-46475-6_43.
    """

    def __init__(self, network: nn.Module, layer: str, distance: str = "l1") -> None:
        super().__init__()
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {DISTANCES}, got {distance!r}")
        names = [name for name, _ in network.named_modules() if name]
        if layer not in names:
            raise ValueError(f"layer must be one of {', '.join(names[:20])}{' ...' * (len(names) > 20)}, got {layer!r}")
        self.layer, self.distance = layer, distance
        self._kept = (copy.deepcopy(network).eval().requires_grad_(False),)  # in a tuple, else it would be a submodule

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


class VGGPerceptualLoss(FeatureLoss):
    r"""Distance of two images in the features of VGG19, by default before the activation of its last convolution, as ESRGAN has it.

    .. math:: L = \frac{1}{n} \sum_{c, x, y} |\phi_{5,4}(y)_{c,x,y} - \phi_{5,4}(z)_{c,x,y}|

    Before the activation features are dense, and the brightness of the result agrees better with the truth. A grey image is
    given to all three colours, normalised by ImageNet's mean and standard deviation.

    The thesis says L1 and writes a square (equation 9): `mse` is the latter. It divides by the size of the feature maps and leaves
    the sum over channels open; here, as in ESRGAN's code, it is the mean over channels, too.

    VGG19 is not trained on MRI, nor on volumes: these are cut into slices. `FeatureLoss` takes a network of one's own choice.

    Args:
        network: VGG19 with its weights, as `custom_components.pretrained.vgg19` reads them, or torchvision's own.
        layer: `conv1_1` to `conv5_4`, or `relu1_1` to `relu5_4` after the activation.
        distance: `l1` or `mse`.
        slice_axis: spatial axis of a volume, 0 to 2 or -3 to -1, across which it is cut into slices; no part in 2D.

    Shape:
        `pred`, `target`: `(B, C, X, Y)` or `(B, C, X, Y, Z)` in [0, 1] with one channel or three; the result is a scalar. A slice
        needs 16 pixels per axis for `conv5_4`, half of that for each pooling less.

    Raises:
        ValueError: on another layer, distance or axis, a network without the layer; on call, on shapes that differ, that are none
            of the above or too small.

    Example:
        >>> loss = VGGPerceptualLoss(vgg19("vgg19-dcbb9e9d.pth"))

    References:
        K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015, arXiv:1409.1556.
        X. Wang et al., ESRGAN: enhanced super-resolution generative adversarial networks, 2018, arXiv:1809.00219.
    """

    def __init__(self, network: nn.Module, layer: str = "conv5_4", distance: str = "l1", slice_axis: int = -1) -> None:
        place = vgg19_place(layer)
        if slice_axis not in range(-3, 3):
            raise ValueError(f"slice_axis must be from -3 to 2, got {slice_axis}")
        stack = getattr(network, "features", None)
        if not isinstance(stack, nn.Sequential) or len(stack) <= place:
            layers = len(stack) if isinstance(stack, nn.Sequential) else "none"
            raise ValueError(f"expected a VGG19 up to {layer}, {place + 1} layers in `features`, got {layers}")
        super().__init__(stack[: place + 1], str(place), distance)
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
