"""Read a network's graph (torch.fx) into a `Program` that can be streamed."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .nodes import Node
from .streaming import Program
from .symbolic import symbolic_graph
from .upsampling import edge_padded, upsampling

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_DROPOUTS = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_VIEW_MODULES = (nn.Identity, *_DROPOUTS)
_POINTWISE_MODULES = (
    *_VIEW_MODULES, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, *_BATCH_NORMS,
)  # fmt: skip
_POINTWISE_FUNCTIONS = (
    torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.neg, torch.clamp, torch.exp, torch.square, operator.neg,
    operator.pow, F.relu, F.leaky_relu, F.gelu, F.silu, F.elu, F.sigmoid, F.tanh, F.softplus, F.hardtanh, F.prelu,
    operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div,
)  # fmt: skip
_POINTWISE_METHODS = ("relu", "sigmoid", "tanh", "abs", "neg", "clamp", "exp", "square", "add", "sub", "mul", "div")
_RELUS = (torch.relu, F.relu)
_SUMS = (operator.add, torch.add)


class NotStreamableError(Exception):
    """The network holds something that cannot be run slice by slice; the message names it."""


def trace(network: Callable[..., Any], spatial_dims: int, in_channels: int) -> Program:
    """Read a network into a `Program`, and hold the program against the network on a few voxels.

    Streamed are: convolutions of stride 1 with zero padding that keep the size, pointwise modules and functions,
    arithmetic with numbers or between values, concatenation and selection of channels, and what `upsampling` knows.

    Args:
        network: maps `(B, C, *spatial)` to `(B, C', *(factor * spatial))`.
        spatial_dims: 2 or 3.
        in_channels: C.

    Raises:
        NotStreamableError: if the network holds anything else.
    """
    if spatial_dims not in _CONVOLUTIONS:
        raise NotStreamableError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    if not isinstance(network, nn.Module):
        raise NotStreamableError(f"it is a {type(network).__name__}, no torch.nn.Module")
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotStreamableError(f"{name or 'the network'} is a ScriptModule")
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotStreamableError(f"{name or 'the network'} has forward hooks")
        if "forward" in vars(module):  # torch.fx reads the forward of the class
            raise NotStreamableError(f"{name or 'the network'} has a forward of its own")
        if module.training and isinstance(module, (*_BATCH_NORMS, *_DROPOUTS)):
            raise NotStreamableError(f"{name} ({type(module).__name__}) is in training mode")
    if type(network).__module__.startswith("torch.nn."):
        network = nn.Sequential(network)  # else torch.fx would look into the layer
    parameter = next(network.parameters(), None)
    like = parameter if parameter is not None else torch.empty(0)
    generator = torch.Generator().manual_seed(0)
    probe = torch.rand(1, in_channels, *(5, 4, 3)[:spatial_dims], generator=generator).to(like)
    try:
        graph = symbolic_graph(network, probe)
    except Exception as error:  # whatever a stranger's forward raises when it meets a symbolic value
        raise NotStreamableError(f"torch.fx cannot trace it: {error}") from error
    nodes: list[Node] = []
    indices: dict[fx.Node, int] = {}
    constants: dict[fx.Node, Tensor] = {}
    output: int | None = None
    for item in graph.nodes:
        if item.op == "get_attr":
            constants[item] = _constant(network, str(item.target), spatial_dims)
        elif item.op == "output":
            if item.args[0] not in indices:
                raise NotStreamableError("its output is not one tensor")
            output = indices[item.args[0]]
        elif not edge_padded(item):  # which belongs to its reader
            indices[item] = len(nodes)
            nodes.append(_node(item, network, spatial_dims, nodes, indices, constants))
    if sum(not node.inputs for node in nodes) != 1 or output != len(nodes) - 1:
        raise NotStreamableError("it must have one input and end with its output")
    return Program(tuple(_fused(_verified(network, nodes, probe))))


def _constant(network: nn.Module, target: str, spatial_dims: int) -> Tensor:
    value = operator.attrgetter(target)(network)
    if not isinstance(value, Tensor) or (
        value.numel() > 1 and (value.ndim <= spatial_dims or any(n > 1 for n in value.shape[-spatial_dims:]))
    ):
        raise NotStreamableError(f"constant {target} is not the same in every voxel")
    return value


def _node(
    item: fx.Node,
    network: nn.Module,
    spatial_dims: int,
    nodes: list[Node],
    indices: dict[fx.Node, int],
    constants: dict[fx.Node, Tensor],
) -> Node:
    """Node for an item of the graph that is no constant and not the output."""
    reach = (0,) * spatial_dims
    if item.op == "placeholder":
        return Node((), reach)
    found = upsampling(item, network, spatial_dims)
    if found is not None and found[0] in indices:
        return replace(found[1], inputs=(indices[found[0]],))
    streams = [n for n in item.all_input_nodes if n in indices]
    if any(n not in indices and n not in constants for n in item.all_input_nodes):
        raise NotStreamableError(f"{item.name} reads a padded value")
    inputs = tuple(indices[n] for n in streams)
    does = _operation(item, network, spatial_dims)
    function, parameters = does.function, does.parameters
    if isinstance(function, (nn.Conv2d, nn.Conv3d)):
        operations = 2.0 * function.weight.numel()
        return Node(inputs, _reach(item.name, function), convolution=function, operations=operations)
    alone = len(inputs) == 1 and len(streams[0].users) == 1
    may_change = alone and bool(nodes[inputs[0]].inputs) and not nodes[inputs[0]].view
    if does.inplace and not may_change:
        raise NotStreamableError(f"{item.name} changes a value in place that others read")

    def apply(*values: Tensor) -> Tensor:
        if parameters:  # such as PReLU: its parameters are not in low precision
            values = tuple(v.to(parameters[0].dtype) for v in values)
        known: dict[fx.Node, Tensor] = {**constants, **dict(zip(streams, values, strict=True))}
        args, kwargs = fx.node.map_arg((item.args, item.kwargs), lambda n: known[n])
        return cast(Tensor, function(*args, **kwargs))

    total = item.target in _SUMS and item.args == tuple(streams) and len(streams) == 2 and not item.kwargs
    called = torch.relu_ if does.relu and may_change else apply
    return Node(inputs, reach, function=called, view=does.view, relu=does.relu, total=total)


class _Operation(NamedTuple):
    """What an item of the graph calls."""

    function: Callable[..., object]
    inplace: bool = False
    view: bool = False  # may return a view
    relu: bool = False
    parameters: tuple[nn.Parameter, ...] = ()


def _operation(item: fx.Node, network: nn.Module, spatial_dims: int) -> _Operation:
    target = item.target
    inplace = item.kwargs.get("inplace", False) is True
    if item.op == "call_module":
        return _module(item.name, network.get_submodule(str(target)), _CONVOLUTIONS[spatial_dims])
    if item.op == "call_function":
        if target in _POINTWISE_FUNCTIONS:
            if any(argument is True for argument in item.args):
                raise NotStreamableError(f"{item.name} may work in place")
            return _Operation(cast(Callable[..., object], target), inplace, relu=target in _RELUS)
        if target is operator.getitem and _selects_channels(item.args[1]):
            return _Operation(operator.getitem, view=True)
        if target is torch.cat and (item.args[1:] == (1,) or item.kwargs.get("dim") == 1):
            return _Operation(torch.cat)
    if item.op == "call_method" and target in _POINTWISE_METHODS:
        return _Operation(getattr(Tensor, str(target)), inplace, relu=target == "relu")
    raise NotStreamableError(f"{item.name} ({item.op} {target}) is not known to work slice by slice")


def _module(name: str, module: nn.Module, convolution: type[nn.Module]) -> _Operation:
    if isinstance(module, convolution) and type(module).forward is convolution.forward:
        return _Operation(module)
    if not isinstance(module, _POINTWISE_MODULES):
        raise NotStreamableError(f"{name} is a {type(module).__name__}")
    if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
        raise NotStreamableError(f"{name} has no running statistics")
    inplace, view = bool(getattr(module, "inplace", False)), isinstance(module, _VIEW_MODULES)
    return _Operation(module, inplace, view, isinstance(module, nn.ReLU), tuple(module.parameters()))


def _selects_channels(index: object) -> bool:
    whole = (slice(None), Ellipsis)
    if not isinstance(index, tuple) or len(index) < 2 or index[0] != slice(None):
        return False
    return isinstance(index[1], slice) and all(entry in whole for entry in index[2:])


def _reach(name: str, conv: nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    spans = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    same = conv.padding == "same" or (not isinstance(conv.padding, str) and [2 * p for p in conv.padding] == spans)
    if any(s != 1 for s in conv.stride) or conv.padding_mode != "zeros" or not same or any(s % 2 for s in spans):
        raise NotStreamableError(f"convolution {name} is not of stride 1 with zero padding that keeps the size")
    return tuple(s // 2 for s in spans)


def _verified(network: nn.Module, nodes: list[Node], probe: Tensor) -> list[Node]:
    """Hold the nodes against the network on a small volume, and add the channels of each."""
    values: list[Tensor] = []
    try:
        expected = network(probe.clone())
        for node in nodes:
            function = node.convolution or node.function
            values.append(probe if function is None else function(*(values[i].clone() for i in node.inputs)))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NotStreamableError(f"it does not run on a small volume: {error}") from error
    sizes = [
        tuple(n * f for n, f in zip(probe.shape[2:], factor, strict=True)) for factor in Program(tuple(nodes)).factors
    ]
    if any(tuple(v.shape) != (1, v.shape[1], *size) for v, size in zip(values, sizes, strict=True)):
        raise NotStreamableError("a value within it has another size than expected from the volume's")
    if any(sizes[j] != sizes[node.inputs[0]] for node in nodes for j in node.inputs):
        raise NotStreamableError("it puts values of different sizes together")
    scale = float(expected.abs().max()) or 1.0
    if expected.shape != values[-1].shape or float((expected - values[-1]).abs().max()) > 1e-4 * scale:
        raise NotStreamableError("its graph does not compute what it computes")
    return [replace(node, channels=value.shape[1]) for node, value in zip(nodes, values, strict=True)]


def _fused(nodes: list[Node]) -> list[Node]:
    """Let a convolution that alone reads a ReLU apply it while it copies its input: one pass over memory less."""
    kept: list[Node] = []
    place: dict[int, int] = {}
    for i, node in enumerate(nodes):
        readers = [other for other in nodes if i in other.inputs]
        if node.relu and len(readers) == 1 and readers[0].convolution is not None:
            continue
        inputs, relu = node.inputs, node.relu
        if node.convolution is not None and inputs[0] not in place:
            inputs, relu = nodes[inputs[0]].inputs, True
        place[i] = len(kept)
        kept.append(replace(node, inputs=tuple(place[j] for j in inputs), relu=relu))
    return kept
