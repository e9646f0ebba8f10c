"""A linear operator on volumes that is one small matrix per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

BLOCK = 64  # rows per block of a banded product
NEGLIGIBLE = 1e-9  # entries below this part of the largest are dropped: a B-spline's tail after about 16 voxels

Band = tuple[int, int, int, int]


def _bands(matrix: torch.Tensor) -> list[Band]:
    """Blocks (first row, end row, first column, end column) that hold all non-zero entries of a banded matrix."""
    bands = []
    for start in range(0, matrix.shape[0], BLOCK):
        end = min(start + BLOCK, matrix.shape[0])
        used = matrix[start:end].any(0).nonzero()
        first, last = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        bands.append((start, end, first, last))
    return bands


def _apply_axis(x: torch.Tensor, matrix: torch.Tensor, bands: list[Band], axis: int) -> torch.Tensor:
    """Multiply `matrix` `(m, n)` into axis `axis` of `x`, block by block."""
    shape = list(x.shape)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    shape[axis] = matrix.shape[0]
    if inner == 1:
        rows = x.reshape(outer, -1)
        y = x.new_empty(outer, matrix.shape[0])
        for r0, r1, c0, c1 in bands:
            y[:, r0:r1] = rows[:, c0:c1] @ matrix[r0:r1, c0:c1].T
    else:
        slabs = x.reshape(outer, -1, inner)
        y = x.new_empty(outer, matrix.shape[0], inner)
        for r0, r1, c0, c1 in bands:
            y[:, r0:r1] = torch.matmul(matrix[r0:r1, c0:c1], slabs[:, c0:c1])
    return y.reshape(shape)


class SeparableOperator:
    """`y = (M_1 x M_2 x ... M_d) x`: a matrix per spatial axis, applied to `(B, C, *spatial)` on any device, differentiable.

    Each matrix is stored in float64 and used in the dtype of the input. The matrices of acquisition and interpolation are
    banded; only their bands are multiplied, so that the cost grows with the number of voxels times the width of a band.

    Args:
        matrices: per spatial axis a `(out, in)` matrix, or None where the axis stays as it is.

    Example:
        >>> from custom_components.acquisition import acquisition_operator
        >>> acquire = acquisition_operator((64, 64, 64), (32, 32, 32))
        >>> acquire(torch.rand(1, 1, 64, 64, 64)).shape
        torch.Size([1, 1, 32, 32, 32])
    """

    def __init__(self, matrices: Sequence[torch.Tensor | None]) -> None:
        self.matrices: list[torch.Tensor | None] = []
        for matrix in matrices:
            if matrix is not None:
                if matrix.ndim != 2:
                    raise ValueError(f"each matrix must have 2 dimensions, got {matrix.ndim}")
                matrix = matrix.detach().to(torch.float64)
                matrix = torch.where(matrix.abs() >= NEGLIGIBLE * matrix.abs().max(), matrix, 0.0)
            self.matrices.append(matrix)
        self._bands = [None if m is None else _bands(m) for m in self.matrices]
        self._transposed: SeparableOperator | None = None

    @property
    def T(self) -> SeparableOperator:
        """The adjoint operator."""
        if self._transposed is None:
            self._transposed = SeparableOperator([None if m is None else m.T.contiguous() for m in self.matrices])
            self._transposed._transposed = self
        return self._transposed

    def __matmul__(self, first: SeparableOperator) -> SeparableOperator:
        """The operator that applies `first`, then this one."""
        if len(first.matrices) != len(self.matrices):
            raise ValueError(
                f"expected operators of equal dimension, got {len(self.matrices)} and {len(first.matrices)}"
            )
        pairs = zip(self.matrices, first.matrices, strict=True)
        return SeparableOperator([b if a is None else a if b is None else a @ b for a, b in pairs])

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """`A' y`, so that `<A x, y> = <x, A' y>`; shapes as those of `__call__`, turned round."""
        return self.T(y)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the operator.

        Args:
            x: `(B, C, *spatial)` with the input size of each matrix; float32 or float64.

        Raises:
            TypeError: when the dtype is not a floating point one.
            ValueError: when the sizes do not fit.
        """
        if not x.is_floating_point():
            raise TypeError(f"expected an input of floating point, got {x.dtype}")
        expected = [n if m is None else m.shape[1] for m, n in zip(self.matrices, x.shape[2:], strict=False)]
        if x.ndim != len(self.matrices) + 2 or list(x.shape[2:]) != expected:
            raise ValueError(f"expected an input (B, C, {', '.join(map(str, expected))}), got {tuple(x.shape)}")
        axes = [axis for axis, m in enumerate(self.matrices) if m is not None]
        # The axis that shrinks most goes first, so that the later products are small.
        for axis in sorted(axes, key=lambda a: self.matrices[a].shape[0] / self.matrices[a].shape[1]):  # type: ignore[union-attr]
            matrix, bands = self.matrices[axis], self._bands[axis]
            if matrix is not None and bands is not None:
                x = _apply_axis(x, matrix.to(x), bands, axis + 2)
        return x
