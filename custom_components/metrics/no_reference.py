"""What metrics that need no truth have in common: they look at slices."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from monai.metrics.regression import RegressionMetric
from monai.utils import MetricReduction


def slice_stacks(image: torch.Tensor, axis: int | None = -1) -> list[torch.Tensor]:
    """The slices of an image, a stack `(S, H, W)` per orientation.

    Args:
        image: a volume `(X, Y, Z)`, or one slice `(H, W)`, whose stack it is alone.
        axis: array axis across the slices of a volume, 0 to 2 or from the end; None: all three, a stack each.

    Raises:
        ValueError: on another number of axes, or an axis that is not there.
    """
    if image.ndim not in (2, 3):
        raise ValueError(f"expected a slice (H, W) or a volume (X, Y, Z), got the shape {tuple(image.shape)}")
    if axis is not None and not -3 <= axis <= 2:
        raise ValueError(f"axis must be from -3 to 2 or None, got {axis}")
    if image.ndim == 2:
        return [image[None]]
    return [image.movedim(a, 0) for a in (range(3) if axis is None else [axis])]


class NoReferenceMetric(RegressionMetric):
    """Base of metrics of slices alone: called with the image, or with image and truth, which is not looked at.

    With `custom_components.handlers.ScanMetric`, which always hands a pair, `label_key="pred"` lets scans without truth pass.

    Args:
        axis: array axis across the slices of a volume; None: the slices of all three orientations.
        reduction: of the values per image and channel, see `monai.metrics.regression.RegressionMetric`.
        get_not_nans: whether `aggregate` gives the number of valid values too.
    """

    def __init__(
        self,
        axis: int | None = -1,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        get_not_nans: bool = False,
    ) -> None:
        super().__init__(reduction=reduction, get_not_nans=get_not_nans)
        slice_stacks(torch.empty(1, 1, 1), axis)
        self.axis = axis

    @abstractmethod
    def value(self, stacks: list[torch.Tensor]) -> float:
        """Value of one image by its stacks of slices, `(S, H, W)` each."""
        raise NotImplementedError

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Value of each `(B, C, *spatial)` image, `(B, C)`."""
        values = [[self.value(slice_stacks(image, self.axis)) for image in images] for images in y_pred]
        return torch.tensor(values, dtype=torch.float32)

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return self._compute_metric(y_pred, y_pred)
