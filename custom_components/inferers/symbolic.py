"""The graph (torch.fx) of a network that may look at the number of channels of its values."""

from __future__ import annotations

import inspect
import operator

import torch
from monai.networks.utils import pixelshuffle
from torch import fx, nn


def symbolic_graph(network: nn.Module, voxel: torch.Tensor) -> fx.Graph:
    """Record what a network does, where its choices depend at most on numbers of channels.

    At such a choice the channels are counted by running what is recorded so far, and recording starts again. Optional arguments,
    such as a wished shape, are as when they are not given; MONAI's `pixelshuffle`, which asks for all sizes, is one item.

    Args:
        network: of one input.
        voxel: `(1, C, *spatial)` of any size.
    """
    optional = {
        p.name: p.default for p in inspect.signature(network.forward).parameters.values() if p.default is not p.empty
    }
    choices: list[bool] = []
    while True:
        tracer = _Tracer(choices)
        try:
            graph = fx.GraphModule(network, tracer.trace(network, optional)).graph
        except _ChoiceError as error:
            tracer.graph.output(error.node)
            choices.append(bool(fx.Interpreter(network, graph=tracer.graph).run(voxel)))
            continue
        graph.eliminate_dead_code()
        for item in list(graph.nodes):
            if item.op == "placeholder" and item.args and not item.users:
                graph.erase_node(item)
        return graph


class _ChoiceError(Exception):
    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.node = node


class _Tracer(fx.Tracer):
    def __init__(self, choices: list[bool]) -> None:
        super().__init__(autowrap_functions=(pixelshuffle,))
        self.known = iter(choices)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if not _of_channels(obj.node):
            return bool(super().to_bool(obj))
        choice = next(self.known, None)
        if choice is None:
            raise _ChoiceError(obj.node)
        return choice


def _of_channels(node: fx.Node) -> bool:
    """Whether a number is computed from numbers of channels, `x.shape[1]`, alone."""
    if node.target is operator.getitem and node.args[1] == 1:
        source = node.args[0]
        return isinstance(source, fx.Node) and source.target is getattr and source.args[1] == "shape"
    computed = node.op == "call_function" and bool(node.all_input_nodes)
    return computed and all(_of_channels(other) for other in node.all_input_nodes)
