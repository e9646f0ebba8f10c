"""Natural scene statistics of slices: how locally normalised intensities, and products of neighbours, are distributed."""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional

from ..acquisition import acquisition_operator

WINDOW = 7  # voxels of the Gaussian window, whose standard deviation is a sixth of it
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # rows and columns to the other factor: along, down, both diagonals
FEATURES = 36  # (2 + 4 per neighbour) at two scales
SHAPES = (0.2, 10.0)  # range of the shapes that the fits give


class Normalised(NamedTuple):
    """Normalised slices, with the local mean and the local standard deviation; each of the shape of the slices."""

    coefficients: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor


class BlockFeatures(NamedTuple):
    """What the blocks of slices look like; a grid `(S, rows, columns)` of blocks each."""

    features: torch.Tensor  # (S, rows, columns, 36), NaN where all voxels of the block are equal
    sharpness: torch.Tensor  # mean local standard deviation
    share: torch.Tensor  # part of the voxels whose local mean is foreground


def normalised(slices: torch.Tensor, constant: float = 1 / 255) -> Normalised:
    r"""Mean-subtracted, contrast-normalised coefficients of slices `(S, H, W)`, H and W >= 4.

    .. math:: \hat I = \frac{I - \mu}{\sigma + C},\quad \mu = w * I,\quad \sigma^2 = |w * I^2 - \mu^2|

    `w` is a Gaussian of 7 x 7 voxels and standard deviation 7/6, of sum 1; slices are continued by their edge voxels.

    Args:
        slices: `(S, H, W)`, of floating point.
        constant: `C`, one grey level of 255 in the unit of the slices: 1 / 255 for a range of 1.
    """
    weights = torch.exp(-0.5 * (torch.arange(WINDOW).to(slices) - WINDOW // 2).square() / (WINDOW / 6) ** 2)
    weights = weights / weights.sum()

    def blurred(x: torch.Tensor) -> torch.Tensor:
        padded = functional.pad(x[:, None], [WINDOW // 2] * 4, mode="replicate")[:, 0]
        for axis in (1, 2):  # sums of shifted slices: several times faster than a float64 convolution on the CPU
            n = padded.shape[axis] - WINDOW + 1
            padded = sum((padded.narrow(axis, k, n) * w for k, w in enumerate(weights.tolist())), torch.zeros(()).to(x))
        return padded

    mean = blurred(slices)
    deviation = (blurred(slices.square()) - mean.square()).abs().sqrt()
    return Normalised((slices - mean) / (deviation + constant), mean, deviation)


@cache
def _shape_table() -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes, and the ratio (mean of |x|)^2 / (mean of x^2) of the generalised Gaussian of each, which grows with the shape."""
    shapes = torch.logspace(math.log10(SHAPES[0]), math.log10(SHAPES[1]), 4001, dtype=torch.float64)
    log_ratio = 2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)
    return shapes, log_ratio.exp()


def _shape_of(ratio: torch.Tensor) -> torch.Tensor:
    """Shape of the generalised Gaussian with this ratio, within `SHAPES`; linear between the entries of the table."""
    shapes, ratios = (t.to(ratio) for t in _shape_table())
    right = torch.searchsorted(ratios, ratio.contiguous()).clamp(1, len(shapes) - 1)
    left = right - 1
    part = ((ratio - ratios[left]) / (ratios[right] - ratios[left])).clamp(0, 1)
    return shapes[left] + part * (shapes[right] - shapes[left])


def _scale_per_deviation(shape: torch.Tensor) -> torch.Tensor:
    """`sqrt(G(1/a) / G(3/a))`: the scale of a generalised Gaussian of standard deviation 1."""
    return (0.5 * (torch.lgamma(1 / shape) - torch.lgamma(3 / shape))).exp()


def symmetric_fit(mean_abs: torch.Tensor, mean_square: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Shape :math:`\alpha` and scale :math:`\beta` of a generalised Gaussian of mean 0, by its moments.

    .. math:: f(x) \propto \exp(-(|x| / \beta)^\alpha),\qquad
        \frac{(\overline{|x|})^2}{\overline{x^2}} = \frac{\Gamma(2/\alpha)^2}{\Gamma(1/\alpha)\,\Gamma(3/\alpha)},\qquad
        \beta = \sqrt{\overline{x^2}\,\frac{\Gamma(1/\alpha)}{\Gamma(3/\alpha)}}

    Args:
        mean_abs: mean of |x|; any shape, float64.
        mean_square: mean of x^2; NaN results where it is 0.

    Reference:
        K. Sharifi, A. Leon-Garcia, Estimation of shape parameter for generalized Gaussian distributions in subband decompositions
        of video, 1995, doi:10.1109/76.350779.
    """
    shape = _shape_of(mean_abs.square() / mean_square)
    return shape, mean_square.sqrt() * _scale_per_deviation(shape)


def asymmetric_fit(
    mean_abs: torch.Tensor, left_square: torch.Tensor, right_square: torch.Tensor, left_share: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Shape, mean, left and right scale of an asymmetric generalised Gaussian with its mode at 0, by its moments.

    .. math:: f(x) \propto \exp(-(-x / \beta_l)^\alpha)\ (x < 0),\quad \exp(-(x / \beta_r)^\alpha)\ (x \ge 0),\qquad
        \eta = (\beta_r - \beta_l)\,\Gamma(2/\alpha) / \Gamma(1/\alpha)

    With :math:`\sigma_l, \sigma_r` the root mean squares of the negative and of the other values and :math:`\gamma` their ratio,
    the shape solves the symmetric equation for
    :math:`\frac{(\overline{|x|})^2}{\overline{x^2}}\,\frac{(\gamma^3 + 1)(\gamma + 1)}{(\gamma^2 + 1)^2}`.

    Args:
        mean_abs: mean of |x|; any shape, float64.
        left_square: mean over all values of x^2 where x < 0, else 0.
        right_square: mean over all values of x^2 where x >= 0, else 0.
        left_share: part of the values that is negative.

    Reference:
        N.-E. Lasmar, Y. Stitou, Y. Berthoumieu, Multiscale skewed heavy tailed model for texture analysis, 2009,
        doi:10.1109/ICIP.2009.5414404.
    """
    left = (left_square / left_share.clamp_min(1e-12)).sqrt()  # 0 where no value is negative
    right = (right_square / (1 - left_share).clamp_min(1e-12)).sqrt()
    skew = (
        (left.pow(3) + right.pow(3)) * (left + right) / (left.square() + right.square()).square()
    )  # of gamma, but for gamma = inf
    shape = _shape_of(mean_abs.square() / (left_square + right_square) * skew)
    left, right = (side * _scale_per_deviation(shape) for side in (left, right))
    mean = (right - left) * (torch.lgamma(2 / shape) - torch.lgamma(1 / shape)).exp()
    return shape, mean, left, right


def _features_of_scale(x: torch.Tensor, block: int, stride: int) -> list[torch.Tensor]:
    """The 18 features of the blocks of coefficients `(S, H, W)` at one scale."""

    def pooled(values: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(values[:, None], block, stride)[:, 0]

    features = list(symmetric_fit(pooled(x.abs()), pooled(x.square())))
    for rows, columns in NEIGHBOURS:
        product = x * x.roll((-rows, -columns), (1, 2))
        square, negative = product.square(), (product < 0).to(x)
        left = pooled(square * negative)
        features += asymmetric_fit(pooled(product.abs()), left, pooled(square) - left, pooled(negative))
    return features


def block_features(
    slices: torch.Tensor, block: int, stride: int, constant: float = 1 / 255, foreground: float = 0.1
) -> BlockFeatures:
    """The 36 features of each block of slices.

    Shape and scale of the normalised intensities; shape, mean, left and right scale of their products with each of four
    neighbours; then the same at half the resolution (Matlab's `imresize`), where a block is half as many voxels wide. A neighbour
    may lie outside the block; at the edge of a slice it is the voxel at the other edge.

    Args:
        slices: `(S, H, W)`, float64, H and W at least `block`; a last odd row or column is left out.
        block: voxels along both sides of a block, even.
        stride: voxels from a block to the next, even.
        constant: see `normalised`.
        foreground: local mean above which a voxel is no background, in the unit of the slices.
    """
    size = tuple(n - n % 2 for n in slices.shape[1:])
    slices = slices[:, : size[0], : size[1]]
    half = acquisition_operator(size, tuple(n // 2 for n in size), "bicubic")(slices[None])[0]
    full = normalised(slices, constant)
    features = _features_of_scale(full.coefficients, block, stride)
    features += _features_of_scale(normalised(half, constant).coefficients, block // 2, stride // 2)
    sharpness, share = (
        functional.avg_pool2d(v[:, None], block, stride)[:, 0]
        for v in (full.deviation, (full.mean > foreground).to(slices))
    )
    return BlockFeatures(torch.stack(features, dim=-1), sharpness, share)
