"""Exact inference by a network that was compiled for images up to a size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..inferers import ExactInferer, Plan
from ..inferers.tiling import Opaque, measure


class TileInferer(ExactInferer):
    """An `ExactInferer` that never looks into the network, and gives it tiles of at most `size` voxels per axis, one at a time.

    For runtimes such as TensorRT: `ExactInferer` would read the network's Python code and stream it past the compiled one, and
    probe it at sizes that it was not compiled for. Tiles have the halo that the network needs and end at the volume's border, so
    the result is that of one pass.

    Args:
        definition: the network before it was compiled, on the CPU; from it come halo, factor and channels. Weights do not matter.
        size: voxels per axis of a tile with its halo, at most: those that the network was compiled for.
        progress: as in `ExactInferer`, with `spatial_dims` and `all_axes`.
        spatial_dims: of the network, 2 or 3.
        all_axes: 2D networks only: the mean over the slices of all three axes.

    Raises:
        ValueError: if `size` is below 1; on call, if it leaves nothing between two halos.

    Example:
        >>> network = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> TileInferer(network, size=16, spatial_dims=2)(torch.rand(1, 1, 40, 50), network).shape
        torch.Size([1, 1, 40, 50])
    """

    def __init__(
        self,
        definition: nn.Module,
        size: int,
        spatial_dims: int,
        progress: bool = False,
        all_axes: bool = False,
    ) -> None:
        super().__init__(progress=progress, spatial_dims=spatial_dims, all_axes=all_axes)
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        self.definition, self.size = definition, size

    def plan(self, shape: Sequence[int], network: Callable[..., Any]) -> Plan:
        """As `ExactInferer.plan`; the memory is what PyTorch would hold for a tile."""
        sizes = tuple(shape[2 : 2 + (self.spatial_dims or 0)])
        known = measure(self.definition.eval(), len(sizes), shape[1], torch.device("cpu"), torch.float32)
        splits, tiles, work = [], [], 1.0
        for size, halo in zip(sizes, known.footprint.halo, strict=True):
            for parts in range(1, size + 1):
                cuts = [i * size // parts for i in range(parts + 1)]
                spans = [min(hi + halo, size) - max(lo - halo, 0) for lo, hi in itertools.pairwise(cuts)]
                if max(spans) <= self.size:
                    break
            else:
                raise ValueError(f"size must be > {2 * halo}, the halos of this network, got {self.size}")
            splits.append(parts)
            tiles.append(max(spans))
            work *= sum(spans) / size
        return Plan(
            known, sizes, tuple(splits), memory=math.ceil(known.voxel_bytes * math.prod(tiles)), work=work, cost=work
        )

    def _compute(self, volume: Tensor, network: Callable[..., Any], across: int | None = None) -> Tensor:
        axes = [axis for axis in range(2, volume.ndim) if across is None or axis != across + 2]
        plan = self.plan((1, volume.shape[1], *(volume.shape[axis] for axis in axes)), network)
        known, windows, factors = plan.network, plan.windows, [1] * volume.ndim
        if not isinstance(known, Opaque):
            raise TypeError(f"expected tiles, got {type(known).__name__}")
        for axis, factor in zip(axes, known.factor, strict=True):
            factors[axis] = factor
        sizes = [n * f for n, f in zip(volume.shape[2:], factors[2:], strict=True)]
        output = torch.empty(len(volume), known.channels, *sizes, device=volume.device)
        parameter = next(iter(network.parameters()), None) if isinstance(network, nn.Module) else None
        device = volume.device if parameter is None else parameter.device

        def run(tile: Tensor) -> Any:
            tile = tile.contiguous()  # TensorRT gets an address: a copy made further in would be gone before it is read
            return network(tile)

        passes = list(zip(_passes(volume, across), _passes(output, across), strict=True))
        with self._bar(len(passes) * len(windows)) as advance, torch.inference_mode():
            for (scan, result), window in itertools.product(passes, windows):
                known.run(run, scan, result, window, torch.float32, device=device)
                advance(1)
        return output


def _passes(volume: Tensor, across: int | None) -> Iterator[Tensor]:
    """Views of one scan, or slice of one, at a time, each `(1, C, *spatial)`."""
    for scan in volume.split(1):
        yield from (scan,) if across is None else scan[0].movedim(across + 1, 0).split(1)
