"""How a volume is cut so that a network's work on it fits the memory: all ways, and the choice of the cheapest."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .nodes import Extent
from .streaming import Program
from .tiling import Opaque, measure
from .trace import NotStreamableError, trace

logger = logging.getLogger(__name__)

GIB = 2**30
_SPLITS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
# Bytes of a value that one step should produce: on a CPU the convolution's input and output then stay in the
# last-level cache and in memory that is mapped already (measured: 970 GFLOP/s against 600 for whole volumes); on a
# GPU launching a kernel must not cost more than running it (a guess, not measured).
_STEP_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}
_CALL = 2e7  # operations that could be done in the time that calling one more convolution takes


@dataclass(frozen=True)
class Plan:
    """How a volume of `sizes` voxels is computed.

    The volume is cut into `splits` windows per axis. A `network` that is known as a program is streamed: a window spans
    `axis` whole and is computed `thickness` slices at a time; on tiles a window is one call of an opaque network.
    `memory`: bytes that are held at most beside network, input and output. `work`: operations, relative to one pass
    over the whole volume; `cost`: the same, calls included. `batch`: items, such as the slices that a 2D network gets, that are
    computed together at most.
    """

    network: Program | Opaque = field(repr=False)
    sizes: tuple[int, ...]
    splits: tuple[int, ...]
    memory: int
    work: float
    cost: float
    axis: int = 0
    thickness: int = 0
    batch: int = 1

    @property
    def method(self) -> Literal["stream", "tiles"]:
        """What is done with a window."""
        return "stream" if isinstance(self.network, Program) else "tiles"

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """Voxels of the result per axis."""
        return tuple(n * f for n, f in zip(self.sizes, self.network.factor, strict=True))

    @property
    def windows(self) -> tuple[tuple[Extent, ...], ...]:
        """Extents per axis on the input's grid; disjoint, and together the whole volume."""
        return tuple(itertools.product(*(_cut(n, k) for n, k in zip(self.sizes, self.splits, strict=True))))


def find_plan(
    network: Callable[..., Any],
    shape: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    low_precision: torch.dtype | None,
    memory_gib: float,
) -> Plan:
    """The way with the least cost among those that fit the memory.

    Args:
        network: is streamed where it can be, else run on tiles.
        shape: `(B, C, *spatial)` of the input; B items may be computed together.
        device: where the network runs.
        dtype: of its values.
        low_precision: of its convolutions, where that differs.
        memory_gib: the limit of `Plan.memory`, in GiB.

    Raises:
        ValueError: if the shape is not of 2D or 3D, nothing fits, or the receptive field is not finite.
    """
    if len(shape) not in (4, 5) or min(shape) < 1:
        raise ValueError(f"inputs must be (B, C, *spatial), 2D or 3D, without an empty axis, got {tuple(shape)}")
    sizes = tuple(shape[2:])
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        try:
            program = trace(network, len(sizes), shape[1])
            step_bytes = _STEP_BYTES.get(device.type, _STEP_BYTES["cpu"])
            known = (program, shape[0], sizes, dtype.itemsize, (low_precision or dtype).itemsize, step_bytes)
            plans = list(_streams(*known, cut=False))
            if any(plan.memory > memory_gib * GIB for plan in plans):
                plans = list(_streams(*known))
        except NotStreamableError as error:
            logger.debug("tiles with halos, since the network cannot be streamed: %s", error)
            plans = list(_tilings(measure(network, len(sizes), shape[1], device, dtype), sizes))
    fitting = [plan for plan in plans if plan.memory <= memory_gib * GIB]
    if not fitting:
        needed = math.ceil(min(plan.memory for plan in plans) / GIB * 1000) / 1000
        raise ValueError(f"memory_gib must be >= {needed} for this network on {sizes}, got {memory_gib}")
    return min(fitting, key=lambda plan: plan.cost)


