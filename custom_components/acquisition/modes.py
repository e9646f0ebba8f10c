"""Singular modes of an acquisition: what a LR scan holds of the HR volume, and how strongly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .operators import SeparableOperator


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

    def correct(self, x: torch.Tensor, y: torch.Tensor, ridge: float) -> torch.Tensor:
        r"""Bring an image nearer to agreement with a scan: :math:`x + A' (A A' + \text{ridge})^{-1} (y - A x)`.

        Args:
            x: HR image, `(B, C, *spatial)`.
            y: LR scan, `(B, C, *lr_shape)`, in the unit of `x`.
            ridge: above 0; modes whose squared gain is below it stay nearly as they are.
        """
        gain = self.gain.to(x)
        missing = self.from_lr(y) - gain * self.to_modes(x)
        return x + self.to_modes.T(missing * (gain / (gain.square() + ridge)))
