"""A bundle's network in other runtimes: TorchScript, torch.export, ONNX and TensorRT, and how fast and how equal they are."""

from .export import export_onnx, export_program, export_torchscript
from .load import load_onnx, load_program, load_torchscript
from .tensorrt import tensorrt_network
from .tiles import TileInferer

__all__ = [
    "TileInferer",
    "export_onnx",
    "export_program",
    "export_torchscript",
    "load_onnx",
    "load_program",
    "load_torchscript",
    "tensorrt_network",
]
