"""A MONAI metric on the scans of a `ScanEvaluator`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.metrics.metric import reinit__is_reduced
from monai.handlers import IgniteMetricHandler
from monai.metrics import CumulativeIterationMetric
from monai.utils import evenly_divisible_all_gather

from ..tensors import plain


class ScanMetric(IgniteMetricHandler):
    """Compare one image of each scan that succeeded with its truth.

    The mean over scans goes to `engine.state.metrics[name]` (NaN when all failed), the values per scan to
    `engine.state.metric_details[name]`, and each as soon as it is known to the item's output under `metrics`.

    Args:
        metric_fn: say `monai.metrics.PSNRMetric(1.0)`; each metric needs an object of its own.
        image_key: the image: `pred`, or `image` for the interpolation before the network.
        label_key: the truth, in the same unit.
        minimum: lower values of the image are set to this before it is compared, as in the reference evaluation: the
            truth is a magnitude, an undershoot below 0 is a known error. None for images that may be negative.

    Example:
        >>> from monai.metrics import PSNRMetric
        >>> metrics = {"psnr": ScanMetric(PSNRMetric(1.0)), "spline_psnr": ScanMetric(PSNRMetric(1.0), "image")}
    """

    def __init__(
        self,
        metric_fn: CumulativeIterationMetric,
        image_key: str = "pred",
        label_key: str = "label",
        minimum: float | None = 0.0,
    ) -> None:
        self.image_key, self.label_key, self.minimum = image_key, label_key, minimum
        self._values: list[float] = []
        super().__init__(metric_fn=metric_fn)

    @reinit__is_reduced
    def reset(self) -> None:
        """Forget all scans."""
        self._values = []
        super().reset()

    @reinit__is_reduced
    def update(self, output: Sequence[torch.Tensor]) -> None:
        """Take in one scan: the pair (image, truth), each `(1, 1, *spatial)`."""
        image, truth = output
        self._values.append(float(torch.as_tensor(self.metric_fn(image, truth)).float().mean()))

    def iteration_completed(self, engine: Engine) -> None:
        """Take in the scan of this iteration, unless it failed."""
        state: Any = engine.state
        item = state.output[0]
        if "error" in item:
            return
        image, truth = (self._batch(item, key) for key in (self.image_key, self.label_key))
        self.update((image if self.minimum is None else image.clamp(min=self.minimum), truth))
        item.setdefault("metrics", {})[self._name] = self._values[-1]

    @staticmethod
    def _batch(item: dict[str, Any], key: str) -> torch.Tensor:
        if key not in item:
            raise ValueError(f"expected an image under {key!r} to compare, got {sorted(map(str, item))}")
        return plain(item[key])[None].to("cpu", torch.float32)

    def compute(self) -> float:
        """Mean over the scans of all processes; NaN when there are none."""
        # not by metric_fn: with no scan of its own a process would stay out of the gathering, and the others wait for it
        values = evenly_divisible_all_gather(torch.tensor(self._values, dtype=torch.float32)[:, None], concat=True)
        self._is_reduced = True
        if self._engine is not None and self._name is not None:
            state: Any = self._engine.state
            state.metric_details[self._name] = values
        return float(values.nanmean())
