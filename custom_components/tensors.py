"""Tensors with and without meta data."""

from __future__ import annotations

import torch
from monai.data import MetaTensor


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The voxels of a tensor without its meta data, not copied: for arithmetic, and for results that are on another grid."""
    return tensor.as_tensor() if isinstance(tensor, MetaTensor) else tensor
