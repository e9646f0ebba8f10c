"""The values of a streamed network, and how each is computed a few slices at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Extent = tuple[int, int]  # first voxel and one past the last, on the axis of the volume


@dataclass(frozen=True)
class Node:
    """One value of the network: a convolution, a pointwise function of several values, or (neither) the volume itself.

    `inputs` are indices of earlier nodes, `reach` is half the span of the kernel per axis.
    """

    inputs: tuple[int, ...]
    reach: tuple[int, ...]
    convolution: nn.Conv2d | nn.Conv3d | None = None
    function: Callable[..., Tensor] | None = None
    view: bool = False  # may share memory with its input
    relu: bool = False  # a function that is a ReLU; a convolution that applies one to its input
    channels: int = 0


def cropped(tensor: Tensor, part: Sequence[slice]) -> Tensor:
    """View of a part of the last axes."""
    index: tuple[EllipsisType | slice, ...] = (..., *part)
    return tensor[index]


def inside(outer: Sequence[Extent], inner: Sequence[Extent]) -> tuple[slice, ...]:
    """Place of one part of the volume within another."""
    return tuple(slice(b[0] - a[0], b[1] - a[0]) for a, b in zip(outer, inner, strict=True))


class Scratch:
    """One block of memory for the inputs of all convolutions in turn: pages that are touched once stay mapped."""

    def __init__(self) -> None:
        self.block: Tensor | None = None

    def take(self, channels: int, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Memory for `(1, channels, *shape)`, channels last; what was taken before is overwritten."""
        size = channels * int(torch.Size(shape).numel())
        if self.block is None or self.block.numel() < size:
            self.block = None  # freed before the larger one is made
            self.block = torch.empty(size, dtype=dtype, device=device)
        return self.block[:size].view(1, *shape, channels).movedim(-1, 1)


class Source:
    """The volume, brought to the network's device slice by slice."""

    def __init__(self, volume: Tensor, thickness: int, device: torch.device | None, dtype: torch.dtype) -> None:
        self.parts = deque(torch.split(volume, thickness, dim=2))
        self.device, self.dtype = device, dtype

    def feed(self, inputs: list[Tensor | None], over: bool) -> tuple[Tensor | None, bool]:
        """The next slices, if any are left, and whether these are the last."""
        part = self.parts.popleft().to(self.device, self.dtype) if self.parts else None
        return part, not self.parts


class Convolution:
    """A convolution that continues where its last slices ended."""

    def __init__(
        self,
        node: Node,
        axes: Sequence[int],
        have: Sequence[Extent],
        want: Sequence[Extent],
        sizes: Sequence[int],
        thickness: int,
        dtype: torch.dtype,
        scratch: Scratch,
    ) -> None:
        """`axes`: the streamed one, then the others; on these the input's and the result's extents, and the volume's sizes."""
        conv = cast(nn.Conv3d, node.convolution)
        memory_format = torch.channels_last if len(axes) == 2 else torch.channels_last_3d
        order = [0, 1, *(a + 2 for a in axes)]
        # The network's weights as they are now: a copy per run, never kept, so that further training is seen.
        self.weight = conv.weight.detach().permute(order).to(dtype).contiguous(memory_format=memory_format)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.function = F.conv2d if len(axes) == 2 else F.conv3d
        self.groups, self.dilation = conv.groups, [conv.dilation[a] for a in axes]
        self.reach, *reach = (node.reach[a] for a in axes)
        self.relu, self.channels, self.scratch = node.relu, conv.in_channels, scratch
        self.limit = max(thickness, self.reach)
        need = [(max(lo - r, 0), min(hi + r, n)) for (lo, hi), r, n in zip(want, reach, sizes, strict=True)]
        # Padding is that of the volume's border. Where only one side is at the border, the other side's is cut away
        # below.
        at_border = [lo - r < 0 or hi + r > n for (lo, hi), r, n in zip(want, reach, sizes, strict=True)]
        self.padding = [0, *(r if b else 0 for r, b in zip(reach, at_border, strict=True))]
        made = [e if b else (e[0] + r, e[1] - r) for e, r, b in zip(need, reach, at_border, strict=True)]
        self.crop_input, self.crop_output = inside(have, need), inside(made, want)
        self.cross = [hi - lo for lo, hi in need]
        self.tail: Tensor | None = None
        self.held = self.reach  # slices kept from before; at first the zeros outside the volume
        self.done = False

    def feed(self, inputs: list[Tensor | None], over: bool) -> tuple[Tensor | None, bool]:
        """The slices of the result that the next ones of the input allow, and whether these are the last.

        The list is emptied, so that the input is freed early; `over`: it has ended.
        """
        value = inputs.pop()
        fresh = 0 if value is None else value.shape[2]
        # The zeros behind the last slice wait for the next step if they would make this one thicker than planned.
        closes = over and not self.done and (fresh + self.reach <= self.limit or fresh == 0)
        closing = self.reach if closes else 0
        self.done = self.done or closes
        if fresh + closing == 0:
            return None, self.done
        total = self.held + fresh + closing
        block = self.scratch.take(self.channels, [total, *self.cross], self.weight.device, self.weight.dtype)
        before, part, behind = torch.split(block, [self.held, fresh, closing], dim=2)
        if self.tail is None:
            before.zero_()
        else:
            before.copy_(self.tail)
        if value is not None:
            value = cropped(value, self.crop_input)
            if self.relu:
                torch.clamp_min(value, 0, out=part)
            else:
                part.copy_(value)
        del value
        behind.zero_()
        self.held = min(total, 2 * self.reach)
        self._keep(block[:, :, total - self.held :])
        if total <= 2 * self.reach:
            return None, self.done
        result = self.function(block, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        return cropped(result, self.crop_output), self.done

    def _keep(self, slices: Tensor) -> None:
        if self.done or self.held == 0:
            self.tail = None
        elif self.tail is not None and self.tail.shape == slices.shape:
            self.tail.copy_(slices)
        else:
            self.tail = slices.clone()


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
        return self.function(*(_take(queue, count) for queue in self.queues)), ended


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
