"""What networks of a fixed factor share: residual learning of features on the LR grid, upsampled at the end."""

from __future__ import annotations

import torch
from monai.networks.blocks import SubpixelUpsample
from torch import nn
from torch.nn import functional

from .initialisation import icnr_, initialise_


def expect_shape(x: torch.Tensor, factor: int, shape: list[int] | None) -> None:
    """Hold a wished HR shape against the one that a network of fixed factor makes.

    Args:
        x: input `(B, C, *spatial)` of the network.
        factor: its upsampling factor.
        shape: the wished spatial HR shape; None is anything.

    Raises:
        ValueError: when the shape is not `factor * spatial`.
    """
    if shape is not None:
        made = [n * factor for n in x.shape[2:]]
        wished = [int(n) for n in shape]
        if wished != made:
            raise ValueError(
                f"shape must be {made}, {factor} times that of the input {list(x.shape[2:])}, got {wished}"
            )


torch.fx.wrap("expect_shape")  # else torch.fx, which has no sizes, could not trace the networks that call it


class ResidualUpsampling(nn.Module):
    r"""A network of four parts, of which the second learns a residual of features.

    .. math::

        F = \mathrm{head}(Z), \quad \hat X = \mathrm{tail}({\uparrow}(F + \mathrm{body}(F))) \;(+ {\uparrow}_\mathrm{linear} Z)

    Weights start by `initialisation`, those of sub-pixel convolutions being equal within each HR block (`icnr_`).

    Args:
        spatial_dims: 2 or 3.
        head: `(B, C, *spatial)` to features `(B, F, *spatial)`.
        body: `(B, F, *spatial)` to the same.
        upsampler: `(B, F, *spatial)` to `(B, F, *(scale_factor * spatial))`.
        tail: `(B, F, *(scale_factor * spatial))` to one channel.
        scale_factor: that of `upsampler`, at least 1.
        residual: add the first input channel, above scale 1 interpolated linearly, to the result.
        initialisation: `msra`, `xavier` or the standard deviation of a normal distribution (see `initialise_`).

    Shape:
        `(B, C, *spatial)` to `(B, 1, *(scale_factor * spatial))`.

    Raises:
        ValueError: on an unknown initialisation; on call, when the wished shape is not the one that it makes.
    """

    def __init__(
        self,
        spatial_dims: int,
        head: nn.Module,
        body: nn.Module,
        upsampler: nn.Module,
        tail: nn.Module,
        scale_factor: int,
        residual: bool,
        initialisation: str | float,
    ) -> None:
        super().__init__()
        self.scale_factor = scale_factor
        self.residual = residual
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        self.head, self.body, self.upsampler, self.tail = head, body, upsampler, tail
        self.apply(lambda module: initialise_(module, initialisation))
        for module in self.upsampler.modules():
            if isinstance(module, SubpixelUpsample):
                icnr_(module.conv_block, module.scale_factor**spatial_dims)

    def forward(self, x: torch.Tensor, shape: list[int] | None = None) -> torch.Tensor:
        """Map `(B, C, *spatial)` to `(B, 1, *(scale_factor * spatial))`; a `shape` given must be this spatial one."""
        expect_shape(x, self.scale_factor, shape)
        features = self.head(x)
        y: torch.Tensor = self.tail(self.upsampler(features + self.body(features)))
        if not self.residual:
            return y
        image = x[:, :1]
        if self.scale_factor > 1:
            image = functional.interpolate(image, scale_factor=float(self.scale_factor), mode=self.mode)
        return y + image
