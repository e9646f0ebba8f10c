"""DCSRN: one densely connected block on the HR grid."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import nn

from .initialisation import initialise_


class DCSRN(nn.Module):
    r"""Densely connected super-resolution network.

    .. math::

        F_0 = W_0 * Z + B_0, \quad F_i = [F_{i-1}, \; W_i * \mathrm{ELU}(\mathrm{norm}(F_{i-1})) + B_i], \quad
        \hat X = W_{L+1} * F_L + B_{L+1} \;(+ Z)

    `Z` is the LR image interpolated to the HR grid and [ , ] puts channels side by side: each layer sees all those before it,
    without a bottleneck, and the last one makes the image from all of them. Kernels have size 3, zero-padded, so that sizes stay
    and any size goes; the receptive field is `2 num_layers + 5` voxels per axis, 13 by default. In training mode batch norm
    looks at the whole batch.

    Args:
        spatial_dims: 2 or 3; 3 in the paper.
        in_channels: channels of the input; the first is the image to be sharpened.
        num_layers: layers L of the dense block, at least 1; 4 in the paper.
        growth_rate: filters of each of them, k; 24 in the paper.
        first_filters: filters of the first convolution; 2k = 48 in the paper.
        norm: `batch` as in the paper, or None: small batches make batch norm's statistics unsteady.
        residual: add the first input channel to the result. The paper does not.
        initialisation: `msra`, `xavier` or the standard deviation of a normal distribution (see `initialise_`).

    Shape:
        `(B, in_channels, *spatial)` in [0, 1] to `(B, 1, *spatial)`.

    Raises:
        ValueError: on arguments out of range.

    Example:
        >>> DCSRN(spatial_dims=3)(torch.rand(1, 1, 16, 17, 18)).shape
        torch.Size([1, 1, 16, 17, 18])

    Reference:
        Y. Chen, Y. Xie, Z. Zhou, F. Shi, A. G. Christodoulou, D. Li, Brain MRI super resolution using 3D deep densely connected
        neural networks, 2018, doi:10.1109/ISBI.2018.8363679.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        num_layers: int = 4,
        growth_rate: int = 24,
        first_filters: int = 48,
        norm: str | None = "batch",
        residual: bool = False,
        initialisation: str | float = "msra",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if min(in_channels, num_layers, growth_rate, first_filters) < 1:
            given = f"{in_channels}, {num_layers}, {growth_rate} and {first_filters}"
            raise ValueError(f"in_channels, num_layers, growth_rate and first_filters must be >= 1, got {given}")
        if norm not in ("batch", None):
            raise ValueError(f"norm must be 'batch' or None, got {norm!r}")
        self.residual = residual
        convolution = Conv[Conv.CONV, spatial_dims]
        self.first = convolution(in_channels, first_filters, 3, padding=1)
        layers: list[nn.Module] = []
        for i in range(num_layers):
            width = first_filters + i * growth_rate
            normalisation = [Norm[Norm.BATCH, spatial_dims](width)] if norm == "batch" else []
            # No ELU in place: without a norm its input goes into the next concatenation too.
            layers.append(nn.Sequential(*normalisation, nn.ELU(), convolution(width, growth_rate, 3, padding=1)))
        self.layers = nn.ModuleList(layers)
        self.last = convolution(first_filters + num_layers * growth_rate, 1, 3, padding=1)
        self.apply(lambda module: initialise_(module, initialisation))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, in_channels, *spatial)` to `(B, 1, *spatial)`."""
        features = self.first(x)
        for layer in self.layers:
            features = torch.cat([features, layer(features)], 1)
        y: torch.Tensor = self.last(features)
        return y + x[:, :1] if self.residual else y
