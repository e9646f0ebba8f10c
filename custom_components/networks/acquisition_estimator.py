"""What is not told of an acquisition, estimated from the scan: the widths of its slice profiles and its noise."""

from __future__ import annotations

from itertools import product

import torch
from torch import nn
from torch.nn import functional

FIELD, STRIDE = 9, 4  # voxels that a location sees, and from one location to the next, per axis
GAIN = 10.0  # brings the detail of scans in [0, 1] to about 1
WIDTHS, NOISE = (
    (0.25, 2.5),
    (0.0, 0.04),
)  # LR voxels, and of the [0, 1] scale: those of the training, to which estimates are limited
LEAST = 1e-3  # of a pooled feature and of the weights: keeps logarithm and quotient finite without any detail


class _SymmetricConv(nn.Conv3d):
    """Convolution of size 3 without padding or bias that treats its last two axes alike: its weights are symmetric in them.

    With `detail` the weights of each filter have a mean of 0, so that it sees differences alone.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, detail: bool = False) -> None:
        super().__init__(in_channels, out_channels, 3, stride, bias=False)
        nn.init.kaiming_normal_(self.weight, 0.1)
        self.detail = detail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = (self.weight + self.weight.transpose(-1, -2)) / 2
        if self.detail:
            weight = weight - weight.mean((1, 2, 3, 4), keepdim=True)
        return functional.conv3d(x, weight, stride=self.stride)


def _blocks(size: int, locations: int) -> list[slice]:
    """Parts of an axis that hold so many locations each, every location once."""
    count = (size - FIELD) // STRIDE + 1
    starts = range(0, count, locations)
    return [slice(STRIDE * i, STRIDE * (min(i + locations, count) - 1) + FIELD) for i in starts]


class AcquisitionEstimator(nn.Module):
    r"""Estimate the width of the slice profile on each axis, and the noise, from a scan alone.

    .. math:: \hat w_a, \hat n_a = \text{head}\left(
        \log \frac{\sum_i s_i f_i}{\sum_i s_i}, \log_2 r_a, \tfrac12 \log_2 r_b r_c\right), \quad
        (f_i, s_i) = \text{features}(y \text{ with axis } a \text{ first}), \quad \hat n = \frac13 \sum_a \hat n_a

    Three convolutions see the scan with one axis first, and the other two alike: their weights are symmetric in these, so that one
    small network serves all axes and their order does not count. Every 4th voxel per axis is a location `i` with features and a
    weight, by which background says nothing. The features are magnitudes of detail: the convolutions have no bias and do not see
    the mean, so that a scan times a number gives features times that number. Blur is a matter of quotients of detail of one kind
    to another, hence the logarithm. The factors r, of this axis and the mean of the other two, say how sharp a target is asked for,
    and so which part of the blur is the acquisition's.

    A scan is read block by block: beside it lives one block of the first features, whatever its size.

    Args:
        num_filters: of the first convolution; the other two have twice as many.
        block: locations per axis of a block; 16 are 69 voxels.

    Shape:
        `(B, 1, X, Y, Z)` in [0, 1] and factors `(B, 3)`, HR voxels per LR voxel on each axis, to `(B, 4)`: full width at half
        maximum of the slice profile in LR voxels per axis, and the standard deviation of the noise in units of 0.03,
        `custom_components.networks.any_scale.NOISE_UNIT`. Axes of less than 9 voxels are continued by their last one.

    Raises:
        ValueError: on arguments below 1; on call, on other shapes.

    Example:
        >>> AcquisitionEstimator()(torch.rand(2, 1, 24, 20, 9), torch.full((2, 3), 1.5)).shape
        torch.Size([2, 4])
    """

    def __init__(self, num_filters: int = 16, block: int = 16) -> None:
        super().__init__()
        if min(num_filters, block) < 1:
            raise ValueError(f"num_filters and block must be >= 1, got {num_filters} and {block}")
        self.block = block
        wide = 2 * num_filters
        self.features = nn.Sequential(
            _SymmetricConv(1, num_filters, detail=True),
            nn.LeakyReLU(0.1, inplace=True),
            _SymmetricConv(num_filters, wide, stride=2),
            nn.LeakyReLU(0.1, inplace=True),
            _SymmetricConv(wide, wide, stride=2),
        )
        self.weight = nn.Conv3d(wide, 1, 1)
        last = nn.Linear(2 * wide, 2)
        with torch.no_grad():
            last.bias.copy_(torch.tensor([1.0, 0.2]))  # about the mean of what there is
        self.head = nn.Sequential(nn.Linear(wide + 2, 2 * wide), nn.LeakyReLU(0.1, inplace=True), last)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        """Weighted mean of the features over a scan `(B, 1, X, Y, Z)`, `(B, C)`."""
        total, weights = x.new_zeros(len(x), self.weight.in_channels), x.new_zeros(len(x), 1)
        for block in product(*(_blocks(size, self.block) for size in x.shape[2:])):
            part = (slice(None), slice(None), *block)
            f = self.features(GAIN * x[part]).abs()
            s = torch.sigmoid(self.weight(f))
            total = total + (s * f).sum((2, 3, 4))
            weights = weights + s.sum((2, 3, 4))
        return total / (weights + LEAST)

    def forward(self, x: torch.Tensor, scale_factor: torch.Tensor) -> torch.Tensor:
        """Estimate for scans `(B, 1, X, Y, Z)` that go to grids finer by factors `(B, 3)`, `(B, 4)`."""
        if x.ndim != 5 or x.shape[1] != 1 or 0 in x.shape or scale_factor.shape != (len(x), 3):
            given = f"{tuple(x.shape)} and {tuple(scale_factor.shape)}"
            raise ValueError(f"expected scans (B, 1, X, Y, Z) and factors (B, 3), got {given}")
        missing = [max(FIELD - size, 0) for size in reversed(x.shape[2:])]
        if any(missing):
            x = functional.pad(x, [n for m in missing for n in (0, m)], mode="replicate")
        factors = scale_factor.log2()
        others = (factors.sum(1, keepdim=True) - factors) / 2
        said = []
        for axis in range(3):
            seen = (self._pooled(x.movedim(axis + 2, 2)) + LEAST).log()
            said.append(self.head(torch.cat([seen, factors[:, axis : axis + 1], others[:, axis : axis + 1]], 1)))
        widths_and_noise = torch.stack(said, -1)
        return torch.cat([widths_and_noise[:, 0], widths_and_noise[:, 1].mean(-1, keepdim=True)], -1)
