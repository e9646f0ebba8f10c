"""Export bundles and compare runtimes on this CPU: `python -m custom_components.runtimes --bundle bundles/NAME`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from ..benchmark import bundle_config
from ..errors import ScanError, one_line_errors
from ..files import atomic_write
from ..handlers.weights_loader import load_weights
from ..markdown import markdown_table
from ..networks import AnyScaleSR
from .compare import Measured, Runtime, measure, runtimes
from .export import expect_packages, export_onnx, export_program, export_torchscript


def export_all(network: nn.Module, folder: Path, spatial_dims: int, in_channels: int = 1) -> dict[str, Path]:
    """Write a network in all formats as `model.ts`, `model.pt2` and `model.onnx`, by the names that `runtimes` takes."""
    files = {
        "torchscript": folder / "model.ts",
        "program": folder / "model.pt2",
        "onnx": folder / "model.onnx",
    }
    export_torchscript(network, files["torchscript"])
    export_program(network, files["program"], spatial_dims, in_channels)
    export_onnx(network, files["onnx"], spatial_dims, in_channels)
    return files


def table(ways: Mapping[str, Runtime], measured: Mapping[str, Measured]) -> str:
    """Markdown: a row per runtime."""
    rows = [["runtime", "seconds", "times as fast", "largest difference", "file in MB"]]
    first = next(iter(measured.values())).seconds
    for name, found in measured.items():
        size = ways[name].megabytes
        rows.append(
            [
                name,
                f"{found.seconds:.3g}",
                f"{first / found.seconds:.2f}",
                f"{found.difference:.1e}",
                "" if size is None else f"{size:.2f}",
            ]
        )
    return markdown_table(rows)


def compare_bundle(bundle: str, folder: Path, size: Sequence[int], repeats: int, threads: int) -> str:
    """Export a bundle to a folder and run random voxels through it in each runtime.

    Args:
        bundle: its folder; `bundles/NAME+overlay.json` lays files of overrides on its inference.json.
        folder: where the exports go.
        size: voxels of the network's input, which for networks that upsample is the LR scan; slices stand along the last axis.
        repeats: timed rounds.
        threads: of onnxruntime.

    Returns:
        A heading and a table in Markdown.

    Raises:
        ScanError: when the bundle or its weights are missing, its network takes more than an image, or the folder cannot be
            written.
    """
    root = bundle.split("+", maxsplit=1)[0]
    if not (Path(root) / "configs" / "inference.json").is_file():
        raise ScanError(f"{root}: expected a bundle with configs/inference.json, got no such file")
    parser = bundle_config(bundle)
    parser["device"], parser["inferer::progress"], parser["all_axes"] = torch.device("cpu"), False, False
    spatial_dims = int(parser.get("spatial_dims", 3))
    in_channels = int(parser.get("network_def::in_channels", 1))
    network: nn.Module = parser.get_parsed_content("network_def")
    if isinstance(network, AnyScaleSR):
        raise ScanError(
            f"{root}: expected a network of an image alone, got one that is told its target too: "
            "python -m custom_components.runtimes.export_any_scale writes it"
        )
    load_weights(network, parser.get_parsed_content("checkpoint"))
    network.eval()
    files = export_all(network, folder, spatial_dims, in_channels)
    ways = runtimes(network, parser.get_parsed_content("inferer"), files, spatial_dims, threads)
    volume = torch.rand(1, in_channels, *size, generator=torch.Generator().manual_seed(0))
    given = " + ".join([Path(part).stem for part in bundle.split("+")])
    return f"**{given}**, input of {tuple(size)} voxels\n\n{table(ways, measure(ways, volume, repeats))}"


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number >= 1, got {text}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, measure, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m custom_components.runtimes", description=__doc__)
    parser.add_argument(
        "--bundle", nargs="+", required=True, metavar="BUNDLE[+OVERLAY.json]", help="folders of bundles"
    )
    parser.add_argument("--folder", type=Path, default=Path("exports"), help="the exports go to FOLDER/BUNDLE")
    parser.add_argument("--size", type=_positive, nargs=3, default=(96, 96, 96), help="voxels of the network's input")
    parser.add_argument("--threads", type=_positive, help="CPU threads; default: all")
    parser.add_argument("--repeats", type=_positive, default=3, help="timed runs of each runtime")
    parser.add_argument("--output", type=Path, help="write the tables to this Markdown file too")
    chosen = parser.parse_args(arguments)
    expect_packages("the comparison", "onnx", "onnxscript", "onnxruntime")
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    threads = torch.get_num_threads()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime"))
    head = (
        f"CPU, {threads} threads, {versions}. Medians of {chosen.repeats} interleaved runs. Differences are to the first row, "
        "relative to the range of its result.\n"
    )
    print(head)
    parts = [head]
    for bundle in chosen.bundle:
        name = "+".join(Path(part).stem for part in bundle.split("+"))
        parts.append(compare_bundle(bundle, chosen.folder / name, chosen.size, chosen.repeats, threads))
        print(parts[-1])
    if chosen.output:
        with atomic_write(chosen.output) as partial:
            partial.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    one_line_errors()
    main()
