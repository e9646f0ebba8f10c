"""EDSR: residual blocks without normalisation, on the HR grid or with sub-pixel upsampling at the end."""

from __future__ import annotations

import torch
from monai.networks.blocks import SubpixelUpsample
from monai.networks.layers.factories import Conv
from torch import nn

from .residual_upsampling import ResidualUpsampling

_STAGES: dict[int, list[int]] = {1: [], 2: [2], 3: [3], 4: [2, 2]}  # 4 in two steps, as in the paper


class ResidualBlock(nn.Module):
    r"""Two convolutions around a rectifier, scaled and added to the input.

    .. math:: y = x + s \, (W_2 * \max(0, W_1 * x + B_1) + B_2)

    Args:
        spatial_dims: 2 or 3.
        num_filters: channels of input and output.
        residual_scale: s.

    Shape:
        `(B, num_filters, *spatial)` to the same.
    """

    def __init__(self, spatial_dims: int, num_filters: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        convolution = Conv[Conv.CONV, spatial_dims]
        self.body = nn.Sequential(
            convolution(num_filters, num_filters, 3, padding=1),
            nn.ReLU(inplace=True),
            convolution(num_filters, num_filters, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, num_filters, *spatial)` to the same shape."""
        y: torch.Tensor = x + self.residual_scale * self.body(x)
        return y


class EDSR(ResidualUpsampling):
    r"""Enhanced deep super-resolution network.

    .. math::

        F_0 = W_h * Z + B_h, \quad F_i = \mathrm{block}_i(F_{i-1}), \quad F = F_0 + W_b * F_N + B_b, \quad
        \hat X = W_t * \uparrow(F) + B_t

    With `scale_factor` 1 `Z` is the LR image interpolated to the HR grid, as in the DNSP paper, and nothing is upsampled; above
    1 it is the LR image itself, and sub-pixel convolutions upsample all axes (4 in two steps of 2, as in the EDSR paper). Kernels
    have size 3, zero-padded, so that any size goes; at scale 1 the receptive field is `4 num_blocks + 7` voxels per axis.

    Departures: weights start by `initialisation`, those of sub-pixel convolutions being equal within each HR block (ICNR), so that
    training starts without a checkerboard; the papers leave it at PyTorch's default. No mean of the data set is subtracted.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input; the first is the image to be sharpened.
        num_blocks: residual blocks N; 32 in both papers.
        num_filters: filters of each layer but the last; 256 in both papers.
        residual_scale: factor of each block's residual, which keeps wide networks stable; 0.1 in the EDSR paper.
        scale_factor: 1, 2, 3 or 4.
        residual: add the first input channel, above scale 1 interpolated linearly, to the result. The papers do not.
        initialisation: `msra`, `xavier` or the standard deviation of a normal distribution (see `initialise_`).

    Shape:
        `(B, in_channels, *spatial)` in [0, 1] to `(B, 1, *(scale_factor * spatial))`.

    Raises:
        ValueError: on arguments out of range; on call, when the wished shape is not the one that it makes.

    Example:
        >>> EDSR(2, num_blocks=2, num_filters=8, scale_factor=2)(torch.rand(1, 1, 16, 17), [32, 34]).shape
        torch.Size([1, 1, 32, 34])

    References:
        B. Lim, S. Son, H. Kim, S. Nah, K. M. Lee, Enhanced deep residual networks for single image super-resolution, 2017,
        doi:10.1109/CVPRW.2017.151. On the HR grid: V. Cherukuri, T. Guo, S. J. Schiff, V. Monga, Deep MR brain image
        super-resolution using spatio-structural priors, 2020, doi:10.1109/TIP.2019.2942510. ICNR: A. Aitken et al.,
        Checkerboard artifact free sub-pixel convolution, 2017, arXiv:1707.02937.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        num_blocks: int = 32,
        num_filters: int = 256,
        residual_scale: float = 0.1,
        scale_factor: int = 1,
        residual: bool = False,
        initialisation: str | float = "msra",
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if min(in_channels, num_blocks, num_filters) < 1:
            given = f"{in_channels}, {num_blocks} and {num_filters}"
            raise ValueError(f"in_channels, num_blocks and num_filters must be >= 1, got {given}")
        if not residual_scale > 0:
            raise ValueError(f"residual_scale must be > 0, got {residual_scale}")
        if scale_factor not in _STAGES:
            raise ValueError(f"scale_factor must be one of {tuple(_STAGES)}, got {scale_factor}")
        convolution = Conv[Conv.CONV, spatial_dims]
        head = convolution(in_channels, num_filters, 3, padding=1)
        blocks = [ResidualBlock(spatial_dims, num_filters, residual_scale) for _ in range(num_blocks)]
        body = nn.Sequential(*blocks, convolution(num_filters, num_filters, 3, padding=1))
        # MONAI's pooling after the shuffle would shift the image by half a voxel.
        stages = (
            SubpixelUpsample(spatial_dims, num_filters, scale_factor=factor, apply_pad_pool=False)
            for factor in _STAGES[scale_factor]
        )
        upsampler = nn.Sequential(*stages)
        tail = convolution(num_filters, 1, 3, padding=1)
        super().__init__(spatial_dims, head, body, upsampler, tail, scale_factor, residual, initialisation)
