"""The convolutions of VGG19, whose features perceptual losses compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_STAGES = (2, 2, 4, 4, 4)  # convolutions before each pooling
WIDTHS = (64, 64, 128, 128, *(256,) * 4, *(512,) * 8)


def vgg19_places() -> dict[str, int]:
    """Places of VGG19's layers in torchvision's list: `conv1_1` 0, `relu1_1` 1, ... `conv5_4` 34, `relu5_4` 35."""
    places: dict[str, int] = {}
    n = 0
    for stage, convolutions in enumerate(_STAGES, 1):
        for i in range(1, convolutions + 1):
            places |= {f"conv{stage}_{i}": n, f"relu{stage}_{i}": n + 1}
            n += 2
        n += 1  # the pooling
    return places


def vgg19_place(layer: str) -> int:
    """Place of a layer in torchvision's list.

    Raises:
        ValueError: on another name.
    """
    places = vgg19_places()
    if layer not in places:
        raise ValueError(f"layer must be conv1_1 to conv5_4 or relu1_1 to relu5_4, got {layer!r}")
    return places[layer]


class VGG19(nn.Module):
    """Sixteen convolutions of size 3 with rectifiers, in five stages between which the image is halved, up to a layer.

    The layers stand in `features` under torchvision's numbers, so that its weights fit; its dense layers are left out.

    Args:
        layer: the last, `conv1_1` to `conv5_4`, or `relu1_1` to `relu5_4` after the activation.
        widths: filters of the convolutions, at least of those up to that layer.

    Shape:
        `(B, 3, X, Y)` to `(B, C, X / 2^n, Y / 2^n)` behind n poolings.

    Raises:
        ValueError: on another layer, or fewer widths than convolutions.

    Reference:
        K. Simonyan, A. Zisserman, Very deep convolutional networks for large-scale image recognition, 2015, arXiv:1409.1556.
    """

    def __init__(self, layer: str = "conv5_4", widths: Sequence[int] = WIDTHS) -> None:
        super().__init__()
        last = vgg19_place(layer)
        convolutions = [n for name, n in vgg19_places().items() if name.startswith("conv") and n <= last]
        if len(widths) < len(convolutions):
            raise ValueError(f"expected {len(convolutions)} widths up to {layer}, got {len(widths)}")
        width = dict(zip(convolutions, widths, strict=False))
        self.features = nn.Sequential()
        channels = 3
        for n in range(last + 1):
            if n in width:
                self.features.append(nn.Conv2d(channels, width[n], 3, padding=1))
                channels = width[n]
            else:
                self.features.append(nn.ReLU(inplace=True) if n - 1 in width else nn.MaxPool2d(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Features of images `(B, 3, X, Y)` at the last layer."""
        y: torch.Tensor = self.features(x)
        return y
