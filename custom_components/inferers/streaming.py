"""Run a convolutional network over a volume a few slices at a time, with nothing computed twice along that axis.

A network of stacked convolutions has a receptive field that grows with its depth, so tiles with a halo compute many
voxels several times. Along one axis this is avoided when each convolution keeps the last `span - 1` slices of its
input: the next slices then continue where the last ones ended. `trace.trace` reads a network into a `Program`;
`Program.run` streams a volume through it. Where the network upsamples, a slice of the volume gives several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .convolution import Convolution, Scratch
from .nodes import Addition, Extent, Node, Pointwise, Source, Upsampling, cropped, inside

State = Source | Convolution | Upsampling | Pointwise


@dataclass(frozen=True)
class Program:
    """The graph of a network as nodes in the order of computation; the last one is the output.

    `factors[i][axis]`: voxels of node i per voxel of the input; `margins[i][axis]`: those that the output needs beyond a window;
    `lags[i][axis]`: slices that node i is behind the input, on its own grid; `last_use[i]`: the last node that reads node i.
    """

    nodes: tuple[Node, ...]
    factors: tuple[tuple[int, ...], ...] = field(init=False)
    margins: tuple[tuple[int, ...], ...] = field(init=False)
    lags: tuple[tuple[int, ...], ...] = field(init=False)
    last_use: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        axes = range(len(self.nodes[0].reach))
        factors: list[tuple[int, ...]] = []
        lags: list[tuple[int, ...]] = []
        margins = [tuple(0 for _ in axes) for _ in self.nodes]
        last_use = list(range(len(self.nodes)))
        scales = [node.scale or tuple(1 for _ in axes) for node in self.nodes]
        for i, (node, scale) in enumerate(zip(self.nodes, scales, strict=True)):
            before = factors[node.inputs[0]] if node.inputs else scale
            factors.append(tuple(f * s for f, s in zip(before, scale, strict=True)))
            waited = [max((lags[j][a] for j in node.inputs), default=0) for a in axes]
            lags.append(tuple(s * (w + r) for s, w, r in zip(scale, waited, node.reach, strict=True)))
            for j in node.inputs:
                last_use[j] = i
        for i, (node, scale) in reversed(list(enumerate(zip(self.nodes, scales, strict=True)))):
            needed = [-(-m // s) + r for m, s, r in zip(margins[i], scale, node.reach, strict=True)]
            for j in node.inputs:
                margins[j] = tuple(max(m, n) for m, n in zip(margins[j], needed, strict=True))
        object.__setattr__(self, "factors", tuple(factors))
        object.__setattr__(self, "lags", tuple(lags))
        object.__setattr__(self, "margins", tuple(margins))
        object.__setattr__(self, "last_use", tuple(last_use))

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.nodes[-1].channels

    @property
    def factor(self) -> tuple[int, ...]:
        """Voxels of the output per voxel of the input, per axis."""
        return self.factors[-1]

    def reads_volume(self, node: Node) -> bool:
        """Whether it reads the volume itself: convolutions that do keep the network's precision."""
        return any(not self.nodes[j].inputs for j in node.inputs)

    def accumulator(self, node: Node) -> int | None:
        """Which input of a sum may hold it: a convolution's result of as many channels that nothing else reads."""
        for place, j in enumerate(node.inputs if node.total else ()):
            alone = sum(other.inputs.count(j) for other in self.nodes) == 1
            if alone and self.nodes[j].convolution is not None and self.nodes[j].channels == node.channels:
                return place
        return None

    def operations(self, sizes: Sequence[int]) -> float:
        """Multiplications and additions of convolutions in one pass over a volume of `sizes` voxels."""
        grids = [self.factors[node.inputs[0] if node.scale else i] for i, node in enumerate(self.nodes)]
        per_voxel = sum(n.operations * math.prod(grid) for n, grid in zip(self.nodes, grids, strict=True))
        return per_voxel * math.prod(sizes)

    def extent(self, index: int, axis: int, window: Extent, size: int) -> Extent:
        """Part of its axis on which node `index` is computed; `window` and `size` are on the axis of the input."""
        margin, factor = self.margins[index][axis], self.factors[index][axis]
        return max(window[0] * factor - margin, 0), min(window[1] * factor + margin, size * factor)

    def run(
        self,
        volume: Tensor,
        output: Tensor,
        axis: int,
        window: Sequence[Extent],
        thickness: int,
        dtype: torch.dtype,
        low_precision: torch.dtype | None = None,
        device: torch.device | None = None,
        advance: Callable[[int], object] | None = None,
    ) -> None:
        """Compute `output` inside a window that spans the whole of the streamed axis.

        Args:
            volume: input `(B, C, *spatial)`.
            output: `(B, C', *(factor * spatial))`, written inside the window.
            axis: spatial axis along which the volume is streamed.
            window: extent per spatial axis, on the input's grid; that of `axis` is the whole axis.
            thickness: slices of the input per step, at least 1.
            dtype: of the values, as the network's parameters.
            low_precision: of the convolutions, where it differs; not of those that read the volume itself, which have few channels:
                to round the scan costs more than all that comes after.
            device: of the network; slices are brought to it.
            advance: called after each write with the number of slices of the volume that are done.
        """
        axes = [axis, *(a for a in range(volume.ndim - 2) if a != axis)]
        order = [0, 1, *(a + 2 for a in axes)]
        volume, output = volume.permute(order), output.permute(order)
        sizes = volume.shape[3:]
        extents = [
            [self.extent(i, a, window[a], n) for a, n in zip(axes[1:], sizes, strict=True)]
            for i in range(len(self.nodes))
        ]
        scratch: dict[torch.dtype, Scratch] = {}
        states: list[State] = []
        for node, want in zip(self.nodes, extents, strict=True):
            have = [extents[j] for j in node.inputs]
            grid = self.factors[node.inputs[0] if node.inputs else 0]  # that of its input
            thick, *full = (n * grid[a] for n, a in zip((thickness, *sizes), axes, strict=True))
            if node.convolution is not None:
                low = low_precision or dtype
                precision = dtype if self.reads_volume(node) else low
                memory = scratch.setdefault(precision, Scratch(len(volume)))
                states.append(Convolution(node, axes, have[0], want, full, thick, precision, low, memory))
            elif node.scale:
                states.append(Upsampling(node, axes, have[0], want, full, thick))
            elif node.function is not None:
                crops, into = [inside(outer, want) for outer in have], self.accumulator(node)
                function = node.function
                states.append(Pointwise(function, crops) if into is None else Addition(function, crops, into))
            else:
                states.append(Source(cropped(volume, [slice(*e) for e in want]), thickness, device, dtype))
        target = cropped(output, [slice(*e) for e in extents[-1]])
        written = 0
        while (
            written < target.shape[2]
        ):  # once the input has ended, each step lets at least one more convolution finish
            result = self._step(states)
            if result is not None:
                before, written = written, written + result.shape[2]
                target[:, :, before:written] = result.to(output.device)
                if advance is not None:
                    advance(written // self.factor[axis] - before // self.factor[axis])

    def _step(self, states: Sequence[State]) -> Tensor | None:
        """Read a few slices and pass them on as far as they go: the next slices of the output, if there are any."""
        values: list[Tensor | None] = []
        ended: list[bool] = []
        for i, (node, state) in enumerate(zip(self.nodes, states, strict=True)):
            # The list is the only holder of an input that is not used again, so that the callee can free it early.
            inputs = [values[j] for j in node.inputs]
            for j in node.inputs:
                if self.last_use[j] == i:
                    values[j] = None
            value, end = state.feed(inputs, all(ended[j] for j in node.inputs))
            values.append(value)
            ended.append(end)
            del value
        return values[-1]
