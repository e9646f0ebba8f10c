"""Mixed precision on any device."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer


def faster_dtype(device: torch.device | str) -> str | None:
    """The precision below float32 that a device computes convolutions in natively: "bfloat16" or None.

    bfloat16 has the range of float32 and 8 bits of precision. Where the hardware has no instructions for it (a CPU without
    AVX512-BF16 and AMX, CUDA before compute capability 8.0) it is emulated, which is slower than float32.
    """
    device = torch.device(device)
    if device.type == "cpu":
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if native else None


class AutocastInferer(Inferer):
    """Run the network under autocast, on CPU as well as GPU, and give a float32 result.

    MONAI's `amp=True` is for CUDA only and scales gradients, which bfloat16 does not need: its exponent is that of float32.

    Args:
        dtype: dtype of the convolutions.
    """

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.dtype = dtype

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map `(B, C, *spatial)` by the network."""
        with torch.autocast(inputs.device.type, dtype=self.dtype):
            output: torch.Tensor = network(inputs, *args, **kwargs)
        return output.float()
