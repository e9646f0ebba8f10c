"""A 2D network over the slices of a volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import Inferer
from monai.utils import optional_import
from torch import Tensor

from ..acquisition import interpolation_operator
from .exact import _placement, _plain


class SlicesInferer(Inferer):
    """Run a 2D network on each slice of a volume, some slices at a time.

    Where a HR shape is wished, the network upsamples within the slices, and the stack of its results is interpolated by cubic
    B-splines across them. Unlike `monai.inferers.SliceInferer` it hands the wished shape on to the network, needs no second array
    of the size of the result, and brings only the slices that are computed to the network's device. It is for inference: no
    gradients.

    Args:
        spatial_dim: axis across the slices, -3 to 2. Default -1, the last: a tensor does not tell which axis has the thick slices.
        batch_size: slices per call of the network; memory beside input and result grows with it.
        progress: show a progress bar over slices.

    Raises:
        ValueError: on arguments out of range.

    Example:
        >>> SlicesInferer(spatial_dim=0)(torch.rand(1, 1, 5, 12, 14), torch.nn.Conv2d(1, 1, 3, padding=1)).shape
        torch.Size([1, 1, 5, 12, 14])
    """

    def __init__(self, spatial_dim: int = -1, batch_size: int = 8, progress: bool = False) -> None:
        super().__init__()
        if spatial_dim not in range(-3, 3):
            raise ValueError(f"spatial_dim must be in -3 .. 2, got {spatial_dim}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        self.axis = int(spatial_dim) % 3
        self.batch_size = batch_size
        self.progress = progress

    def __call__(self, inputs: Tensor, network: Callable[..., Any], shape: Sequence[int] | None = None) -> Tensor:
        """Compute the volume of the network's results.

        Args:
            inputs: `(B, C, X, Y, Z)`, on any device; slices go to the network's.
            network: maps `(b, C, h, w)` to `(b, C', h', w')`; with a `shape` it is called as `network(slices, [h', w'])`.
            shape: the wished spatial shape. None: what the network makes, with as many slices as there are.

        Returns:
            `(B, C', *shape)` on the device of `inputs`, a plain tensor in the precision of the network's result.

        Raises:
            ValueError: if the input is no volume, the shape has other axes or fewer slices, or the network's result is not of the
                wished size.
        """
        volume = _plain(inputs)
        if volume.ndim != 5 or min(volume.shape) < 1:
            raise ValueError(f"inputs must be (B, C, X, Y, Z) without an empty axis, got {tuple(volume.shape)}")
        if shape is None:
            return self._slices(volume, network)
        count = volume.shape[self.axis + 2]
        wished = [int(n) for n in shape]
        if len(wished) != 3 or wished[self.axis] < count:
            raise ValueError(
                f"shape must have 3 axes and at least {count} voxels on axis {self.axis}, got {tuple(wished)}"
            )
        plane = [n for a, n in enumerate(wished) if a != self.axis]
        stack = self._slices(volume, network, plane)
        return interpolation_operator(stack.shape[2:], wished)(stack) if count < wished[self.axis] else stack

    def _slices(self, volume: Tensor, network: Callable[..., Any], plane: list[int] | None = None) -> Tensor:
        device, dtype = _placement(network, volume)
        stacks = volume.movedim(self.axis + 2, 1)
        wished: tuple[list[int], ...] = () if plane is None else (plane,)
        tqdm, _ = optional_import("tqdm.auto", name="tqdm")
        output = torch.empty(0)
        with tqdm(total=stacks[:, :, 0, 0, 0].numel(), desc="slices", leave=False, disable=not self.progress) as bar:
            for i, stack in enumerate(stacks):
                for first in range(0, len(stack), self.batch_size):
                    slices = stack[first : first + self.batch_size].to(device, dtype).contiguous()
                    with torch.inference_mode():
                        result = network(slices, *wished)
                    if not isinstance(result, Tensor) or result.ndim != 4 or len(result) != len(slices):
                        raise ValueError(f"the network must map (b, C, h, w) to (b, C', h', w'), got {_kind(result)}")
                    if plane is not None and list(result.shape[2:]) != plane:
                        raise ValueError(f"the network must make slices of {plane}, got {list(result.shape[2:])}")
                    if not output.numel():  # made outside of inference mode: callers may go on computing with it
                        sizes = list(result.shape[1:])
                        sizes.insert(self.axis + 1, len(stack))
                        output = torch.empty(len(volume), *sizes, dtype=result.dtype, device=volume.device)
                    output[i].movedim(self.axis + 1, 0)[first : first + len(slices)] = result
                    bar.update(len(slices))
        return output


def _kind(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
