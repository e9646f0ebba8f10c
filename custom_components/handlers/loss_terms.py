"""The terms of a loss one by one, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def loss_terms(loss: Any) -> dict[str, torch.Tensor]:
    """Values of the terms in the last call of a loss, by name, as `CompositeLoss` holds them; none of any other loss."""
    values = getattr(loss, "values", None)
    return dict(values) if isinstance(values, Mapping) else {}


class LossTerms:
    """`output_transform` of MONAI's `TensorBoardStatsHandler` that gives the training loss and each of its terms.

    A `CompositeLoss` has curves `<tag>` and `<tag>_<term>`, of the values before their weights; any other loss has the first alone.
    All are fetched from the device at once.

    Args:
        loss: the trainer's loss.
        tag: name of the curve of the whole.

    Example:
        In a `train.json`::

            "tensorboard": {
                "_target_": "TensorBoardStatsHandler",
                "log_dir": "@output_dir",
                "output_transform": {"_target_": "custom_components.handlers.LossTerms", "loss": "@loss"}
            }
    """

    def __init__(self, loss: Any, tag: str = "train_loss") -> None:
        self.loss, self.tag = loss, tag

    def __call__(self, output: Any) -> dict[str, float]:
        """Scalars by name from the output of a trainer, a dictionary with `loss`, or a list of them as decollated."""
        output = output[0] if isinstance(output, list) else output
        terms = {f"{self.tag}_{name}": value for name, value in loss_terms(self.loss).items()}
        scalars = {self.tag: output["loss"].detach(), **terms}
        values = torch.stack([value.to(scalars[self.tag]) for value in scalars.values()]).tolist()
        return dict(zip(scalars, values, strict=True))
