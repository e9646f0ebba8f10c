"""RRDBNet, the generator of ESRGAN: residual-in-residual dense blocks without normalisation."""

from __future__ import annotations

import torch
from monai.networks.blocks import SubpixelUpsample
from monai.networks.layers.factories import Conv
from torch import nn

from .residual_upsampling import ResidualUpsampling

_DOUBLINGS = {1: 0, 2: 1, 4: 2, 8: 3}
UPSAMPLINGS = ("subpixel", "nearest")


class DenseBlock(nn.Module):
    r"""Five convolutions, each of which reads the input and what those before it made; scaled and added to the input.

    .. math:: f_i = \mathrm{LeakyReLU}(W_i * [x, f_1, \dots, f_{i-1}] + B_i), \; i = 1 \dots 4, \qquad
        y = x + \beta \, (W_5 * [x, f_1, \dots, f_4] + B_5)

    Args:
        spatial_dims: 2 or 3.
        num_filters: channels of input and output.
        growth: channels of each f_i.
        residual_scale: beta.
        negative_slope: of the leaky rectifiers.

    Shape:
        `(B, num_filters, *spatial)` to the same.
    """

    def __init__(
        self, spatial_dims: int, num_filters: int, growth: int, residual_scale: float, negative_slope: float
    ) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        convolution = Conv[Conv.CONV, spatial_dims]
        self.layers = nn.ModuleList(
            nn.Sequential(
                convolution(num_filters + i * growth, growth, 3, padding=1),
                nn.LeakyReLU(negative_slope, inplace=True),
            )
            for i in range(4)
        )
        self.last = convolution(num_filters + 4 * growth, num_filters, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, num_filters, *spatial)` to the same shape."""
        features = x
        for layer in self.layers:
            features = torch.cat([features, layer(features)], 1)
        y: torch.Tensor = x + self.residual_scale * self.last(features)
        return y


class RRDB(nn.Module):
    r"""Residual-in-residual dense block: :math:`y = x + \beta D_3(D_2(D_1(x)))` with three `DenseBlock`; arguments as there."""

    def __init__(
        self, spatial_dims: int, num_filters: int, growth: int, residual_scale: float, negative_slope: float
    ) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.blocks = nn.Sequential(
            *(DenseBlock(spatial_dims, num_filters, growth, residual_scale, negative_slope) for _ in range(3))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(B, num_filters, *spatial)` to the same shape."""
        y: torch.Tensor = x + self.residual_scale * self.blocks(x)
        return y


def _doubling(spatial_dims: int, num_filters: int, upsampling: str, negative_slope: float) -> nn.Sequential:
    """Twice the size along each axis, the same number of channels."""
    activation = nn.LeakyReLU(negative_slope, inplace=True)
    if upsampling == "subpixel":
        # MONAI's pooling after the shuffle would shift the image by half a voxel.
        shuffle = SubpixelUpsample(spatial_dims, num_filters, scale_factor=2, apply_pad_pool=False)
        return nn.Sequential(shuffle, activation)
    convolution = Conv[Conv.CONV, spatial_dims](num_filters, num_filters, 3, padding=1)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution, activation)


class RRDBNet(ResidualUpsampling):
    r"""Generator of ESRGAN.

    .. math::

        F_0 = \phi(W_h * Z + B_h), \quad F_i = \mathrm{RRDB}_i(F_{i-1}), \quad F = F_0 + W_b * F_N + B_b, \quad
        \hat X = W_t * \phi(W_u * {\uparrow}(F) + B_u) + B_t

    with the leaky rectifier phi. With `scale_factor` 1 `Z` is the LR image interpolated to the HR grid and nothing is upsampled;
    above 1 it is the LR image itself, and all axes are doubled once, twice or three times, each time followed by phi. Kernels
    have size 3 but for the first, zero-padded, so that any size goes. At scale 1 the receptive field is
    `2 (15 num_blocks + 3) + first_kernel_size` voxels per axis.

    After the thesis: the first kernel of 9 with an activation behind it, where ESRGAN has one of 3 and none; N and beta are the
    same in both. The text of the thesis leaves open the generator's slope, its upsampling and its end: these are ESRGAN's, with
    sub-pixel convolutions as in SRGAN, on which it builds, or nearest neighbours as in ESRGAN's code.

    Departures: sub-pixel weights start equal within each HR block (ICNR), so that training starts without a checkerboard.

    Args:
        spatial_dims: 2 or 3; 2 in the thesis.
        in_channels: channels of the input; the first is the image to be sharpened.
        num_blocks: residual-in-residual dense blocks N; 23 in the thesis.
        num_filters: filters of each layer outside the dense blocks; 64 in the thesis.
        growth: filters of each of the first four layers of a dense block; 32 in ESRGAN.
        residual_scale: beta, of each dense block and of each RRDB; 0.2 in the thesis.
        scale_factor: 1, 2, 4 or 8.
        upsampling: `subpixel` (convolution to 2^d times the channels, then shuffled) or `nearest` (repeated, then convolved).
        first_kernel_size: odd; 9 in the thesis, 3 in ESRGAN.
        residual: add the first input channel, above scale 1 interpolated linearly, to the result. The thesis does not.
        negative_slope: of the leaky rectifiers; 0.2 in ESRGAN.
        initialisation: `msra`, `xavier` or the standard deviation of a normal distribution (see `initialise_`).
        dense_weights: factor of the weights of the dense blocks at the start; 0.1 in ESRGAN's code, as deep residual networks train
            more easily from small weights.

    Shape:
        `(B, in_channels, *spatial)` in [0, 1] to `(B, 1, *(scale_factor * spatial))`.

    Raises:
        ValueError: on arguments out of range; on call, when the wished shape is not the one that it makes.

    Example:
        >>> RRDBNet(2, num_blocks=1, num_filters=8, growth=4, scale_factor=4)(torch.rand(1, 1, 16, 17), [64, 68]).shape
        torch.Size([1, 1, 64, 68])

    References:
        X. Wang et al., ESRGAN: enhanced super-resolution generative adversarial networks, 2018, arXiv:1809.00219. In MRI: a
        bachelor's thesis at Universitat Pompeu Fabra on super-resolution of fetal MRI by ESRGAN, section 2.1. ICNR: A. Aitken et
        al., Checkerboard artifact free sub-pixel convolution, 2017, arXiv:1707.02937.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        num_blocks: int = 23,
        num_filters: int = 64,
        growth: int = 32,
        residual_scale: float = 0.2,
        scale_factor: int = 1,
        upsampling: str = "subpixel",
        first_kernel_size: int = 9,
        residual: bool = False,
        negative_slope: float = 0.2,
        initialisation: str | float = "msra",
        dense_weights: float = 0.1,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if min(in_channels, num_blocks, num_filters, growth) < 1:
            given = f"{in_channels}, {num_blocks}, {num_filters} and {growth}"
            raise ValueError(f"in_channels, num_blocks, num_filters and growth must be >= 1, got {given}")
        for name, factor in {"residual_scale": residual_scale, "dense_weights": dense_weights}.items():
            if not factor > 0:
                raise ValueError(f"{name} must be > 0, got {factor}")
        if scale_factor not in _DOUBLINGS:
            raise ValueError(f"scale_factor must be one of {tuple(_DOUBLINGS)}, got {scale_factor}")
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling must be one of {UPSAMPLINGS}, got {upsampling!r}")
        if first_kernel_size < 1 or first_kernel_size % 2 == 0:
            raise ValueError(f"first_kernel_size must be odd and >= 1, got {first_kernel_size}")
        if not 0 <= negative_slope < 1:
            raise ValueError(f"negative_slope must be in [0, 1), got {negative_slope}")
        convolution = Conv[Conv.CONV, spatial_dims]
        head = nn.Sequential(
            convolution(in_channels, num_filters, first_kernel_size, padding=first_kernel_size // 2),
            nn.LeakyReLU(negative_slope, inplace=True),
        )
        blocks = [RRDB(spatial_dims, num_filters, growth, residual_scale, negative_slope) for _ in range(num_blocks)]
        body = nn.Sequential(*blocks, convolution(num_filters, num_filters, 3, padding=1))
        upsampler = nn.Sequential(
            *(_doubling(spatial_dims, num_filters, upsampling, negative_slope) for _ in range(_DOUBLINGS[scale_factor]))
        )
        tail = nn.Sequential(
            convolution(num_filters, num_filters, 3, padding=1),
            nn.LeakyReLU(negative_slope, inplace=True),
            convolution(num_filters, 1, 3, padding=1),
        )
        super().__init__(spatial_dims, head, body, upsampler, tail, scale_factor, residual, initialisation)
        with torch.no_grad():
            for block in self.modules():
                if isinstance(block, DenseBlock):
                    for parameter in block.parameters():
                        parameter.mul_(dense_weights)