def _cut(size: int, parts: int) -> tuple[Extent, ...]:
    return tuple((i * size // parts, (i + 1) * size // parts) for i in range(parts))


def _splits(size: int) -> list[int]:
    return [k for k in sorted({*_SPLITS, size}) if k <= size]


def _streams(
    program: Program,
    count: int,
    sizes: tuple[int, ...],
    itemsize: int,
    conv_itemsize: int,
    step_bytes: int,
    cut: bool = True,
) -> Iterator[Plan]:
    """Ways to stream a volume, over all axes and, with `cut`, cross-section windows, which only memory asks for."""
    nodes = range(len(program.nodes))
    whole = program.operations(sizes) or 1.0
    # Voxels per node that all windows of an axis make, and that the largest makes.
    made: list[dict[int, tuple[list[int], list[int]]]] = []
    for axis, size in enumerate(sizes):
        made.append({})
        for split in _splits(size) if cut else [1]:
            extents = [[program.extent(i, axis, window, size) for window in _cut(size, split)] for i in nodes]
            spans = [[hi - lo for lo, hi in extent] for extent in extents]
            made[-1][split] = [sum(span) for span in spans], [max(span) for span in spans]
    for axis, length in enumerate(sizes):
        memory_model = _MemoryModel(program, axis, itemsize, conv_itemsize)
        for splits in itertools.product(*([1] if a == axis else made[a] for a in range(len(sizes)))):
            others = [made[a][k] for a, k in enumerate(splits) if a != axis]
            areas = [math.prod(largest[i] for _, largest in others) for i in nodes]
            totals = [math.prod(total[i] for total, _ in others) for i in nodes]
            slices = max(1, step_bytes // memory_model.slice_bytes(areas))
            thickness, together = min(slices, length), max(1, min(slices // length, count))
            for thick, batch in sorted({(1, 1), (-(-thickness // 4), 1), (thickness, 1), (thickness, together)}):
                parts = -(-length // thick)
                work = _operations(program, axis, length, totals, parts) / whole
                cost = work + _CALL * math.prod(splits) * parts * len(nodes) / (whole * batch)
                memory = memory_model.bytes(areas, thick, batch)
                yield Plan(program, sizes, splits, memory, work, cost, axis, thick, batch)


def _operations(program: Program, axis: int, length: int, totals: Sequence[int], steps: int) -> float:
    """Operations of all windows; `totals`: voxels that each node has in a slice of them."""
    result = 0.0
    for i, node in enumerate(program.nodes):
        if node.operations:
            at = node.inputs[0] if node.scale else i
            repeated = 2 * node.reach[axis] * (steps - 1) if node.scale else 0  # each step has a halo of its own
            result += node.operations * totals[at] * (length * program.factors[at][axis] + repeated)
    return result


class _MemoryModel:
    """Bytes held at most: the last slices of convolutions, weights, waiting slices, scratch blocks, live values."""

    def __init__(self, program: Program, axis: int, itemsize: int, conv_itemsize: int) -> None:
        nodes, lags = program.nodes, program.lags
        computed = {n: itemsize if program.reads_volume(n) else conv_itemsize for n in nodes}
        self.weights = sum(computed[n] * n.convolution.weight.numel() for n in nodes if n.convolution)
        self.factors = [factor[axis] for factor in program.factors]
        self.reach = max(-(-n.reach[axis] // self.factors[j]) for n in nodes for j in (n.inputs or (0,)))
        self.tails: list[tuple[int, int, int]] = []  # node, slices, bytes per voxel
        self.blocks: dict[int, list[tuple[int, int, int]]] = {}  # of each precision, which share one
        self.queues: list[tuple[int, int, int]] = []
        self.made: dict[int, tuple[int, int, int]] = {}
        for i, node in enumerate(nodes):
            for j in node.inputs:
                slices, lag = 2 * node.reach[axis], lags[i][axis] - lags[j][axis]
                if node.convolution is not None:
                    self.tails.append((j, slices, nodes[j].channels * computed[node]))
                    self.blocks.setdefault(computed[node], []).append(self.tails[-1])
                elif node.scale:  # its input with the halo, and what is made of it before the halo is cut away
                    self.tails.append((j, slices, nodes[j].channels * itemsize))
                    size = nodes[j].channels + math.prod(node.scale) * node.channels
                    if node.operations:  # a transposed convolution copies its input and makes a column of each voxel
                        size += nodes[j].channels + round(node.operations / (2 * nodes[j].channels))
                    self.made[i] = (j, slices, size * itemsize)
                elif lag > 0:
                    self.queues.append((j, lag, nodes[j].channels * itemsize))
        alive = [tuple(j for j in range(i + 1) if program.last_use[j] >= i) for i in range(len(nodes))]
        self.alive = {(held, i if i in self.made else -1) for i, held in enumerate(alive)}
        self.voxel = [node.channels * itemsize for node in nodes]

    def slice_bytes(self, areas: Sequence[int]) -> int:
        """Bytes that the largest value has per slice of the input."""
        return max(a * size * f for a, size, f in zip(areas, self.voxel, self.factors, strict=True))

    def bytes(self, areas: Sequence[int], thickness: int, batch: int) -> int:
        """Bytes for the largest cross-section of each node in voxels, slices of the input per step, and items."""
        thick = [max(thickness, self.reach) * f for f in self.factors]
        tails = sum(slices * areas[j] * size for j, slices, size in self.tails)
        queues = sum((slices + thick[j]) * areas[j] * size for j, slices, size in self.queues)
        block = sum(max((slices + thick[j]) * areas[j] * size for j, slices, size in b) for b in self.blocks.values())
        live = 0
        for held, i in self.alive:
            j, slices, size = self.made.get(i, (0, 0, 0))
            now = sum(thick[k] * areas[k] * self.voxel[k] for k in held)
            live = max(live, now + (slices + thick[j]) * areas[j] * size)
        return self.weights + batch * (tails + queues + block + live)


def _tilings(network: Opaque, sizes: tuple[int, ...]) -> Iterator[Plan]:
    """Ways to cut a volume into tiles with halos."""
    made: list[dict[int, tuple[int, int]]] = []  # per axis: voxels of all tiles, and of the largest
    for size, halo in zip(sizes, network.footprint.halo, strict=True):
        spans = {k: [min(hi + halo, size) - max(lo - halo, 0) for lo, hi in _cut(size, k)] for k in _splits(size)}
        made.append({k: (sum(s), max(s)) for k, s in spans.items()})
    for splits in itertools.product(*made):
        work = math.prod(made[a][k][0] for a, k in enumerate(splits)) / math.prod(sizes)
        memory = math.ceil(network.voxel_bytes * math.prod(made[a][k][1] for a, k in enumerate(splits)))
        yield Plan(network, sizes, splits, memory, work, work)
