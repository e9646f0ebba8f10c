"""Write an `AnyScaleSR` as ONNX, values on the LR grid: `python -m custom_components.runtimes.export_any_scale`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ScanError, one_line_errors
from ..files import PathLike, atomic_write
from ..handlers.weights_loader import load_weights, read_state
from ..inferers.receptive_field import receptive_field
from ..networks.any_scale import CONDITIONS, AnyScaleSR
from .export import expect_packages, free_axes, quiet

INPUTS = ("image", "condition")
OUTPUTS = ("detail", "noise", "error")
HALO = "halo"  # a constant output beside them
TINY = Path("bundles/brain_mri_sr_any/models/tiny.pt")


class _OnTheGrid(nn.Module):
    """What an `AnyScaleSR` gives on the LR grid."""

    def __init__(self, network: AnyScaleSR) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor, condition: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        network = self.network
        told = network.told(condition)
        y = network.features(image, told)
        return network.detail(y, told), network.noise(y), network.expected_std(y)


def network_of(state: Mapping[str, Any]) -> AnyScaleSR:
    """An `AnyScaleSR` of the sizes that a state dict has, with other weights.

    Raises:
        ScanError: when the tensors are not those of one.
    """
    try:
        return AnyScaleSR(
            num_filters=state["head.weight"].shape[0],
            num_layers=len({name.split(".")[1] for name in state if name.startswith("layers.")}),
            degree=round(state["detail.bias"].shape[0] ** (1 / 3)) - 1,
            num_features=state["condition.0.weight"].shape[0],
            num_kernels=1 + sum(name.startswith("detail.variants.") for name in state),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ScanError(f"expected the weights of an AnyScaleSR, got a file without its tensors: {error}") from error


def export_any_scale(network: AnyScaleSR, path: PathLike) -> None:
    """Write ONNX with weights inside; it needs the packages onnx and onnxscript.

    The inputs are `image` `(1, 1, X, Y, Z)` in [0, 1], of any size, and `condition` `(1, 14)` (see
    `custom_components.networks.any_scale.acquisition_condition`). The outputs lie on the same LR grid: `detail`, the
    `(degree + 1)^3` coefficients of each voxel's polynomial, of which the first axis' degree runs slowest; `noise` and `error`, one
    channel each, as `AnyScaleSR` has them before they are interpolated. One more, `halo`, is a constant: the voxels that a tile
    needs beside its own, on each side.

    Args:
        network: in evaluation mode.
        path: the file, as a rule `.onnx`.

    Raises:
        ValueError: when the network is in training mode.
        ScanError: when a package is missing or the file cannot be written.
    """
    if network.training:
        raise ValueError("network must be in evaluation mode, got one in training mode")
    expect_packages("ONNX export", "onnx", "onnxscript")
    import onnx

    shape = (8, 10, 12)
    halo = max(receptive_field(network.folded(torch.zeros(CONDITIONS), shape, shape), 3, 1))
    with quiet(), torch.no_grad(), atomic_write(path) as partial:
        torch.onnx.export(
            _OnTheGrid(network).eval(),
            (torch.zeros(1, 1, *shape), torch.zeros(1, CONDITIONS)),
            f=str(partial),
            dynamo=True,
            dynamic_shapes={"image": free_axes(3, batch=False), "condition": None},
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            external_data=False,
            verbose=False,
        )
        model = onnx.load(partial)
        value = onnx.helper.make_tensor(HALO, onnx.TensorProto.INT32, [], [halo])
        model.graph.node.append(onnx.helper.make_node("Constant", [], [HALO], value=value))
        model.graph.output.append(onnx.helper.make_tensor_value_info(HALO, onnx.TensorProto.INT32, []))
        _forget(model)
        onnx.checker.check_model(model)
        onnx.save(model, partial)


def _forget(model: Any) -> None:
    """Remove what the exporter notes of its own sources: half of a small file, and paths of the machine that made it."""
    graph = model.graph
    for noted in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")


def main(arguments: Sequence[str] | None = None) -> None:
    """Export the weights of an `AnyScaleSR`."""
    parser = argparse.ArgumentParser(
        prog="python -m custom_components.runtimes.export_any_scale",
        description="Write the weights of an AnyScaleSR as ONNX, as the page of custom_components.app takes them.",
    )
    parser.add_argument("--checkpoint", type=Path, default=TINY, help=f"state dict (default: {TINY})")
    parser.add_argument("--output", type=Path, help="default: the checkpoint's name with .onnx")
    chosen = parser.parse_args(arguments)
    if not chosen.checkpoint.is_file():
        raise ScanError(f"{chosen.checkpoint}: expected the weights of an AnyScaleSR, got no such file")
    output = chosen.output or chosen.checkpoint.with_suffix(".onnx")
    network = network_of(read_state(chosen.checkpoint))
    load_weights(network, chosen.checkpoint)
    export_any_scale(network.eval(), output)
    print(f"{output}: {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    one_line_errors()
    main()
