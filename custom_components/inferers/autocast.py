"""Mixed precision for training on any device."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import Inferer


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
