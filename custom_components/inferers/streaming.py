"""Run a convolutional network over a volume a few slices at a time, with nothing computed twice along that axis.

A network of stacked convolutions has a receptive field that grows with its depth, so tiles with a halo compute many
voxels several times. Along one axis this is avoided when each convolution keeps the last `span - 1` slices of its
input: the next slices then continue where the last ones ended. `trace.trace` reads a network into a `Program`;
`Program.run` streams a volume through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .nodes import Convolution, Extent, Node, Pointwise, Scratch, Source, cropped, inside


@dataclass(frozen=True)
class Program:
    """The graph of a network as nodes in the order of computation; the last one is the output.

    `margins[i][axis]`: voxels of node i that the output needs beyond a window; `lags[i][axis]`: slices that node i is
    behind the input; `last_use[i]`: the last node that reads node i.
    """

    nodes: tuple[Node, ...]
    margins: tuple[tuple[int, ...], ...] = field(init=False)
    lags: tuple[tuple[int, ...], ...] = field(init=False)
    last_use: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        axes = range(len(self.nodes[0].reach))
        lags: list[tuple[int, ...]] = []
        margins = [tuple(0 for _ in axes) for _ in self.nodes]
        last_use = list(range(len(self.nodes)))
        for i, node in enumerate(self.nodes):
            lags.append(tuple(max((lags[j][a] for j in node.inputs), default=0) + node.reach[a] for a in axes))
            for j in node.inputs:
                last_use[j] = i
        for i, node in reversed(list(enumerate(self.nodes))):
            for j in node.inputs:
                margins[j] = tuple(max(margins[j][a], margins[i][a] + node.reach[a]) for a in axes)
        object.__setattr__(self, "lags", tuple(lags))
        object.__setattr__(self, "margins", tuple(margins))
        object.__setattr__(self, "last_use", tuple(last_use))

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return self.nodes[-1].channels

    def extent(self, index: int, axis: int, window: Extent, size: int) -> Extent:
        """Part of an axis of `size` voxels on which node `index` is computed for a window of the output."""
        margin = self.margins[index][axis]
        return max(window[0] - margin, 0), min(window[1] + margin, size)

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
            volume: input `(1, C, *spatial)`.
            output: `(1, C', *spatial)`, written inside the window.
            axis: spatial axis along which the volume is streamed.
            window: extent per spatial axis; that of `axis` is the whole axis.
            thickness: slices per step, at least 1.
            dtype: of the values, as the network's parameters.
            low_precision: of the convolutions, where it differs.
            device: of the network; slices are brought to it.
            advance: called with the number of slices after each write.
        """
        axes = [axis, *(a for a in range(volume.ndim - 2) if a != axis)]
        order = [0, 1, *(a + 2 for a in axes)]
        volume, output = volume.permute(order), output.permute(order)
        length, *sizes = volume.shape[2:]
        extents = [
            [self.extent(i, a, window[a], n) for a, n in zip(axes[1:], sizes, strict=True)]
            for i in range(len(self.nodes))
        ]
        scratch = Scratch()
        states: list[Source | Convolution | Pointwise] = []
        for node, want in zip(self.nodes, extents, strict=True):
            have = [extents[j] for j in node.inputs]
            if node.convolution is not None:
                precision = low_precision or dtype
                states.append(Convolution(node, axes, have[0], want, sizes, thickness, precision, scratch))
            elif node.function is not None:
                states.append(Pointwise(node.function, [inside(outer, want) for outer in have]))
            else:
                states.append(Source(cropped(volume, [slice(*e) for e in want]), thickness, device, dtype))
        target = cropped(output, [slice(*e) for e in extents[-1]])
        written = 0
        while written < length:  # once the input has ended, each step lets at least one more convolution finish
            result = self._step(states)
            if result is not None:
                target[:, :, written : written + result.shape[2]] = result.to(output.device)
                written += result.shape[2]
                if advance is not None:
                    advance(result.shape[2])

    def _step(self, states: Sequence[Source | Convolution | Pointwise]) -> Tensor | None:
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
