"""What the losses of voxel by voxel errors share: the error, its power, and how it is reduced."""

from __future__ import annotations

import torch

REDUCTIONS = ("mean", "batchmean", "sum", "none")


def difference(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The difference, at least in float32: in float16 small errors to a power are 0 and a sum over a volume is inf."""
    if pred.shape != target.shape:  # broadcasting would hide a mistake
        raise ValueError(f"expected a target of shape {tuple(pred.shape)}, got {tuple(target.shape)}")
    dtype = torch.promote_types(torch.promote_types(pred.dtype, target.dtype), torch.float32)
    return pred.to(dtype) - target.to(dtype)


def magnitude_power(error: torch.Tensor, p: float | torch.Tensor) -> torch.Tensor:
    """|error|^p with the gradient 0 at 0 for any p > 0, where that of `abs().pow(p)` is NaN below p = 1."""
    magnitude = error.abs()
    zero = magnitude == 0
    return torch.where(zero, 0.0, magnitude.masked_fill(zero, 1.0) ** p)


def reduced(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """Mean, sum, sum over a sample with the mean over the batch (`batchmean`), or the loss as it is (`none`)."""
    if reduction == "none":
        return loss
    if reduction == "mean":
        return loss.mean()
    return loss.sum() / (len(loss) if reduction == "batchmean" else 1)
