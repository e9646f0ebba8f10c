"""From an item dictionary to what a trainer takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def prepare_batch(
    batchdata: Mapping[str, Any], device: str | torch.device | None = None, non_blocking: bool = False, **kwargs: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and target `(B, C, *spatial)` of a batch on the device; references, where there are, are further image channels."""
    image, target = (batchdata[key].to(device, non_blocking=non_blocking, **kwargs) for key in ("image", "target"))
    if "reference" in batchdata:
        image = torch.cat([image, batchdata["reference"].to(device, non_blocking=non_blocking, **kwargs)], 1)
    return image, target
