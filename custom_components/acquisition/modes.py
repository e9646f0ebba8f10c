"""Singular modes of an acquisition: what a LR scan holds of the HR volume, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from .operators import SeparableOperator

WINDOW = 7  # modes per axis over which an energy is averaged: 343 of a volume know it to a tenth
NO_ENERGY = 1e-30


def neighbour_mean(x: torch.Tensor, window: int = WINDOW) -> torch.Tensor:
    """Mean over the neighbours within `window` (odd) values per axis, fewer at the ends; `(B, C, *spatial)` to the same shape."""
    for axis in range(2, x.ndim):
        lines = x.movedim(axis, -1)
        mean = functional.avg_pool1d(
            lines.reshape(1, -1, lines.shape[-1]), window, 1, window // 2, count_include_pad=False
        )
        x = mean.reshape(lines.shape).movedim(-1, axis)
    return x


class AcquisitionModes:
    r"""Singular modes of a separable acquisition, `A = U S V'`, by one small decomposition per axis.

    `U` and `V` are separable as `A` is; `S` is the product of the singular values of all axes, one gain per LR voxel. With it
    what would need an inverse of the size of the volume is a product on the LR grid.

    Args:
        acquire: the acquisition `A`.
        lr_shape: LR voxels per spatial axis, `m` of `A`'s `(m, n)` matrices.

    Attributes:
        to_modes: `V'`, from the HR grid; its adjoint `V` has orthonormal columns.
        from_lr: `U'`, from the LR grid.
        gain: `S`, `(*lr_shape)` float64, >= 0.
    """

    def __init__(self, acquire: SeparableOperator, lr_shape: Sequence[int]) -> None:
        left: list[torch.Tensor | None] = []
        right: list[torch.Tensor | None] = []
        self.gain = torch.ones(tuple(lr_shape), dtype=torch.float64)
        for axis, matrix in enumerate(acquire.matrices):
            if matrix is None:
                left.append(None)
                right.append(None)
                continue
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            left.append(u.T)
            right.append(vt)
            self.gain = self.gain * s.reshape([-1 if a == axis else 1 for a in range(len(lr_shape))])
        self.from_lr, self.to_modes = SeparableOperator(left), SeparableOperator(right)

    def kept(self, interpolate: SeparableOperator) -> torch.Tensor:
        r"""Part of a scan's noise that is found again where its interpolation `I` is acquired: the diagonal of :math:`U' A I U`.

        Args:
            interpolate: `I`, from the LR to the HR grid.

        Returns:
            `(*lr_shape)` float64, in [0, 1].
        """
        part = self.gain
        for axis, (vt, up, ut) in enumerate(
            zip(self.to_modes.matrices, interpolate.matrices, self.from_lr.matrices, strict=True)
        ):
            if vt is not None and ut is not None:
                own = (vt * (ut if up is None else ut @ up.T)).sum(1)
                part = part * own.reshape([-1 if a == axis else 1 for a in range(part.ndim)])
        return part.clamp(0, 1)

    def correct(
        self, x: torch.Tensor, y: torch.Tensor, ridge: float, noise_variance: torch.Tensor | None = None
    ) -> torch.Tensor:
        r"""Bring an image nearer to agreement with a scan: :math:`x + V w U' (y - A x)`, :math:`w = S / (S^2 + \text{ridge})`.

        Without a variance this is :math:`x + A' (A A' + \text{ridge})^{-1} (y - A x)`.

        Args:
            x: HR image, `(B, C, *spatial)`.
            y: LR scan, `(B, C, *lr_shape)`, in the unit of `x`.
            ridge: above 0; modes whose squared gain is below it stay nearly as they are.
            noise_variance: `(*lr_shape)`, what of :math:`d = U' (y - A x)` is not the image's fault, squared, in each mode. The
                weight is then at most :math:`(1 - \overline{v} / \overline{d^2})_+ / S`, by means over `WINDOW` modes per axis.
        """
        gain = self.gain.to(x)
        missing = self.from_lr(y) - gain * self.to_modes(x)
        weight = gain / (gain.square() + ridge)
        if noise_variance is not None:
            expected = neighbour_mean(noise_variance.to(x)[None, None])
            found = neighbour_mean(missing.square()).clamp(min=NO_ENERGY)
            weight = weight.minimum((1 - expected / found).clamp(min=0) / gain.clamp(min=NO_ENERGY))
        return x + self.to_modes.T(missing * weight)
