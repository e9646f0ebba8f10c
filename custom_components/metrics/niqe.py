"""Naturalness of slices without a truth: how far their statistics lie from those of good scans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from monai.utils import MetricReduction

from .natural_statistics import FEATURES, block_features
from .no_reference import NoReferenceMetric

CHUNK = 16  # slices whose features are computed at a time: bounds the memory
MIN_BLOCKS = 2 * FEATURES
FLAT = 1e-6  # mean local deviation, in parts of the range, up to which a block is uniform but for rounding


@dataclass(frozen=True)
class Blocks:
    """Which blocks of a slice are looked at, and in what unit.

    Attributes:
        size: voxels along both sides of a block, a multiple of 4, at least 16.
        stride: voxels from a block to the next, even; None: half the size.
        foreground: local mean, in parts of `data_range`, above which a voxel is no background.
        min_share: part of a block's voxels that must be foreground: air has no structure that a method could get wrong, and after
            masking no noise either.
        data_range: range of the intensities. One 255th of it stabilises the division by the local deviation, as one grey level
            does in the paper.

    Raises:
        ValueError: on a value out of range.
    """

    size: int = 32
    stride: int | None = None
    foreground: float = 0.1
    min_share: float = 0.75
    data_range: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 16 or self.size % 4:
            raise ValueError(f"size must be a multiple of 4 and >= 16, got {self.size}")
        if self.stride is not None and (self.stride < 2 or self.stride % 2):
            raise ValueError(f"stride must be even and >= 2, got {self.stride}")
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share must be in [0, 1], got {self.min_share}")
        if not self.data_range > 0:
            raise ValueError(f"data_range must be positive, got {self.data_range}")

    def features(self, slices: torch.Tensor, sharpness: float = 0.0) -> torch.Tensor:
        """Features `(N, 36)`, float64, of the foreground blocks of slices `(S, H, W)`.

        Args:
            slices: a stack; each slice has the same size.
            sharpness: take only blocks with more than this part of the sharpness of the slice's sharpest foreground block.

        Raises:
            ValueError: when a slice is smaller than a block.
        """
        if slices.ndim != 3 or min(slices.shape[1:]) < self.size:
            raise ValueError(
                f"expected slices (S, H, W) of at least {self.size} x {self.size} voxels, got {tuple(slices.shape)}"
            )
        kept = [torch.empty(0, FEATURES, dtype=torch.float64, device=slices.device)]
        for chunk in slices.split(CHUNK):
            scaled = chunk.double() / self.data_range
            found = block_features(scaled, self.size, self.stride or self.size // 2, foreground=self.foreground)
            usable = (found.share >= self.min_share) & (found.sharpness > FLAT) & found.features.isfinite().all(-1)
            peak = found.sharpness.where(usable, 0.0).amax((1, 2), keepdim=True)
            kept.append(found.features[usable & (found.sharpness > sharpness * peak)])
        return torch.cat(kept)


def _gaussian(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and sample covariance of features `(N, 36)`; the covariance of a single block is 0."""
    mean = features.mean(0)
    centred = features - mean
    return mean, centred.T @ centred / max(len(features) - 1, 1)


