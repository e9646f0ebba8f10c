"""Operations that upsample by an integer, as they are found in a traced network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from monai.networks.utils import pixelshuffle
from torch import Tensor, fx, nn

from .nodes import Node

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}


def upsampling(item: fx.Node, network: nn.Module, spatial_dims: int) -> tuple[fx.Node, Node] | None:
    """What an item of the graph upsamples, and how, in a node that has no inputs yet; None if it is anything else.

    Known are transposed convolutions that give `stride * spatial` voxels, also on an image that `F.pad` continues by its edge,
    pixel shuffles, and linear interpolation by integer factors.
    """
    if item.op == "call_module" and len(item.args) == 1 and not item.kwargs:
        module = network.get_submodule(str(item.target))
        if type(module) is _TRANSPOSED[spatial_dims]:
            return _transposed(cast(fx.Node, item.args[0]), cast(nn.ConvTranspose3d, module))
        if type(module) is nn.PixelShuffle and spatial_dims == 2:
            return _shuffle(cast(fx.Node, item.args[0]), 2, module.upscale_factor)
    if item.op == "call_function" and item.target is pixelshuffle:
        return _shuffle(**_arguments(item, ("x", "spatial_dims", "scale_factor")))
    if item.op == "call_function" and item.target is F.interpolate:
        return _interpolation(**_arguments(item, ("input", "size", "scale_factor", "mode")), spatial_dims=spatial_dims)
    return None


def edge_padded(item: fx.Node) -> bool:
    """Whether an item continues its input by its edge; a transposed convolution can take it along."""
    return item.op == "call_function" and item.target is F.pad and item.kwargs.get("mode") == "replicate"


def _arguments(item: fx.Node, names: Sequence[str]) -> dict[str, Any]:
    return {**dict(zip(names, item.args, strict=False)), **item.kwargs}


def _shuffle(x: fx.Node, spatial_dims: int, scale_factor: int) -> tuple[fx.Node, Node]:
    def apply(value: Tensor) -> Tensor:
        return pixelshuffle(value, spatial_dims, scale_factor)

    return x, Node((), (0,) * spatial_dims, function=apply, view=True, scale=(scale_factor,) * spatial_dims)


def _interpolation(
    spatial_dims: int,
    size: object = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    **others: Any,
) -> tuple[fx.Node, Node] | None:
    source = others.pop("input")
    if size is not None or scale_factor is None or mode != _LINEAR[spatial_dims] or any(others.values()):
        return None
    factors = (
        [float(s) for s in scale_factor] if isinstance(scale_factor, Sequence) else [float(scale_factor)] * spatial_dims
    )
    if any(s < 1 or not s.is_integer() for s in factors):
        return None

    def apply(value: Tensor) -> Tensor:
        return F.interpolate(value, scale_factor=scale_factor, mode=mode)

    return source, Node((), (1,) * spatial_dims, function=apply, scale=tuple(int(s) for s in factors))


def _transposed(source: fx.Node, module: nn.ConvTranspose3d) -> tuple[fx.Node, Node] | None:
    spatial_dims = len(module.stride)
    edges: list[int] = [0] * (2 * spatial_dims)
    if edge_padded(source):
        edges = list(cast(list[int], source.args[1]))
        source = cast(fx.Node, source.args[0])
    if len(edges) != 2 * spatial_dims or min(edges) < 0:
        return None
    reach = []
    for axis, (kernel, s) in enumerate(zip(module.kernel_size, module.stride, strict=True)):
        before, behind = edges[2 * (spatial_dims - 1 - axis) :][:2]  # F.pad counts the axes from the last
        span, padding = module.dilation[axis] * (kernel - 1), int(module.padding[axis])
        if (before + behind - 1) * s + span + 1 + module.output_padding[axis] != 2 * padding:
            return None
        cut = padding - before * s  # voxel i of the result sees the voxels j with i + cut - span <= j s <= i + cut
        reach.append(max((span - cut) // s, (s - 1 + cut) // s, 0))
    weight = module.weight

    def apply(value: Tensor) -> Tensor:
        value = value.to(weight.dtype)
        return cast(Tensor, module(F.pad(value, edges, mode="replicate") if any(edges) else value))

    node = Node((), tuple(reach), function=apply, scale=tuple(module.stride), operations=2.0 * weight.numel())
    return source, node
