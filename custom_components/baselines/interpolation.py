"""Interpolation as a module, and the check of their input that all baselines share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..acquisition import interpolation_operator

KINDS = ("nearest", "linear", "cubic", "bspline")


def checked(lr: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The LR image as a plain tensor, once it and the wished shape are found to fit.

    Raises:
        TypeError: when the image is not of floating point.
        ValueError: when it is not `(B, C, *spatial)` in 2D or 3D, or when the shape has other axes or is smaller.
    """
    if not lr.is_floating_point():
        raise TypeError(f"expected an image of floating point, got {lr.dtype}")
    if lr.ndim not in (4, 5):
        raise ValueError(f"expected an image (B, C, *spatial) with 2 or 3 spatial axes, got {tuple(lr.shape)}")
    if len(shape) != lr.ndim - 2 or any(n < m for n, m in zip(shape, lr.shape[2:], strict=True)):
        raise ValueError(f"expected a shape of at least {tuple(lr.shape[2:])}, got {tuple(shape)}")
    return lr.as_subclass(torch.Tensor)


class Interpolation(nn.Module):
    """Interpolation of a LR image to the HR grid over the same field of view: `Z = S Y`.

    Args:
        kind: `nearest`, `linear`, `cubic` (Keys) or `bspline` (cubic, through the voxels).

    Shape:
        `(B, C, *lr_shape)` in 2D or 3D and the HR `shape` to `(B, C, *shape)`, in the unit of the input.

    Raises:
        ValueError: on an unknown kind; on call, on a shape that has other axes or is smaller than the image.
        TypeError: on call, when the image is not of floating point.

    Example:
        >>> Interpolation()(torch.rand(1, 1, 8, 8, 3), (8, 8, 9)).shape
        torch.Size([1, 1, 8, 8, 9])
    """

    def __init__(self, kind: str = "bspline") -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
        self.kind = kind

    def forward(self, lr: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """Map `(B, C, *lr_shape)` to `(B, C, *shape)`."""
        lr = checked(lr, shape)
        return interpolation_operator(lr.shape[2:], shape, self.kind)(lr)
