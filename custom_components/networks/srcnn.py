"""SRCNN: three convolutions on the HR grid, in 2D or 3D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn.functional import pad

from .initialisation import initialise_


class SRCNN(nn.Module):
    r"""Patch extraction, non-linear mapping and reconstruction as three convolutions.

    .. math:: F_1 = \max(0, W_1 * Z + B_1), \quad F_2 = \max(0, W_2 * F_1 + B_2), \quad \hat X = W_3 * F_2 + B_3 \;(+ Z)

    `Z` is the LR image interpolated to the HR grid by cubic splines. Sizes stay and any size goes. The receptive field is
    `sum(kernel_sizes) - 2` voxels per axis, 13 by default.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input; the first is the image to be sharpened.
        num_filters: filters of the first two layers, 64 and 32 in the papers.
        kernel_sizes: odd filter sizes of the three layers, 9, 1 and 5 in the papers.
        residual: add the first input channel to the result. The papers do not; with it training starts from the interpolated
            image and not from nothing.
        edge_padding: repeat the image beyond its border, once, and convolve without padding, as the authors of SRCNN3D do. By
            default each convolution is zero-padded; weights trained in one way give wrong values at the border in the other.
        initialisation: `msra`, `xavier` or the standard deviation of a normal distribution (see `initialise_`); SRCNN: 0.001.

    Shape:
        `(B, in_channels, *spatial)` in [0, 1] to `(B, 1, *spatial)`.

    Raises:
        ValueError: on arguments out of range.

    Example:
        >>> SRCNN(spatial_dims=3)(torch.rand(1, 1, 16, 17, 18)).shape
        torch.Size([1, 1, 16, 17, 18])

    Reference:
        C. Dong, C. C. Loy, K. He, X. Tang, Image super-resolution using deep convolutional networks, 2016,
        doi:10.1109/TPAMI.2015.2439281; in 3D: C.-H. Pham, A. Ducournau, R. Fablet, F. Rousseau, Brain MRI super-resolution using
        deep 3D convolutional networks, 2017, doi:10.1109/ISBI.2017.7950500.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        num_filters: Sequence[int] = (64, 32),
        kernel_sizes: Sequence[int] = (9, 1, 5),
        residual: bool = False,
        edge_padding: bool = False,
        initialisation: str | float = "msra",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if len(num_filters) != 2 or len(kernel_sizes) != 3:
            raise ValueError(
                f"expected 2 num_filters and 3 kernel_sizes, got {tuple(num_filters)} and {tuple(kernel_sizes)}"
            )
        if min(in_channels, *num_filters) < 1:
            raise ValueError(f"in_channels and num_filters must be >= 1, got {in_channels} and {tuple(num_filters)}")
        if any(k < 1 or k % 2 == 0 for k in kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd and positive, got {tuple(kernel_sizes)}")
        self.residual, self.edge_padding = residual, edge_padding
        self.margin = [sum(k // 2 for k in kernel_sizes)] * 2 * spatial_dims
        convolution = Conv[Conv.CONV, spatial_dims]
        widths = [in_channels, *num_filters, 1]
        layers: list[nn.Module] = []
        for n_in, n_out, k in zip(widths[:-1], widths[1:], kernel_sizes, strict=True):
            layers += [convolution(n_in, n_out, k, padding=0 if edge_padding else k // 2), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        self.body.apply(lambda module: initialise_(module, initialisation))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, in_channels, *spatial)` to `(B, 1, *spatial)`."""
        y: torch.Tensor = self.body(pad(x, self.margin, mode="replicate") if self.edge_padding else x)
        return y + x[:, :1] if self.residual else y
