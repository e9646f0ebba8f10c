"""Run a convolutional network over a volume a few slices at a time, with nothing computed twice along that axis.

A network of stacked convolutions has a receptive field that grows with its depth, so tiles with a halo compute many
voxels several times. Along one axis this is avoided when each convolution keeps the last `span - 1` slices of its
input: the next slices then continue where the last ones ended. `trace` reads the network's graph (torch.fx) into a
`Program`; `Program.run` streams a volume through it.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Extent = tuple[int, int]  # first voxel and one past the last, on the axis of the volume

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)
_VIEW_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)
_POINTWISE_MODULES = (
    *_VIEW_MODULES, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, *_BATCH_NORMS,
)  # fmt: skip
_POINTWISE_FUNCTIONS = (
    torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.neg, torch.clamp, torch.exp, torch.square, operator.neg,
    operator.pow, F.relu, F.leaky_relu, F.gelu, F.silu, F.elu, F.sigmoid, F.tanh, F.softplus, F.hardtanh, F.prelu,
)  # fmt: skip
_POINTWISE_METHODS = ("relu", "sigmoid", "tanh", "abs", "neg", "clamp", "exp", "square", "add", "sub", "mul", "div")
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div)
_RELUS = (torch.relu, F.relu)


class NotStreamableError(Exception):
    """The network holds something that cannot be run slice by slice; the message names it."""


@dataclass(frozen=True)
class Node:
    """One value of the network: the volume itself, a convolution, a pointwise map, or a join of several values.

    `reach` is half the span of the kernel per axis, `inputs` are indices of earlier nodes, `apply` computes maps and
    joins.
    """

    name: str
    kind: Literal["input", "convolution", "map", "join"]
    inputs: tuple[int, ...]
    reach: tuple[int, ...]
    apply: Callable[..., Tensor] | None = None
    convolution: nn.Conv2d | nn.Conv3d | None = None
    view: bool = False  # may share memory with its input
    relu: bool = False  # a map that is a ReLU; a convolution that applies one to its input
    channels: int = 0

    def compute(self, *values: Tensor) -> Tensor:
        """Result of a map or a join."""
        if self.apply is None:
            raise TypeError(f"node {self.name} must be a map or a join, got {self.kind}")
        return self.apply(*values)


@dataclass(frozen=True)
class Program:
    """The graph of a network as nodes in the order of computation; the last one is the output.

    `margins[i][axis]`: voxels of node i that the output needs beyond a window; `lags[i][axis]`: slices that node i is
    behind the input.
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
        for i in reversed(range(len(self.nodes))):
            for j in self.nodes[i].inputs:
                margins[j] = tuple(max(margins[j][a], margins[i][a] + self.nodes[i].reach[a]) for a in axes)
        object.__setattr__(self, "lags", tuple(lags))
        object.__setattr__(self, "margins", tuple(margins))
        object.__setattr__(self, "last_use", tuple(last_use))

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
        sizes = volume.shape[2:]
        extents = [
            [self.extent(i, a, window[a], n) for a, n in zip(axes, sizes, strict=True)][1:]
            for i in range(len(self.nodes))
        ]
        scratch = _Scratch()
        states: list[_Convolution | _Join | None] = []
        crops: list[tuple[slice, ...]] = []  # of maps: the input may reach further than what the map's readers need
        for i, node in enumerate(self.nodes):
            crops.append(_inside(extents[node.inputs[0]], extents[i]) if node.inputs else ())
            if node.kind == "convolution":
                cross = (extents[node.inputs[0]], extents[i], sizes[1:])
                states.append(_Convolution(node, axes, cross, thickness, low_precision or dtype, scratch))
            elif node.kind == "join":
                offsets = [_inside(extents[j], extents[i]) for j in node.inputs]
                states.append(_Join(node, offsets))
            else:
                states.append(None)
        target = cropped(output, [slice(*e) for e in extents[-1]])
        source = cropped(volume, [slice(*e) for e in extents[0]])
        length, read, written = sizes[0], 0, 0
        # Once the input has ended each further step lets at least one more convolution finish, so this bound is never
        # the reason to stop.
        for _ in range(-(-length // thickness) + len(self.nodes) + 1):
            values: list[Tensor | None] = [None] * len(self.nodes)
            ended = [False] * len(self.nodes)
            for i, (node, state) in enumerate(zip(self.nodes, states, strict=True)):
                if node.kind == "input":
                    stop = min(read + thickness, length)
                    values[i] = source[:, :, read:stop].to(device=device, dtype=dtype) if stop > read else None
                    read, ended[i] = stop, stop == length
                    continue
                # The list is the only holder of an input that is not used again, so that the callee can free it early.
                inputs = [values[j] for j in node.inputs]
                for j in node.inputs:
                    if self.last_use[j] == i:
                        values[j] = None
                over = all(ended[j] for j in node.inputs)
                if state is not None:
                    values[i], ended[i] = state.feed(inputs, over)
                else:
                    value = inputs.pop()
                    values[i], ended[i] = None if value is None else node.compute(cropped(value, crops[i])), over
                    del value
            result = values[-1]
            if result is not None:
                target[:, :, written : written + result.shape[2]] = result.to(output.device)
                written += result.shape[2]
                if advance is not None:
                    advance(result.shape[2])
            if written == length:
                return
        raise RuntimeError(f"streaming stopped after {written} of {length} slices")  # pragma: no cover


def cropped(tensor: Tensor, part: Sequence[slice]) -> Tensor:
    """View of a part of the last axes."""
    index: tuple[EllipsisType | slice, ...] = (..., *part)
    return tensor[index]


def _inside(outer: Sequence[Extent], inner: Sequence[Extent]) -> tuple[slice, ...]:
    return tuple(slice(b[0] - a[0], b[1] - a[0]) for a, b in zip(outer, inner, strict=True))


class _Scratch:
    """One block of memory for the inputs of all convolutions in turn: pages that are touched once stay mapped."""

    def __init__(self) -> None:
        self.block: Tensor | None = None

    def take(self, channels: int, shape: Sequence[int], like: Tensor, dtype: torch.dtype) -> Tensor:
        size = channels * int(torch.Size(shape).numel())
        if self.block is None or self.block.numel() < size or self.block.dtype != dtype:
            self.block = None
            self.block = torch.empty(size, dtype=dtype, device=like.device)
        return self.block[:size].view(1, *shape, channels).movedim(-1, 1)


class _Convolution:
    """A convolution that continues where its last slices ended."""

    def __init__(
        self,
        node: Node,
        axes: Sequence[int],
        cross: tuple[Sequence[Extent], Sequence[Extent], Sequence[int]],
        thickness: int,
        dtype: torch.dtype,
        scratch: _Scratch,
    ) -> None:
        conv = cast(nn.Conv3d, node.convolution)
        memory_format = torch.channels_last if len(axes) == 2 else torch.channels_last_3d
        order = [0, 1, *(a + 2 for a in axes)]
        # The network's weights as they are now: a copy per run, never kept, so that further training is seen.
        self.weight = conv.weight.detach().permute(order).to(dtype).contiguous(memory_format=memory_format)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.function = F.conv2d if len(axes) == 2 else F.conv3d
        self.groups, self.dilation = conv.groups, [conv.dilation[a] for a in axes]
        self.reach, *reach = (node.reach[a] for a in axes)
        self.relu, self.channels, self.dtype, self.scratch = node.relu, conv.in_channels, dtype, scratch
        self.limit = max(thickness, self.reach)
        have, want, sizes = cross
        need = [(max(lo - r, 0), min(hi + r, n)) for (lo, hi), r, n in zip(want, reach, sizes, strict=True)]
        # Padding is that of the volume's border. Where only one side is at the border, the other side's is cut away
        # below.
        at_border = [lo - r < 0 or hi + r > n for (lo, hi), r, n in zip(want, reach, sizes, strict=True)]
        self.padding = [0, *(r if b else 0 for r, b in zip(reach, at_border, strict=True))]
        made = [e if b else (e[0] + r, e[1] - r) for e, r, b in zip(need, reach, at_border, strict=True)]
        self.crop_input, self.crop_output = _inside(have, need), _inside(made, want)
        self.cross = [hi - lo for lo, hi in need]
        self.tail: Tensor | None = None
        self.held = self.reach  # slices kept from before; at first the zeros outside the volume
        self.done = False

    def feed(self, inputs: list[Tensor | None], over: bool) -> tuple[Tensor | None, bool]:
        value = inputs.pop()
        fresh = 0 if value is None else value.shape[2]
        # The zeros behind the last slice wait for the next step if they would make this one thicker than planned.
        last = over and not self.done and (fresh + self.reach <= self.limit or fresh == 0)
        closing = self.reach if last else 0
        self.done = self.done or last
        total = self.held + fresh + closing
        if fresh + closing == 0 or (total <= 2 * self.reach and value is None and self.tail is None):
            return None, self.done
        like = value if value is not None else cast(Tensor, self.tail)
        block = self.scratch.take(self.channels, [total, *self.cross], like, self.dtype)
        if self.tail is None:
            block[:, :, : self.held].zero_()
        else:
            block[:, :, : self.held].copy_(self.tail)
        if value is not None:
            part = block[:, :, self.held : self.held + fresh]
            value = cropped(value, self.crop_input)
            if self.relu:
                torch.clamp_min(value, 0, out=part)
            else:
                part.copy_(value)
        del value, like
        block[:, :, self.held + fresh :].zero_()
        self.held = min(total, 2 * self.reach)
        kept = block[:, :, total - self.held :]
        if self.done or self.held == 0:
            self.tail = None
        elif self.tail is not None and self.tail.shape == kept.shape:
            self.tail.copy_(kept)
        else:
            self.tail = kept.clone()
        if total <= 2 * self.reach:
            return None, self.done
        result = self.function(block, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        return cropped(result, self.crop_output), self.done


class _Join:
    """A function of several values that lag behind the input by different numbers of slices: the earlier ones wait."""

    def __init__(self, node: Node, crops: Sequence[tuple[slice, ...]]) -> None:
        self.node = node
        self.crops = crops
        self.queues: list[deque[Tensor]] = [deque() for _ in crops]

    def feed(self, inputs: list[Tensor | None], over: bool) -> tuple[Tensor | None, bool]:
        for queue, crop in zip(self.queues, self.crops, strict=True):
            value = inputs.pop(0)
            if value is not None:
                queue.append(cropped(value, crop))
        ready = [sum(part.shape[2] for part in queue) for queue in self.queues]
        count = min(ready)
        ended = over and max(ready) == count
        if count == 0:
            return None, ended
        return self.node.compute(*(_take(queue, count) for queue in self.queues)), ended


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


def trace(network: nn.Module, spatial_dims: int, in_channels: int) -> Program:
    """Read a network into a `Program`, and hold the program against the network on a few voxels.

    Streamed are: convolutions of stride 1 with zero padding that keep the size, pointwise modules and functions,
    arithmetic with numbers or between values, concatenation and selection of channels.

    Args:
        network: maps `(B, C, *spatial)` to `(B, C', *spatial)`.
        spatial_dims: 2 or 3.
        in_channels: C.

    Raises:
        NotStreamableError: if the network holds anything else.
    """
    if spatial_dims not in _CONVOLUTIONS:
        raise NotStreamableError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
    for name, module in network.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise NotStreamableError(f"{name or 'the network'} is a ScriptModule")
        if module._forward_hooks or module._forward_pre_hooks:
            raise NotStreamableError(f"{name or 'the network'} has forward hooks")
    if type(network).__module__.startswith("torch.nn."):
        network = nn.Sequential(network)  # else torch.fx would look into the layer
    try:
        graph = fx.GraphModule(network, fx.Tracer().trace(network)).graph
    except Exception as error:  # whatever a stranger's forward raises when it meets a symbolic value
        raise NotStreamableError(f"torch.fx cannot trace it: {error}") from error
    graph.eliminate_dead_code()
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
        else:
            indices[item] = len(nodes)
            nodes.append(_classify(item, network, spatial_dims, nodes, indices, constants))
    if sum(node.kind == "input" for node in nodes) != 1 or output != len(nodes) - 1:
        raise NotStreamableError("it must have one input and end with its output")
    return _verified(network, nodes, spatial_dims, in_channels)


def _constant(network: nn.Module, target: str, spatial_dims: int) -> Tensor:
    value = operator.attrgetter(target)(network)
    if not isinstance(value, Tensor) or (
        value.numel() > 1 and (value.ndim <= spatial_dims or any(n > 1 for n in value.shape[-spatial_dims:]))
    ):
        raise NotStreamableError(f"constant {target} is not the same in every voxel")
    return value


def _classify(
    item: fx.Node,
    network: nn.Module,
    spatial_dims: int,
    nodes: list[Node],
    indices: dict[fx.Node, int],
    constants: dict[fx.Node, Tensor],
) -> Node:
    reach = (0,) * spatial_dims
    if item.op == "placeholder":
        return Node(item.name, "input", (), reach)
    streams = [n for n in item.all_input_nodes if n in indices]
    inputs = tuple(indices[n] for n in streams)
    function, inplace, view, relu, parameters = _operation(item, network, spatial_dims)
    if isinstance(function, (nn.Conv2d, nn.Conv3d)):
        return Node(item.name, "convolution", inputs, _reach(item.name, function, spatial_dims), convolution=function)
    if inplace:
        source = nodes[inputs[0]]
        if len(streams[0].users) > 1 or source.view or source.kind == "input":
            raise NotStreamableError(f"{item.name} changes a value in place that others read")

    def apply(*values: Tensor) -> Tensor:
        if parameters:  # such as PReLU: its parameters are not in low precision
            values = tuple(v.to(parameters[0].dtype) for v in values)
        known: dict[fx.Node, Tensor] = {**constants, **dict(zip(streams, values, strict=True))}
        args, kwargs = fx.node.map_arg((item.args, item.kwargs), lambda n: known[n])
        return cast(Tensor, function(*args, **kwargs))

    alone = len(inputs) == 1 and len(streams[0].users) == 1
    if relu and alone and nodes[inputs[0]].kind in ("convolution", "join"):
        return Node(item.name, "map", inputs, reach, torch.relu_, relu=True)
    return Node(item.name, "map" if len(inputs) == 1 else "join", inputs, reach, apply, view=view, relu=relu)


def _operation(
    item: fx.Node, network: nn.Module, spatial_dims: int
) -> tuple[Callable[..., object], bool, bool, bool, list[nn.Parameter]]:
    """The function of a graph node, whether it works in place, may return a view, is a ReLU; and its parameters."""
    target = item.target
    inplace = item.kwargs.get("inplace", False) is True
    if item.op == "call_module":
        module = network.get_submodule(str(target))
        convolution = _CONVOLUTIONS[spatial_dims]
        if isinstance(module, convolution) and type(module).forward is convolution.forward:
            return module, False, False, False, []
        if not isinstance(module, _POINTWISE_MODULES):
            raise NotStreamableError(f"{item.name} is a {type(module).__name__}")
        if module.training and isinstance(module, (*_BATCH_NORMS, *_VIEW_MODULES[1:])):
            raise NotStreamableError(f"{item.name} ({type(module).__name__}) is in training mode")
        if isinstance(module, _BATCH_NORMS) and module.running_mean is None:
            raise NotStreamableError(f"{item.name} has no running statistics")
        inplace = bool(getattr(module, "inplace", False))
        view, relu = isinstance(module, _VIEW_MODULES), isinstance(module, nn.ReLU)
        return module, inplace, view, relu, list(module.parameters())
    if item.op == "call_function":
        if target in _POINTWISE_FUNCTIONS or target in _ARITHMETIC:
            if any(argument is True for argument in item.args):
                raise NotStreamableError(f"{item.name} may work in place")
            return cast(Callable[..., object], target), inplace, False, target in _RELUS, []
        if target is operator.getitem and _selects_channels(item.args[1]):
            return operator.getitem, False, True, False, []
        if target is torch.cat and (item.args[1:] == (1,) or item.kwargs.get("dim") == 1):
            return torch.cat, False, False, False, []
    if item.op == "call_method" and target in _POINTWISE_METHODS:
        return _Method(str(target)), inplace, False, target == "relu", []
    raise NotStreamableError(f"{item.name} ({item.op} {target}) is not known to work slice by slice")


class _Method:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: Tensor, *args: object, **kwargs: object) -> Tensor:
        return cast(Tensor, getattr(value, self.name)(*args, **kwargs))


def _selects_channels(index: object) -> bool:
    whole = (slice(None), Ellipsis)
    if not isinstance(index, tuple) or len(index) < 2 or index[0] != slice(None):
        return False
    return isinstance(index[1], slice) and all(entry in whole for entry in index[2:])


def _reach(name: str, conv: nn.Conv2d | nn.Conv3d, spatial_dims: int) -> tuple[int, ...]:
    spans = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
    same = conv.padding == "same" or (not isinstance(conv.padding, str) and [2 * p for p in conv.padding] == spans)
    if any(s != 1 for s in conv.stride) or conv.padding_mode != "zeros" or not same or any(s % 2 for s in spans):
        raise NotStreamableError(f"convolution {name} is not of stride 1 with zero padding that keeps the size")
    return tuple(s // 2 for s in spans)


def _verified(network: nn.Module, nodes: list[Node], spatial_dims: int, in_channels: int) -> Program:
    """Add the channels of each node, move ReLUs into convolutions, and hold the nodes against the network."""
    parameter = next(network.parameters(), None)
    like = parameter if parameter is not None else torch.empty(0)
    probe = torch.rand(1, in_channels, *(5, 4, 3)[:spatial_dims], generator=torch.Generator().manual_seed(0)).to(like)
    values: list[Tensor] = []
    try:
        expected = network(probe.clone())
        for node in nodes:
            inputs = [values[i].clone() for i in node.inputs]
            if node.kind == "input":
                values.append(probe)
            elif node.convolution is not None:
                values.append(node.convolution(*inputs))
            else:
                values.append(node.compute(*inputs))
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise NotStreamableError(f"it does not run on a small volume: {error}") from error
    if any(v.ndim != probe.ndim or v.shape[0] != 1 or v.shape[2:] != probe.shape[2:] for v in values):
        raise NotStreamableError("a value within it has another size than the volume")
    scale = float(expected.abs().max()) or 1.0
    if expected.shape != values[-1].shape or float((expected - values[-1]).abs().max()) > 1e-4 * scale:
        raise NotStreamableError("its graph does not compute what it computes")
    nodes = [replace(node, channels=value.shape[1]) for node, value in zip(nodes, values, strict=True)]
    return Program(tuple(_fused(nodes)))


def _fused(nodes: list[Node]) -> list[Node]:
    """Let a convolution that alone reads a ReLU apply it while it copies its input: one pass over memory less."""
    users = [sum(i in node.inputs for node in nodes) for i in range(len(nodes))]
    kept: list[Node] = []
    place: dict[int, int] = {}
    for i, node in enumerate(nodes):
        users_of_relu = [other for other in nodes if i in other.inputs]
        if node.relu and users[i] == 1 and users_of_relu[0].kind == "convolution":
            continue
        inputs, relu = node.inputs, node.relu
        if node.kind == "convolution" and inputs[0] not in place:
            inputs, relu = nodes[inputs[0]].inputs, True
        place[i] = len(kept)
        kept.append(replace(node, inputs=tuple(place[j] for j in inputs), relu=relu))
    return kept
