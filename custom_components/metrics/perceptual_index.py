"""The perceptual index of super-resolution challenges: two judgements without a truth in one number."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.utils import MetricReduction

from .niqe import NIQE
from .no_reference import NoReferenceMetric


def perceptual_index(ma: float, niqe: float) -> float:
    r"""Perceptual index, lower is better.

    .. math:: \text{PI} = \frac{(10 - \text{Ma}) + \text{NIQE}}{2}

    Args:
        ma: score of Ma et al., about 0 (bad) to 10 (good).
        niqe: see `NIQE`, >= 0, lower is better.

    Example:
        >>> perceptual_index(8.0, 3.0)
        2.5

    Reference:
        Y. Blau, R. Mechrez, R. Timofte, T. Michaeli, L. Zelnik-Manor, The 2018 PIRM challenge on perceptual image super-resolution,
        2018, doi:10.1007/978-3-030-11021-5_21.
    """
    return ((10 - ma) + niqe) / 2


def ma_scorer() -> Callable[[torch.Tensor], torch.Tensor]:
    """The score of Ma et al. as `pyiqa` computes it (its metric `nrqm`): a function of slices `(1, 1, H, W)` in [0, 1].

    `pyiqa` stands under PolyForm Noncommercial and S-Lab licences, which allow non-commercial use alone: nothing here requires it.
    It downloads its weights at first use. The score was trained on photographs, and its random forest takes seconds per slice.

    A slice goes to `pyiqa` as three equal colours: up to version 0.1.16 at least it brings colour images alone to the 0 to 255 that
    its features are made for (their luminance, in whole grey levels, is that of the slice), and takes grey ones as they come.

    Raises:
        ValueError: when the library or its weights are not there.

    Reference:
        C. Ma, C.-Y. Yang, X. Yang, M.-H. Yang, Learning a no-reference quality metric for single-image super-resolution, 2017,
        doi:10.1016/j.cviu.2016.12.009.
    """
    try:
        pyiqa: Any = importlib.import_module("pyiqa")
    except Exception as error:  # it imports dozens of packages, each of which may fail in its own way
        found = "not installed" if getattr(error, "name", None) == "pyiqa" else _short(error)
        raise ValueError(
            "expected the library pyiqa for the score of Ma et al. (pip install pyiqa; its licences, PolyForm Noncommercial and "
            f"S-Lab, allow non-commercial use only), got: {found}; NIQE alone does without"
        ) from error
    try:
        scorer: Callable[[torch.Tensor], torch.Tensor] = pyiqa.create_metric("nrqm", device=torch.device("cpu"))
    except Exception as error:  # of the network, of the file system, or of the library itself
        raise ValueError(
            "expected pyiqa's weights for the score of Ma et al. (its metric nrqm downloads them at first use; non-commercial use "
            f"only), got {_short(error)}"
        ) from error
    return lambda image: scorer(image.expand(-1, 3, -1, -1))


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


class MaScore(NoReferenceMetric):
    """Score of Ma et al., about 0 (bad) to 10 (good): the mean over slices that are spread evenly over the image.

    Args:
        axis: array axis across the slices of a volume; None: the slices of all three orientations.
        max_slices: slices per orientation that are judged, of those with at least a tenth above a tenth of the range.
        data_range: range of the intensities; what is outside [0, `data_range`] is clipped.
        scorer: gives the score of a slice `(1, 1, H, W)` in [0, 1]; None: that of `ma_scorer`, made at once.
        reduction: of the values per image and channel, see `monai.metrics.regression.RegressionMetric`.
        get_not_nans: whether `aggregate` gives the number of valid values too.

    Shape:
        `(B, C, *spatial)` in 2D or 3D; the result is `(B, C)`, NaN for an image without such a slice.

    Raises:
        ValueError: on a value out of range; when `pyiqa` or its weights are not there.
    """

    def __init__(
        self,
        axis: int | None = -1,
        max_slices: int = 8,
        data_range: float = 1.0,
        scorer: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(axis=axis, reduction=reduction, get_not_nans=get_not_nans)
        if max_slices < 1:
            raise ValueError(f"max_slices must be >= 1, got {max_slices}")
        if not data_range > 0:
            raise ValueError(f"data_range must be positive, got {data_range}")
        self.max_slices, self.data_range = max_slices, data_range
        self.scorer = ma_scorer() if scorer is None else scorer

    def value(self, stacks: Sequence[torch.Tensor]) -> float:
        """Score of an image by its stacks of slices, `(S, H, W)` each."""
        scores = []
        for stack in stacks:
            scaled = (stack / self.data_range).clamp(0, 1)
            slices = scaled[(scaled > 0.1).flatten(1).float().mean(1) >= 0.1]
            count = min(len(slices), self.max_slices)
            for k in range(count):
                chosen = slices[(2 * k + 1) * len(slices) // (2 * count)]
                scores.append(float(self.scorer(chosen[None, None].float().cpu())))
        return sum(scores) / len(scores) if scores else float("nan")


class PerceptualIndex(NoReferenceMetric):
    """`perceptual_index` of whole images, from `MaScore` and `NIQE`, over the slices that each of them takes.

    Values compare with each other under one NIQE model, not with published ones: see `NIQE`.

    Args:
        niqe: the metric, with its model.
        ma: the metric; None: `MaScore` with the axis and the range of `niqe`, which needs `pyiqa` (non-commercial use only).
        reduction: of the values per image and channel, see `monai.metrics.regression.RegressionMetric`.
        get_not_nans: whether `aggregate` gives the number of valid values too.

    Raises:
        ValueError: when `ma` is None and `pyiqa` or its weights are not there; on call, as of `NIQE`.
    """

    def __init__(
        self,
        niqe: NIQE,
        ma: MaScore | None = None,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(axis=niqe.axis, reduction=reduction, get_not_nans=get_not_nans)
        self.niqe = niqe
        self.ma = MaScore(niqe.axis, data_range=niqe.model.blocks.data_range) if ma is None else ma

    def value(self, stacks: list[torch.Tensor]) -> float:
        """Index of an image by its stacks of slices, `(S, H, W)` each."""
        return perceptual_index(self.ma.value(stacks), self.niqe.value(stacks))
