"""A convolution that runs over a volume a few slices at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .nodes import Extent, Node, around, cropped, inside


class Scratch:
    """One block of memory for the inputs of all convolutions in turn: pages that are touched once stay mapped."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.block: Tensor | None = None

    def take(self, channels: int, shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
        """Memory for `(batch, channels, *shape)`, channels last; what was taken before is overwritten."""
        size = self.batch * channels * int(torch.Size(shape).numel())
        if self.block is None or self.block.numel() < size:
            self.block = None  # freed before the larger one is made
            self.block = torch.empty(size, dtype=dtype, device=device)
        return self.block[:size].view(self.batch, *shape, channels).movedim(-1, 1)


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
        result_dtype: torch.dtype,
        scratch: Scratch,
    ) -> None:
        """`axes`: the streamed one, then the others; on these the input's and the result's extents, and the volume's sizes.

        `dtype` is what it computes in, `result_dtype` that of its result.
        """
        conv = cast(nn.Conv3d, node.convolution)
        memory_format = torch.channels_last if len(axes) == 2 else torch.channels_last_3d
        order = [0, 1, *(a + 2 for a in axes)]
        # The network's weights as they are now: a copy per run, never kept, so that further training is seen.
        self.weight = conv.weight.detach().permute(order).to(dtype).contiguous(memory_format=memory_format)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.function = _function(self.weight)
        self.groups, self.stride, self.dilation = conv.groups, [1] * len(axes), [conv.dilation[a] for a in axes]
        self.reach, *reach = (node.reach[a] for a in axes)
        self.relu, self.channels, self.scratch = node.relu, conv.in_channels, scratch
        self.result_dtype = result_dtype
        self.limit = max(thickness, self.reach)
        need = around(want, reach, sizes)
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
        result = self.function(block, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups)
        return cropped(result, self.crop_output).to(self.result_dtype), self.done

    def _keep(self, slices: Tensor) -> None:
        if self.done or self.held == 0:
            self.tail = None
        elif self.tail is not None and self.tail.shape == slices.shape:
            self.tail.copy_(slices)
        else:
            self.tail = slices.clone()


def _function(weight: Tensor) -> Callable[..., Tensor]:
    """A convolution of (input, weight, bias, padding, stride, dilation, groups).

    `F.conv3d` leaves float32 to oneDNN only where the first channels and axes of the input have more than 20480 values together;
    thin steps may not, and its other kernel was up to 16 times slower on one thread of a CPU.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        return cast(Callable[..., Tensor], torch.mkldnn_convolution)
    general = F.conv2d if weight.ndim == 4 else F.conv3d
    return lambda x, w, bias, padding, stride, dilation, groups: general(x, w, bias, stride, padding, dilation, groups)
