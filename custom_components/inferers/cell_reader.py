"""Read the polynomials of an `AnyScaleSR` off on the HR grid, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..acquisition import SeparableOperator
from ..networks.any_scale import interleaved, reading_matrices
from .nodes import Extent

_PART_BYTES = 4 * 2**20  # of the values that are read off together: what is made of them stays in a CPU's cache
_COPIES = 4  # of them that live meanwhile: float32, rearranged, and two products


class CellReader:
    r"""Add to a HR volume what blocks of LR voxels say of it: :math:`x \mathrel{+}= \sum_b D_b c_b`.

    The averages `D` over HR voxels are linear in the values `c` of the LR voxels, and each LR voxel touches few HR voxels. So the
    blocks of a volume, in any order, sum up to `AnyScaleSR.decode` of the whole, and no more than one of them need be held.

    Args:
        lr_shape: LR voxels per axis.
        shape: HR voxels per axis.
        divisions: values per LR voxel and axis, as `AnyScaleSR.divisions` has them.
        degree: of the polynomials.
    """

    def __init__(self, lr_shape: Sequence[int], shape: Sequence[int], divisions: Sequence[int], degree: int) -> None:
        self.divisions = tuple(divisions)
        self.count = math.prod(divisions)
        self.matrices = reading_matrices(lr_shape, shape, divisions, degree)

    def add_(
        self,
        result: Tensor,
        values: Tensor,
        block: Sequence[Extent],
        axis: int = 0,
        memory: int = _COPIES * _PART_BYTES,
    ) -> None:
        """Add the part of one block.

        Args:
            result: `shape`, float32; changed in place.
            values: `(product of the divisions, *block)`, in any precision.
            block: first LR voxel and one past the last, per axis.
            axis: the block is cut along it into parts that are read off one after the other.
            memory: bytes for that; one slice takes what it needs.
        """
        part_bytes = min(_PART_BYTES, memory // _COPIES)
        slices = max(1, part_bytes * values.shape[axis + 1] // (4 * values.numel()))
        start = block[axis][0]
        for part in torch.split(values, slices, axis + 1):
            within = list(block)
            within[axis] = (start, start + part.shape[axis + 1])
            start = within[axis][1]
            self._add_part(result, part, within)

    def _add_part(self, result: Tensor, values: Tensor, block: Sequence[Extent]) -> None:
        places: list[slice] = []
        matrices: list[Tensor | None] = []
        for matrix, k, (low, high) in zip(self.matrices, self.divisions, block, strict=True):
            if matrix is None:
                places.append(slice(low * k, high * k))
                matrices.append(None)
            else:
                columns = matrix[:, low * k : high * k]
                rows = columns.any(1).nonzero()
                places.append(slice(int(rows[0]), int(rows[-1]) + 1))
                matrices.append(columns[places[-1]])
        x = interleaved(values[None], self.divisions)
        result[tuple(places)].add_(SeparableOperator(matrices)(x)[0, 0].to(result.device))
