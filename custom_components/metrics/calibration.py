"""Does an expected error tell the error? Bins of voxels by the expected one, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

_CELLS = 64  # per octave of the standard deviation: 1.1 % wide
_LOWEST, _HIGHEST = -64, 64  # octaves: any unit of a scan
_BLOCK = 2**20  # voxels at once


class CalibrationCurve(NamedTuple):
    """Expected and true error per bin, from the lowest expected one on, in the unit of the images.

    - `predicted`: root of the mean of the expected squared errors.
    - `observed`: root of the mean of the squared errors.
    """

    predicted: tuple[float, ...]
    observed: tuple[float, ...]

    @property
    def calibration_error(self) -> float:
        r"""Expected normalised calibration error: :math:`\frac{1}{B} \sum_b |p_b - o_b| / p_b`, 0 where all bins are right.

        A bin of an expected error of 0 counts 0 where that is so, else the sum is infinite.
        """
        parts = [
            abs(p - o) / p if p else (math.inf if o else 0.0)
            for p, o in zip(self.predicted, self.observed, strict=True)
        ]
        return sum(parts) / len(parts)


def mean_curve(curves: Sequence[CalibrationCurve]) -> CalibrationCurve:
    """Quadratic mean of curves, bin by bin: each scan counts alike.

    Raises:
        ValueError: on no curve, or curves of several numbers of bins.
    """
    if len({len(c.predicted) for c in curves}) != 1:
        raise ValueError(f"expected curves of one number of bins, got {[len(c.predicted) for c in curves]}")
    means = (torch.tensor(values, dtype=torch.float64).square().mean(0).sqrt() for values in zip(*curves, strict=True))
    return CalibrationCurve(*(tuple(mean.tolist()) for mean in means))


class Calibration:
    r"""Gather expected standard deviations and errors of any number of voxels, in bins of the first.

    The voxels are sorted into 8192 cells of the logarithm of the expected standard deviation, 1.1 % wide, that hold a number and
    two sums each. The bins of `curve` are made of whole cells; one on a border between bins is shared out in proportion, so that
    all bins hold equally many voxels. The unit does not matter.

    Example:
        >>> std = torch.rand(100000) + 0.1
        >>> calibration = Calibration()
        >>> calibration.update(std, 2 * std * torch.randn(100000))
        >>> round(calibration.ratio, 1), round(calibration.curve().calibration_error, 1)
        (0.5, 1.0)

    Reference:
        D. Levi, L. Gispan, N. Giladi, E. Fetaya, Evaluating and calibrating uncertainty prediction in regression tasks, 2022,
        doi:10.3390/s22155540: bins of equal count and their normalised error.
    """

    def __init__(self) -> None:
        self._cells = torch.zeros(3, (_HIGHEST - _LOWEST) * _CELLS, dtype=torch.float64)  # number, s^2, e^2
        self._moments = torch.zeros(3, dtype=torch.float64)  # sums of s, |e| and s |e|

    def update(self, std: torch.Tensor, error: torch.Tensor) -> None:
        """Take in voxels, of any one shape: the expected standard deviation and the error, of either sign.

        Raises:
            ValueError: on shapes that differ, a standard deviation below 0, or values that are not finite.
        """
        if std.shape != error.shape:
            raise ValueError(f"expected as many errors as deviations, got {tuple(error.shape)} and {tuple(std.shape)}")
        blocks = (t.detach().reshape(-1).split(_BLOCK) for t in (std, error))
        for part in zip(*blocks, strict=True):
            s, e = (t.to("cpu", torch.float64) for t in part)
            if not bool((torch.isfinite(s) & torch.isfinite(e) & (s >= 0)).all()):
                raise ValueError("expected finite errors and deviations >= 0, got others")
            place = ((s.log2() - _LOWEST) * _CELLS).floor().clamp(0, self._cells.shape[1] - 1).long()
            for row, weights in zip(self._cells, (torch.ones_like(s), s.square(), e.square()), strict=True):
                row += torch.bincount(place, weights, len(row))
            e = e.abs()
            self._moments += torch.stack([s.sum(), e.sum(), (s * e).sum()])

    @property
    def count(self) -> int:
        """Voxels so far."""
        return round(float(self._cells[0].sum()))

    @property
    def _means(self) -> list[float]:
        """Means of `s^2, e^2, s, |e|, s |e|`."""
        if not self.count:
            raise ValueError("expected voxels to compare, got none")
        sums = torch.cat([self._cells[1:].sum(1), self._moments])
        values: list[float] = (sums / self.count).tolist()
        return values

    @property
    def predicted(self) -> float:
        """Root of the mean of the expected squared errors."""
        return math.sqrt(self._means[0])

    @property
    def observed(self) -> float:
        """Root mean square error."""
        return math.sqrt(self._means[1])

    @property
    def ratio(self) -> float:
        """`predicted / observed`: below 1 the errors are larger than expected; infinite where there are none."""
        return self.predicted / self.observed if self.observed else math.inf

    @property
    def correlation(self) -> float:
        """Pearson's, of the expected deviation and the size of the error over the voxels; NaN where one of them is constant.

        It is below 1 for perfect expectations too, as an error is drawn anew at each voxel.
        """
        s2, e2, s, e, se = self._means
        spread = [second - first**2 for second, first in ((s2, s), (e2, e))]
        if any(v <= 1e-12 * second for v, second in zip(spread, (s2, e2), strict=True)):
            return math.nan
        return (se - s * e) / math.sqrt(spread[0] * spread[1])

    def curve(self, bins: int = 10) -> CalibrationCurve:
        """Expected and true error in bins of equally many voxels.

        Raises:
            ValueError: on no bin or no voxel.
        """
        if bins < 1:
            raise ValueError(f"bins must be >= 1, got {bins}")
        if not self.count:
            raise ValueError("expected voxels to compare, got none")
        number, *sums = self._cells[:, self._cells[0] > 0]
        borders = torch.arange(bins + 1, dtype=torch.float64) * (self.count / bins)
        end = number.cumsum(0)
        # of each cell what lies between the borders of each bin, (bins, cells), as a part of it
        within = torch.minimum(end, borders[1:, None]) - torch.maximum(end - number, borders[:-1, None])
        parts = within.clamp(min=0) / number
        return CalibrationCurve(*(tuple((parts @ s * (bins / self.count)).sqrt().tolist()) for s in sums))
