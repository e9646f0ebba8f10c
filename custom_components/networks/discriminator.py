"""The discriminator of SRGAN and ESRGAN: VGG-like, strided convolutions that end in one number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Norm
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm as normalised

from .initialisation import initialise_

_WIDTHS = (1, 2, 4, 8)
_STRIDE = 2 ** len(_WIDTHS)


class Discriminator(nn.Module):
    r"""Tell real HR images from made ones.

    Eight convolutions of size 3 with 64, 64, 128, 128, 256, 256, 512 and 512 filters, every second one of stride 2, each followed
    by batch normalisation and a leaky rectifier; then dense layers of 1024 and 1. It gives the logit C(x): the relativistic loss
    takes differences of logits, and the losses apply the sigmoid themselves.

    The thesis flattens the features of its patches of 128 x 128, so that no other size goes. By default they are averaged over
    space here instead: any size goes, and in 2D the first dense layer has 0.5 M weights in place of 33.6 M. `patch_size=128`
    gives the thesis' layer.

    Batch normalisation follows each convolution, as the thesis writes; SRGAN has none behind the first. In training it lets the
    items of a batch change each other's logits. Real and made images in batches of their own are each normalised by their own
    statistics: a discriminator that was trained so tells them apart in training mode only, not by running statistics of both.
    With `batch_norm=False` and `spectral_norm=True` each image is judged alone.

    Args:
        spatial_dims: 2 or 3; 2 in the thesis.
        in_channels: channels of the images to be judged.
        num_filters: filters of the first two convolutions; 64 in the thesis.
        dense_features: of the first dense layer; 1024 in SRGAN.
        patch_size: size of the patches, one number or one for each axis; 128 in the thesis. None averages over space.
        batch_norm: as in the thesis.
        spectral_norm: divide each weight by its largest singular value, estimated by one power iteration a step (Miyato et al.).
        negative_slope: of the leaky rectifiers; 0.2 in the thesis.
        initialisation: of the convolutions: `msra`, `xavier` or the standard deviation of a normal distribution (see
            `initialise_`). Dense layers start by PyTorch's default.

    Shape:
        `(B, in_channels, *spatial)` in [0, 1], any size but that with `patch_size` it is this one, to logits `(B, 1)`. With batch
        normalisation a training batch of one needs more than 16 voxels along an axis.

    Raises:
        ValueError: on arguments out of range; on call, when a patch has not the size of `patch_size`.

    Example:
        >>> Discriminator(2, num_filters=8)(torch.rand(4, 1, 40, 33)).shape
        torch.Size([4, 1])

    References:
        C. Ledig et al., Photo-realistic single image super-resolution using a generative adversarial network, 2017,
        doi:10.1109/CVPR.2017.19, figure 4. In MRI: a bachelor's thesis at Universitat Pompeu Fabra on super-resolution of fetal MRI
        by ESRGAN, section 2.1, figure 7. T. Miyato et al., Spectral normalization for generative adversarial networks, 2018,
        arXiv:1802.05957.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        num_filters: int = 64,
        dense_features: int = 1024,
        patch_size: int | Sequence[int] | None = None,
        batch_norm: bool = True,
        spectral_norm: bool = False,
        negative_slope: float = 0.2,
        initialisation: str | float = "msra",
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if min(in_channels, num_filters, dense_features) < 1:
            given = f"{in_channels}, {num_filters} and {dense_features}"
            raise ValueError(f"in_channels, num_filters and dense_features must be >= 1, got {given}")
        if not 0 <= negative_slope < 1:
            raise ValueError(f"negative_slope must be in [0, 1), got {negative_slope}")
        self.patch_size: tuple[int, ...] | None = None
        if patch_size is not None:
            sizes = (patch_size,) * spatial_dims if isinstance(patch_size, int) else tuple(patch_size)
            if len(sizes) != spatial_dims or min(sizes) < 1:
                raise ValueError(f"patch_size must be {spatial_dims} sizes >= 1, got {patch_size}")
            self.patch_size = sizes
        convolution, norm = Conv[Conv.CONV, spatial_dims], Norm[Norm.BATCH, spatial_dims]
        layers: list[nn.Module] = []
        channels = in_channels
        for width in _WIDTHS:
            for stride in (1, 2):
                # a bias would be taken away again by the mean of the normalisation
                conv = convolution(channels, width * num_filters, 3, stride=stride, padding=1, bias=not batch_norm)
                channels = width * num_filters
                initialise_(conv, initialisation)
                layers.append(normalised(conv) if spectral_norm else conv)
                if batch_norm:
                    layers.append(norm(channels))
                layers.append(nn.LeakyReLU(negative_slope, inplace=True))
        self.features = nn.Sequential(*layers)
        voxels = 1 if self.patch_size is None else math.prod(math.ceil(n / _STRIDE) for n in self.patch_size)
        dense, last = nn.Linear(channels * voxels, dense_features), nn.Linear(dense_features, 1)
        self.head = nn.Sequential(
            normalised(dense) if spectral_norm else dense,
            nn.LeakyReLU(negative_slope, inplace=True),
            normalised(last) if spectral_norm else last,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `(B, 1)` of images `(B, in_channels, *spatial)`: the higher, the more real."""
        if self.patch_size is not None and tuple(x.shape[2:]) != self.patch_size:
            raise ValueError(f"expected patches of {self.patch_size}, got {tuple(x.shape[2:])}")
        features = self.features(x)
        pooled = features.flatten(2).mean(2) if self.patch_size is None else features.flatten(1)
        logits: torch.Tensor = self.head(pooled)
        return logits
