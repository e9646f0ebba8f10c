"""RRLSRN: a robust residual network that works on the LR grid and doubles it by transposed convolutions."""

from __future__ import annotations

from itertools import pairwise

import torch
from monai.networks.layers.factories import Conv
from torch import nn
from torch.nn import functional

from .initialisation import initialise_
from .residual_upsampling import expect_shape

_PASSES = {2: 1, 4: 2, 8: 3}


def linear_kernel(spatial_dims: int) -> torch.Tensor:
    """Kernel `(4, 4)` or `(4, 4, 4)` of the transposed convolution of stride 2 that interpolates linearly between voxel centres.

    An HR voxel lies a quarter of an LR voxel beside the centre of the nearest one, hence (1, 3, 3, 1) / 4 per axis.
    """
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    kernel = line
    for _ in range(spatial_dims - 1):
        kernel = kernel[..., None] * line
    return kernel


class _Doubling(nn.Module):
    """One pass of `RRLSRN`: `(B, in_channels, *spatial)` to `(B, 1, *(2 spatial))`."""

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        num_layers: int,
        num_filters: int,
        negative_slope: float,
        initialisation: str | float,
    ) -> None:
        super().__init__()
        convolution, transposed = Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise([in_channels, *[num_filters] * num_layers]):
            layers += [convolution(n_in, n_out, 3, padding=1), nn.LeakyReLU(negative_slope, inplace=True)]
        self.features = nn.Sequential(*layers)
        self.features.apply(lambda module: initialise_(module, initialisation))
        self.upsample_features = transposed(num_filters, 1, 4, stride=2, padding=1)
        mixing = convolution(num_filters, 1, 1)
        initialise_(mixing, initialisation)
        kernel = linear_kernel(spatial_dims)
        # Of the edge voxels that `forward` adds, 2 HR voxels each are cut off again.
        self.upsample_image = transposed(1, 1, 4, stride=2, padding=3, bias=False)
        with torch.no_grad():
            self.upsample_features.weight.copy_(mixing.weight.transpose(0, 1) * kernel)
            self.upsample_features.bias.zero_()
            self.upsample_image.weight.copy_(kernel.expand_as(self.upsample_image.weight))
        self.edge: list[int] = [1] * (2 * spatial_dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor = self.upsample_image(functional.pad(x[:, :1], self.edge, mode="replicate"))
        residual: torch.Tensor = self.upsample_features(self.features(x))
        return image + residual


class RRLSRN(nn.Module):
    r"""Robust residual-learning super-resolution network.

    .. math:: \hat X = u_x * Y + u_f * F_L, \quad F_i = \mathrm{LeakyReLU}(W_i * F_{i-1} + B_i), \quad F_0 = Y

    `Y` is the LR image; `u_x` and `u_f` are transposed convolutions of size 4 and stride 2 to one channel, for the image and for
    its residual. Both are learned; they start as linear interpolation between voxel centres, `u_f` of a random mixture of the
    features. All spatial axes are doubled, any size goes.

    The paper has the factor 2 alone, and says of 4 and 8 that they come "by cascading", not how: here the network is run on its own
    result, by default with the weights of the first pass, so that weights trained at 2 serve 4 and 8; LapSRN, from which it
    descends, has own weights in each pass (`share_weights=False`). References in further channels are interpolated
    linearly for the next pass. Another departure: the image is continued by its edge at the border, where the paper's zeros would
    darken it; features are zero-padded as in the paper.

    Args:
        spatial_dims: 2 or 3; 2 in the paper.
        in_channels: channels of the input; the first is the image to be upsampled.
        num_layers: convolutions L of size 3 on the LR grid; 13 in the paper.
        num_filters: filters of each; 64 in the paper.
        scale_factor: 2, 4 or 8.
        share_weights: one set of weights for all passes.
        negative_slope: of the leaky rectifiers; 0.2 in the paper.
        initialisation: `msra`, as in LapSRN, `xavier` or the standard deviation of a normal distribution (see `initialise_`).

    Shape:
        `(B, in_channels, *spatial)` in [0, 1] to `(B, 1, *(scale_factor * spatial))`.

    Raises:
        ValueError: on arguments out of range; on call, when the wished shape is not the one that it makes.

    Example:
        >>> RRLSRN(2, scale_factor=4)(torch.rand(1, 1, 16, 17), [64, 68]).shape
        torch.Size([1, 1, 64, 68])

    References:
        L. Song, Q. Wang, T. Liu, H. Li, J. Fan, J. Yang, B. Hu, Deep robust residual network for brain MRI super-resolution,
        2020, doi:10.21203/rs.3.rs-117695/v1. LapSRN: W.-S. Lai, J.-B. Huang, N. Ahuja, M.-H. Yang, Deep
        Laplacian pyramid networks for fast and accurate super-resolution, 2017, doi:10.1109/CVPR.2017.618.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        num_layers: int = 13,
        num_filters: int = 64,
        scale_factor: int = 2,
        share_weights: bool = True,
        negative_slope: float = 0.2,
        initialisation: str | float = "msra",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if min(in_channels, num_layers, num_filters) < 1:
            given = f"{in_channels}, {num_layers} and {num_filters}"
            raise ValueError(f"in_channels, num_layers and num_filters must be >= 1, got {given}")
        if scale_factor not in _PASSES:
            raise ValueError(f"scale_factor must be one of {tuple(_PASSES)}, got {scale_factor}")
        if not 0 <= negative_slope < 1:
            raise ValueError(f"negative_slope must be in [0, 1), got {negative_slope}")
        self.scale_factor = scale_factor
        self.mode = "bilinear" if spatial_dims == 2 else "trilinear"
        passes = _PASSES[scale_factor]
        levels, self.repeats = (1, passes) if share_weights else (passes, 1)
        self.levels = nn.ModuleList(
            _Doubling(spatial_dims, in_channels, num_layers, num_filters, negative_slope, initialisation)
            for _ in range(levels)
        )

    def forward(self, x: torch.Tensor, shape: list[int] | None = None) -> torch.Tensor:
        """Map `(B, in_channels, *spatial)` to `(B, 1, *(scale_factor * spatial))`; a `shape` given must be this spatial one."""
        expect_shape(x, self.scale_factor, shape)
        for level in self.levels:
            for _ in range(self.repeats):
                y: torch.Tensor = level(x)
                if x.shape[1] > 1:
                    y = torch.cat([y, functional.interpolate(x[:, 1:], scale_factor=2.0, mode=self.mode)], 1)
                x = y
        return x[:, :1]
