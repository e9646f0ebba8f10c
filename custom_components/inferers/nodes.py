"""The values of a streamed network, and how each is computed a few slices at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import cast

import torch
from torch import Tensor, nn

Extent = tuple[int, int]  # first voxel and one past the last, on the axis of the volume


@dataclass(frozen=True)
class Node:
    """One value of the network: a convolution, a function of several values, or (neither) the volume itself.

    `inputs` are indices of earlier nodes, `reach` is half the span of the kernel per axis. A function works voxel by voxel, or
    makes `scale` voxels per axis of each of its only input, of which it sees `reach` neighbours.
    """

    inputs: tuple[int, ...]
    reach: tuple[int, ...]
    convolution: nn.Conv2d | nn.Conv3d | None = None
    function: Callable[..., Tensor] | None = None
    view: bool = False  # may share memory with its input
    relu: bool = False  # a function that is a ReLU; a convolution that applies one to its input
    total: bool = False  # a function that adds its two inputs
    channels: int = 0
    scale: tuple[int, ...] = ()  # of a function that upsamples
    operations: float = 0.0  # multiplications and additions per voxel of its input


def cropped(tensor: Tensor, part: Sequence[slice]) -> Tensor:
    """View of a part of the last axes."""
    index: tuple[EllipsisType | slice, ...] = (..., *part)
    return tensor[index]


def inside(outer: Sequence[Extent], inner: Sequence[Extent]) -> tuple[slice, ...]:
    """Place of one part of the volume within another."""
    return tuple(slice(b[0] - a[0], b[1] - a[0]) for a, b in zip(outer, inner, strict=True))


def around(
    part: Sequence[Extent], reach: Sequence[int], sizes: Sequence[int], scale: Sequence[int] | None = None
) -> list[Extent]:
    """What of a volume of `sizes` voxels a kernel of `reach` sees when it makes `part`, of which `scale` voxels lie on each."""
    return [
        (max(lo // s - r, 0), min(-(-hi // s) + r, n))
        for (lo, hi), r, n, s in zip(part, reach, sizes, scale or [1] * len(part), strict=True)
    ]


class Source:
    """The volume, brought to the network's device slice by slice."""

    def __init__(self, volume: Tensor, thickness: int, device: torch.device | None, dtype: torch.dtype) -> None:
        self.parts = deque(torch.split(volume, thickness, dim=2))
        self.device, self.dtype = device, dtype

    def feed(self, inputs: list[Tensor | None], over: bool) -> tuple[Tensor | None, bool]:
        """The next slices, if any are left, and whether these are the last."""
        part = self.parts.popleft().to(self.device, self.dtype) if self.parts else None
        return part, not self.parts


class Upsampling:
    """A function that upsamples, run on a few slices with a halo of `reach`; at the border of the volume the slices end there."""

    def __init__(
        self,
        node: Node,
        axes: Sequence[int],
        have: Sequence[Extent],
        want: Sequence[Extent],
        sizes: Sequence[int],
        thickness: int,
    ) -> None:
        """As `Convolution`; `have`, `sizes` and `thickness` are on the grid of the input."""
        self.function = cast(Callable[[Tensor], Tensor], node.function)
        self.scale, *scale = (node.scale[a] for a in axes)
        self.reach, *reach = (node.reach[a] for a in axes)
        self.limit = max(thickness, self.reach)
        need = around(want, reach, sizes, scale)
        made = [(lo * s, hi * s) for (lo, hi), s in zip(need, scale, strict=True)]
        self.crop_input, self.crop_output = inside(have, need), inside(made, want)
        self.order = [0, 1, *(a + 2 for a in axes)]
        self.back = [self.order.index(a) for a in range(len(self.order))]
        self.kept: Tensor | None = None
        self.before = 0  # of the kept slices, those that are only halo
        self.done = False

    def feed(self, inputs: list[Tensor | None], over: bool) -> tuple[Tensor | None, bool]:
        """As `Convolution.feed`."""
        value = inputs.pop()
        fresh = 0 if value is None else value.shape[2]
        parts = [] if value is None else [cropped(value, self.crop_input)]
        if self.kept is not None:
            parts.insert(0, self.kept)
        self.kept = value = None
        # As there, what the end allows waits where it would make this step thicker than planned.
        self.done = self.done or (over and (fresh + self.reach <= self.limit or fresh == 0))
        if not parts:
            return None, self.done
        block = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        parts.clear()
        before, ready = self.before, max(block.shape[2] - (0 if self.done else self.reach), 0)
        first = max(ready - self.reach, 0)
        if not self.done and first < block.shape[2]:
            self.kept, self.before = block[:, :, first:].clone(), ready - first
        if ready <= before:
            return None, self.done
        result = self.function(block.permute(self.back)).permute(self.order)
        part = cropped(result[:, :, before * self.scale : ready * self.scale], self.crop_output)
        # A view would hold the halo's memory, and may have to wait for other values.
        return (part.clone() if part.numel() < result.numel() else part), self.done


class Pointwise:
    """A function of values that lag behind the input by different numbers of slices: the earlier ones wait."""

    def __init__(self, function: Callable[..., Tensor], crops: Sequence[tuple[slice, ...]]) -> None:
        self.function = function
        self.crops = crops  # per input, which may reach further than what is needed here
        self.queues: list[deque[Tensor]] = [deque() for _ in crops]

    def feed(self, inputs: list[Tensor | None], over: bool) -> tuple[Tensor | None, bool]:
        """As for a convolution."""
        for queue, crop in zip(self.queues, self.crops, strict=True):
            value = inputs.pop(0)
            if value is not None:
                queue.append(cropped(value, crop))
        ready = [sum(part.shape[2] for part in queue) for queue in self.queues]
        count = min(ready)
        ended = over and max(ready) == count
        if count == 0:
            return None, ended
        return self._value(count), ended

    def _value(self, count: int) -> Tensor:
        """The function of the next `count` slices of each input."""
        return self.function(*(_take(queue, count) for queue in self.queues))


class Addition(Pointwise):
    """A sum of two values, put into that one which nobody else reads: no memory of its own, and what waited is added as it is."""

    def __init__(self, function: Callable[..., Tensor], crops: Sequence[tuple[slice, ...]], into: int) -> None:
        super().__init__(function, crops)
        self.into = into

    def _value(self, count: int) -> Tensor:
        into, other = self.queues[self.into], self.queues[1 - self.into]
        if torch.promote_types(into[0].dtype, other[0].dtype) != into[0].dtype:
            return super()._value(count)
        result, done = _take(into, count), 0
        while done < count:
            part = _take(other, min(count - done, other[0].shape[2]))
            result[:, :, done : done + part.shape[2]].add_(part)
            done += part.shape[2]
        return result


def _take(queue: deque[Tensor], count: int) -> Tensor:
    """The next `count` slices of a queue."""
    parts = []
    while count:
        part = queue.popleft()
        if part.shape[2] > count:
            queue.appendleft(part[:, :, count:])
            part = part[:, :, :count]
        parts.append(part)
        count -= part.shape[2]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
