"""Read back what `export` wrote, as functions from images to images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..files import PathLike
from .export import INPUT, expect_packages, quiet

Images = Callable[[Tensor], Tensor]


def load_torchscript(path: PathLike) -> Images:
    """TorchScript on the CPU, frozen and optimised for inference; that cannot be saved, so it is done here and not in the file."""
    with quiet():
        module = torch.jit.load(str(path), map_location="cpu").eval()
        run: Images = torch.jit.optimize_for_inference(torch.jit.freeze(module))
    return run


def load_program(path: PathLike) -> Images:
    """A program of `torch.export`."""
    run: Images = torch.export.load(path).module()
    return run


def load_onnx(path: PathLike, threads: int = 0) -> Images:
    """ONNX in onnxruntime on the CPU.

    Args:
        path: the file.
        threads: of one operation; 0 is onnxruntime's own choice.

    Raises:
        ScanError: when onnxruntime is missing.
    """
    expect_packages("ONNX", "onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.contiguous().numpy()})[0])

    return run
