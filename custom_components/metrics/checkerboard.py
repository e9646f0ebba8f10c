"""Checkerboard artefacts: how far the spectrum stands out at the period of the scale factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics.regression import RegressionMetric
from monai.utils import MetricReduction

_LINE = 2  # bins on each side of a line that are not looked at: its window fills one
_RADIUS = 4  # bins on each side of a line to its neighbours; few, as spectra are curved
_FLOOR = 1e-12  # of the largest power; what is below is rounding


def _factors(scale_factor: int | Sequence[int], spatial_dims: int | None = None) -> tuple[int, ...]:
    factors = tuple(scale_factor) if isinstance(scale_factor, Sequence) else (scale_factor,) * (spatial_dims or 1)
    if any(int(s) != s or s < 1 for s in factors) or max(factors, default=1) == 1:
        raise ValueError(f"scale_factor must be integers >= 1, one of them above 1, got {scale_factor}")
    if spatial_dims is not None and len(factors) != spatial_dims:
        raise ValueError(f"expected {spatial_dims} scale factors, one for each spatial axis, got {len(factors)}")
    return tuple(int(s) for s in factors)


def _laplacian(x: torch.Tensor, factors: tuple[int, ...]) -> torch.Tensor:
    """Of an image `(*spatial)` along its upsampled axes, which lose a voxel at both ends."""
    inner = tuple(slice(1, -1) if s > 1 else slice(None) for s in factors)
    result = torch.zeros_like(x[inner])
    for axis, s in enumerate(factors):
        if s > 1:
            for side in (slice(None, -2), slice(2, None)):
                beside = tuple(side if a == axis else part for a, part in enumerate(inner))
                result += x[inner] - x[beside]
    return result


def _power_near_lines(image: torch.Tensor, factors: tuple[int, ...]) -> torch.Tensor:
    """Power of the windowed Laplacian around each k / s: a pair of axes `(s, neighbours)` for each of `(*spatial)`."""
    values = _laplacian(image, factors)
    shape: list[int] = []
    for axis, s in enumerate(factors):
        n = values.shape[axis] // s * s  # whole periods, so that k / s is a frequency of the discrete transform
        radius = _RADIUS if s > 1 else min(_RADIUS, (n - 1) // 2)
        bins = torch.arange(s)[:, None] * (n // s) + torch.arange(-radius, radius + 1)
        places = torch.arange(n, dtype=torch.float64)
        window = torch.sin((places + 0.5) * (math.pi / n)).square()
        angle = 2 * math.pi / n * (bins.reshape(-1, 1) * places % n)
        cos, sin = ((window * wave).to(values.device) for wave in (torch.cos(angle), torch.sin(angle)))
        waves = torch.complex(cos, sin) if values.is_complex() else torch.cat([cos, sin])  # a real image: half the work
        values = torch.tensordot(values.narrow(axis, 0, n), waves, dims=([axis], [1])).movedim(-1, axis)
        if not values.is_complex():
            values = torch.complex(*values.chunk(2, axis))
        shape += [s, 2 * radius + 1]
    return values.abs().square().reshape(shape)


def _decibel(image: torch.Tensor, factors: tuple[int, ...]) -> float:
    """Of one image `(*spatial)`."""
    power = _power_near_lines(image, factors)
    dims = len(factors)
    power = power.permute(*range(0, 2 * dims, 2), *range(1, 2 * dims, 2)).flatten(0, dims - 1)[1:]  # 0 is the mean
    floor = _FLOOR * float(power.max())
    if floor == 0:
        return 0.0
    far = torch.zeros((), dtype=torch.bool, device=power.device)
    for size in power.shape[1:]:
        far = far[..., None] | ((torch.arange(size, device=power.device) - size // 2).abs() > _LINE)
    line = power[tuple(slice(None) if axis == 0 else size // 2 for axis, size in enumerate(power.shape))]
    # the power of noise has an exponential distribution, whose median is ln 2 of its mean
    local = power[:, far].quantile(0.5, 1) / math.log(2)
    return 10 * math.log10(float(((line + floor) / (local + floor)).mean()))


def checkerboard(image: torch.Tensor, scale_factor: int | Sequence[int]) -> torch.Tensor:
    r"""Strength of the pattern that repeats with the period of the scale factor, in dB over what surrounds it in the spectrum.

    .. math:: A = 10 \log_{10} \frac{1}{K} \sum_k \frac{P(k / s)}{\mathrm{median}_{f \in N(k / s)} P(f) / \ln 2}, \qquad
        P = |\mathcal F(w \, \nabla^2 X)|^2

    Networks that upsample by s treat the s positions in an HR block by weights of their own, where these differ in sum the image
    is multiplied by a pattern of period s: a line in the spectrum at each of the K = s^d - 1 frequencies k / s but 0. The Laplacian
    takes away the mean and most of the slope of the spectrum, the Hann window w what the borders would add; N are the
    frequencies up to 4 bins away, without the line itself.

    Images that have as much there as around it are about 0 dB: noise of 64 x 64 pixels that is smoothed by a Gaussian of 0.7 pixels
    gives -2 +- 4 dB at s = 2, where K is 3, and 0 +- 2 dB at s = 4. With every second pixel along both axes times 1.02 it is 15 dB
    at s = 2, times 1.1 28 dB; 120 dB is the most. Interpolated images are below 0, as interpolation kernels have zeros there. A
    pattern that changes its sign within the image, so that it has no mean, is not seen.

    Args:
        image: `(B, C, *spatial)`, any range and number of axes, on the HR grid.
        scale_factor: s, an integer for all axes or for each; an axis of factor 1 was not upsampled and may have any length.

    Returns:
        Strength `(B, C)` in dB; 0 for a constant image.

    Raises:
        ValueError: on other scale factors, upsampled axes shorter than 8 s + 2 voxels.

    Example:
        >>> x = torch.rand(1, 1, 64, 64)
        >>> x[..., ::2, ::2] *= 0.8
        >>> bool(checkerboard(x, 2) > 20)
        True

    References:
        A. Odena, V. Dumoulin, C. Olah, Deconvolution and checkerboard artifacts, 2016, doi:10.23915/distill.00003. A. Aitken et
        al., Checkerboard artifact free sub-pixel convolution, 2017, arXiv:1707.02937. The measure is our own.
    """
    factors = _factors(scale_factor, image.ndim - 2)
    least = [2 * _RADIUS * s + 2 if s > 1 else 1 for s in factors]  # neighbourhoods touch, but do not overlap
    if any(n < m for n, m in zip(image.shape[2:], least, strict=True)):
        raise ValueError(f"expected at least {tuple(least)} voxels per axis, got {tuple(image.shape[2:])}")
    x = image.detach().as_subclass(torch.Tensor).double()
    values = [[_decibel(channel, factors) for channel in item] for item in x]
    return torch.tensor(values, dtype=torch.float32).reshape(image.shape[:2])


class Checkerboard(RegressionMetric):
    """`checkerboard` of the prediction, as a MONAI metric; the truth is not looked at and may be left out.

    Args:
        scale_factor: integer, for all axes or for each.
        reduction: of the values per scan and channel, see `monai.metrics.regression.RegressionMetric`.
        get_not_nans: whether `aggregate` gives the number of valid values too.

    Raises:
        ValueError: as `checkerboard`.
    """

    def __init__(
        self,
        scale_factor: int | Sequence[int],
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, get_not_nans=get_not_nans)
        _factors(scale_factor)
        self.scale_factor = scale_factor

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **_: Any) -> torch.Tensor:
        return self._compute_metric(y_pred, y)

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        """Strength in each `(B, C, *spatial)` image, `(B, C)`."""
        return checkerboard(y_pred, self.scale_factor)