@dataclass(frozen=True)
class NaturalModel:
    """The multivariate Gaussian of the features of good slices.

    `torch.save(model.state_dict(), path)` writes a file of some 12 KB, which `torch.load(path, weights_only=True)` reads.

    Attributes:
        mean: `(36,)`, float64.
        covariance: `(36, 36)`, float64.
        count: blocks that it was fitted to.
        blocks: how blocks are taken, also from the images that are judged.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int
    blocks: Blocks

    @classmethod
    def fit(
        cls,
        stacks: torch.Tensor | Iterable[torch.Tensor],
        blocks: Blocks | None = None,
        sharpness: float = 0.75,
        shrinkage: float = 0.01,
    ) -> NaturalModel:
        """Fit to good slices.

        Of each slice the blocks that are sharp are taken: with more than `sharpness` of the mean local deviation of its sharpest.
        The covariance is drawn towards its diagonal by `shrinkage`, as some features depend on others almost linearly, and without
        it the distance along such a direction is noise.

        The covariance has 666 numbers. At least 72 blocks (two per feature) are asked for, which gives a rough model; 360 and more
        (ten per feature), from several scans, a sound one. Overlapping blocks are not independent: count half of them.

        Args:
            stacks: slices `(S, H, W)`, one stack or one per scan and orientation, with intensities as `blocks` says.
            blocks: how blocks are taken.
            sharpness: least sharpness of a block, in parts of the sharpest one's of its slice; 0.75 in the paper, 0 takes all.
            shrinkage: in [0, 1].

        Raises:
            ValueError: on fewer than 72 blocks, slices smaller than a block, or a value out of range.
        """
        blocks = blocks or Blocks()
        for name, value in (("sharpness", sharpness), ("shrinkage", shrinkage)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        given = [stacks] if isinstance(stacks, torch.Tensor) else stacks
        found = [blocks.features(stack, sharpness).cpu() for stack in given]
        features = torch.cat(found) if found else torch.empty(0, FEATURES)
        if len(features) < MIN_BLOCKS:
            raise ValueError(f"expected at least {MIN_BLOCKS} sharp foreground blocks to fit to, got {len(features)}")
        mean, covariance = _gaussian(features)
        covariance = (1 - shrinkage) * covariance + shrinkage * covariance.diag().diag()
        return cls(mean, covariance, len(features), blocks)

    def distance(self, features: torch.Tensor) -> float:
        """Distance of the Gaussian of the features `(N, 36)` from this one; NaN when there are none."""
        if not len(features):
            return float("nan")
        mean, covariance = _gaussian(features.cpu())
        apart = mean - self.mean
        precision = torch.linalg.pinv((self.covariance + covariance) / 2, hermitian=True)
        return float((apart @ precision @ apart).clamp_min(0).sqrt())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All of it as tensors."""
        numbers = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in asdict(self.blocks).items()
            if value is not None
        }
        return {"mean": self.mean, "covariance": self.covariance, "count": torch.tensor(self.count), **numbers}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, torch.Tensor]) -> NaturalModel:
        """The model with this `state_dict`.

        Raises:
            ValueError: when it is not one.
        """
        names = {field.name for field in fields(Blocks)} & set(state)
        needed = {"mean": (FEATURES,), "covariance": (FEATURES, FEATURES), "count": ()}
        came = {name: tuple(state[name].shape) for name in needed if name in state}
        if came != needed:
            raise ValueError(f"expected a NIQE model with tensors {needed}, got {came}")
        numbers: dict[str, Any] = {name: state[name].item() for name in names}
        numbers |= {name: int(numbers[name]) for name in names & {"size", "stride"}}
        return cls(state["mean"].double(), state["covariance"].double(), int(state["count"]), Blocks(**numbers))


class NIQE(NoReferenceMetric):
    r"""Natural image quality evaluator: the distance of an image's statistics from those of good scans; lower is better.

    .. math:: D = \sqrt{(\nu_1 - \nu_2)^\top \left(\frac{\Sigma_1 + \Sigma_2}{2}\right)^{-1} (\nu_1 - \nu_2)}

    with mean and covariance of the 36 features (see `natural_statistics`) over the blocks of good slices and of those of the image.
    It needs no truth. It tells blur, noise and unlike texture, in no physical unit; values compare only under one model, and they
    say nothing of whether the structures are the true ones. Good scans are not at 0: each differs from the mean of many. A change
    that brings a scan nearer to that mean lowers its value: a Gaussian blur of half a voxel does so to some scans; from one voxel
    on it raised the value of most.

    Departures from the paper, for MR slices: the model is of MR slices, as the published one is of photographs; blocks of 32
    voxels that overlap by half, not of 96, as a slice has a head of some 150 voxels; background blocks are left out; the blocks of
    all slices of a volume are pooled into one Gaussian; the model's covariance is regularised. Values do not compare with
    published ones. A value of few blocks is too large by chance: let there be 40 at least (a slice of a head has 20 to 40).

    Args:
        model: the model of good slices, or its `state_dict`: `{"_target_": "torch.load", "f": "niqe.pt", "weights_only": true}`.
        axis: array axis across the slices of a volume, as it was for the model; None: the slices of all three orientations.
        reduction: of the values per image and channel, see `monai.metrics.regression.RegressionMetric`.
        get_not_nans: whether `aggregate` gives the number of valid values too.

    Shape:
        `(B, C, *spatial)` in 2D or 3D, in the unit of the model's slices; the result is `(B, C)`, NaN for an image
        without foreground blocks.

    Raises:
        ValueError: on a state that is no model; on call, when a slice is smaller than a block.

    Example:
        >>> model = NaturalModel.fit(slices)  # (S, H, W) in [0, 1]
        >>> NIQE(model)(volume)  # (1, 1, X, Y, Z)

    Reference:
        A. Mittal, R. Soundararajan, A. C. Bovik, Making a "completely blind" image quality analyzer, 2013,
        doi:10.1109/LSP.2012.2227726.
    """

    def __init__(
        self,
        model: NaturalModel | Mapping[str, torch.Tensor],
        axis: int | None = -1,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(axis=axis, reduction=reduction, get_not_nans=get_not_nans)
        self.model = model if isinstance(model, NaturalModel) else NaturalModel.from_state_dict(model)

    def value(self, stacks: Sequence[torch.Tensor]) -> float:
        """Value of an image by its stacks of slices, `(S, H, W)` each; of several stacks, those of slices that hold a block."""
        holding = [stack for stack in stacks if min(stack.shape[1:]) >= self.model.blocks.size] or stacks
        return self.model.distance(torch.cat([self.model.blocks.features(stack) for stack in holding]))
