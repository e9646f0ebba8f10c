"""ReCNN: a chain of convolutions that predicts the residual between a HR image and its interpolated LR version."""

from __future__ import annotations

from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from .initialisation import initialise_


class ReCNN(nn.Module):
    r"""Residual-learning CNN on the HR grid.

    .. math:: \hat X = Z + F(Z), \quad F_i = \max(0, W_i * F_{i-1} + B_i), \quad F_L = W_L * F_{L-1} + B_L

    `Z` is the LR image interpolated to the HR grid. Convolutions are zero-padded, so that sizes stay and any size goes. The
    receptive field is `(kernel_size - 1) num_layers + 1` voxels per axis.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input; the first is the image to be sharpened, the others are references.
        num_layers: convolutions, at least 2; 10 and 20 in the paper.
        num_filters: filters of each layer but the last; 64 in the paper.
        kernel_size: odd filter size per axis; 3 in the paper.
        residual: add the first input channel to the result, as the paper recommends.
        initialisation: `msra`, `xavier` or the standard deviation of a normal distribution (see `initialise_`).

    Shape:
        `(B, in_channels, *spatial)` in [0, 1] to `(B, 1, *spatial)`.

    Raises:
        ValueError: on arguments out of range.

    Example:
        >>> ReCNN(spatial_dims=3, num_layers=10)(torch.rand(1, 1, 16, 17, 18)).shape
        torch.Size([1, 1, 16, 17, 18])

    Reference:
        C.-H. Pham, C. Tor-Diez, H. Meunier, N. Bednarek, R. Fablet, N. Passat, F. Rousseau, Multiscale brain MRI super-resolution
        using deep 3D convolutional networks, 2019, doi:10.1016/j.compmedimag.2019.101647. Equation 6.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        num_layers: int = 20,
        num_filters: int = 64,
        kernel_size: int = 3,
        residual: bool = True,
        initialisation: str | float = "msra",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if num_layers < 2:
            raise ValueError(f"num_layers must be >= 2, got {num_layers}")
        if min(in_channels, num_filters) < 1:
            raise ValueError(f"in_channels and num_filters must be >= 1, got {in_channels} and {num_filters}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        self.residual = residual
        convolution = Conv[Conv.CONV, spatial_dims]
        widths = [in_channels, *[num_filters] * (num_layers - 1), 1]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [convolution(n_in, n_out, kernel_size, padding=kernel_size // 2), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers[:-1])
        self.body.apply(lambda module: initialise_(module, initialisation))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, in_channels, *spatial)` to `(B, 1, *spatial)`."""
        y: torch.Tensor = self.body(x)
        return y + x[:, :1] if self.residual else y
