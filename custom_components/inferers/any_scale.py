"""A whole scan through an `AnyScaleSR` to any finer grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.data.utils import affine_to_spacing
from torch import Tensor

from ..acquisition import interpolation_operator
from ..networks.any_scale import TOLD, AnyScaleSR, PlainResidual, acquisition_condition
from ..networks.wrapping import unwrapped
from ..tensors import plain
from .cell_reader import CellReader
from .exact import ExactInferer, _placement
from .nodes import Extent, Node
from .planning import GIB, Plan, find_plan
from .streaming import Program

HIGHEST_STD = 0.5  # of the expected error, on the [0, 1] scale, should a scan be unlike all others
_MIRRORED = [[axis + 2 for axis in range(3) if number >> axis & 1] for number in range(1, 8)]


class AnyScaleInferer(ExactInferer):
    """Run an `AnyScaleSR` over a scan, equal to one pass of it, with the condition in its weights and in bounded memory.

    The convolutions are streamed along one axis (see `ExactInferer`), and what they say of a few slices is added to the result at
    once: up to 64 values per LR voxel are never held for the whole scan. Before and after that lives one more volume of the size
    of the result, while a spline is interpolated.

    What is known of the acquisition comes from the meta data of the scan: `affine`, and where there are, `slice_width`, the full
    width at half maximum of the slice profile in LR voxels per axis (None where it is not known), with `slice_width_certainty`
    (see `custom_components.networks.acquisition_condition`), and `noise_std` on the [0, 1] scale.

    Args:
        memory_gib: working memory in GiB for convolutions and what is read off of them, beside network, input and result; one LR
            slice is read off at a time where it leaves no more.
        progress: show a progress bar over slices.
        amp_dtype: "bfloat16" or "float16" to run the convolutions in it (see `faster_dtype`); None keeps the network's precision,
            or that of a surrounding `torch.autocast`.
        denoising_strength: part of the noise that is taken away, 0 to 1.
        uncertainty: give the expected standard deviation of the error on the [0, 1] scale as a second channel.
        self_ensemble: the mean over the scan and its mirror images along all axes, each mirrored back; 8 times the time, and one
            more volume of the size of the result. Of the standard deviations the quadratic mean.

    Raises:
        ValueError: on arguments out of range.

    Example:
        >>> AnyScaleInferer(uncertainty=True)(torch.rand(1, 1, 8, 9, 4), AnyScaleSR(8, 1), shape=(12, 9, 10)).shape
        torch.Size([1, 2, 12, 9, 10])
    """

    def __init__(
        self,
        memory_gib: float = 2.0,
        progress: bool = False,
        amp_dtype: str | None = None,
        denoising_strength: float = 0.0,
        uncertainty: bool = False,
        self_ensemble: bool = False,
    ) -> None:
        super().__init__(memory_gib, progress, amp_dtype, spatial_dims=3)
        if not 0 <= denoising_strength <= 1:
            raise ValueError(f"denoising_strength must be in [0, 1], got {denoising_strength!r}")
        self.denoising_strength, self.uncertainty = float(denoising_strength), uncertainty
        self.self_ensemble = self_ensemble

    def __call__(self, inputs: Tensor, network: Callable[..., Any], shape: Sequence[int] | None = None) -> Tensor:
        """Map a scan to the HR grid.

        Args:
            inputs: `(1, 1, *lr)` in [0, 1], with meta data or without (then voxels of 1 mm and nothing known).
            network: an `AnyScaleSR`.
            shape: HR voxels per axis, none fewer than LR voxels.

        Returns:
            `(1, 1, *shape)`, or `(1, 2, *shape)` with the uncertainty, float32 on the device of `inputs`.

        Raises:
            TypeError: on another network.
            ValueError: on another shape of the input, no or a coarser shape, or too small a `memory_gib`.
        """
        bare = unwrapped(network)
        if not isinstance(bare, AnyScaleSR):
            raise TypeError(f"network must be an AnyScaleSR, got {type(bare).__name__}")
        x = plain(inputs).detach()
        if x.ndim != 5 or x.shape[:2] != (1, 1):
            raise ValueError(f"inputs must be (1, 1, X, Y, Z), got {tuple(x.shape)}")
        if 0 in x.shape:
            raise ValueError(f"inputs must be without an empty axis, got {tuple(x.shape)}")
        if shape is None or len(shape) != 3:
            raise ValueError(f"shape must have 3 axes, got {shape}")
        bare.divisions(x.shape[2:], shape)  # says what is wrong with a coarser shape
        condition = _condition(inputs, shape)
        result = self._once(x, bare, tuple(shape), condition)
        if not self.self_ensemble:
            return result
        result[:, 1:].square_()
        for axes in _MIRRORED:
            one = self._once(x.flip(axes), bare, tuple(shape), condition).flip(axes)
            one[:, 1:].square_()
            result.add_(one)
        result.div_(1 + len(_MIRRORED))
        result[:, 1:].sqrt_()
        return result

    def _once(self, x: Tensor, bare: AnyScaleSR, shape: tuple[int, ...], condition: Tensor) -> Tensor:
        """One pass over a scan `(1, 1, *lr)`."""
        lr_shape = tuple(x.shape[2:])
        cells = CellReader(lr_shape, shape, bare.divisions(lr_shape, shape), bare.degree)
        maps = self.uncertainty or self.denoising_strength > 0
        device, _ = _placement(bare, x)
        low = self._low_precision(device)
        with torch.autocast(device.type, enabled=False), torch.autocast(x.device.type, enabled=False):
            folded = bare.folded(condition, lr_shape, shape, maps)
            grid = interpolation_operator(lr_shape, shape)
            result = grid(x.to(torch.float32, copy=True))  # where the shapes are equal it is this copy
            if self.uncertainty:
                result = torch.cat([result, torch.empty_like(result)], 1)
            noise_and_error = self._add_detail(x, folded, cells, result[0, 0], low)
            if self.denoising_strength:
                result[:, :1].sub_(grid(self.denoising_strength * noise_and_error[:, :1]))
            if self.uncertainty:
                error = interpolation_operator(lr_shape, shape, "linear")(noise_and_error[:, 1:])
                result[:, 1:] = error.clamp_(max=HIGHEST_STD)
        return result

    def _add_detail(
        self, x: Tensor, network: PlainResidual, cells: CellReader, result: Tensor, low: torch.dtype | None
    ) -> Tensor:
        """Stream the scan, add the detail to the result `(*shape)`, and give the other channels `(1, 0 or 2, *lr)`, float32."""
        device, dtype = _placement(network, x)
        plan = find_plan(network, x.shape, device, dtype, low, self.memory_gib)
        spare = int(self.memory_gib * GIB) - plan.memory
        others = x.new_empty(1, plan.network.channels - cells.count, *x.shape[2:], dtype=torch.float32)
        total = plan.sizes[plan.axis] * len(plan.windows)
        with self._bar(total) as advance, torch.inference_mode():
            for window in plan.windows:
                program = _reading(plan, window, cells, result, spare)
                program.run(x, others, plan.axis, window, plan.thickness, dtype, low, device, advance)
        return others


def _condition(inputs: Tensor, shape: Sequence[int]) -> Tensor:
    """What the meta data of a scan `(1, 1, *lr)` and a target say of the acquisition, `(14,)`."""
    meta = getattr(inputs, "meta", {})
    factors = [m / n for m, n in zip(shape, inputs.shape[2:], strict=True)]
    spacing = [float(s) for s in affine_to_spacing(meta["affine"])] if "affine" in meta else [1.0] * 3
    certainty = meta.get("slice_width_certainty", (TOLD,) * 3)
    return acquisition_condition(factors, spacing, meta.get("slice_width"), meta.get("noise_std"), certainty)


def _reading(plan: Plan, window: Sequence[Extent], cells: CellReader, result: Tensor, memory: int) -> Program:
    """The program of a plan, whose values within a window are added to the result; it gives the channels that are left."""
    program, axis = plan.network, plan.axis
    if not isinstance(program, Program):
        raise TypeError(f"expected a network that can be streamed, got {type(program).__name__}")
    axes = [axis, *(a for a in range(3) if a != axis)]
    back = [axes.index(a) for a in range(3)]
    done = 0

    def read(values: Tensor) -> Tensor:
        nonlocal done
        block = list(window)
        block[axis] = (done, done + values.shape[2])
        done = block[axis][1]
        detail = values[0, : cells.count].permute(0, *(a + 1 for a in back))
        cells.add_(result, detail, block, axis, memory)
        return values[:, cells.count :]

    last = len(program.nodes) - 1
    reader = Node((last,), (0,) * 3, function=read, channels=program.channels - cells.count)
    return Program((*program.nodes, reader))
