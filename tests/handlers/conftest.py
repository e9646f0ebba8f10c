from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer

from custom_components.acquisition import acquisition_operator, interpolation_operator, rescaled_affine
from custom_components.engines import ScanEvaluator


class Halve(torch.nn.Module):
    """Stands in for a network: takes the half of what it gets; a scan that holds 7 makes it fail."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (x == 7).any():
            raise RuntimeError("no memory\nat all")
        return x / 2


@pytest.fixture
def make_item() -> Callable[..., dict[str, Any]]:
    """An item as the inference path has it before the network: HR truth, LR scan, interpolated image."""

    def make(stem: str, seed: int = 0, factor: int = 2, **fields: Any) -> dict[str, Any]:
        size = (12, 16, 8)
        lr_size = [n // factor for n in size]
        hr = torch.rand(1, *size, generator=torch.Generator().manual_seed(seed))
        lr = acquisition_operator(size, lr_size)(hr[None])[0]
        image = interpolation_operator(lr_size, size)(lr[None])[0]
        affine = torch.diag(torch.tensor([1.0, 1.0, 1.5, 1.0], dtype=torch.float64))
        meta = {"filename_or_obj": f"in/{stem}.nii.gz"}
        return {
            "stem": stem,
            "image": MetaTensor(image, affine=affine, meta=dict(meta)),
            "lowres": MetaTensor(lr, affine=rescaled_affine(affine, size, lr_size), meta=dict(meta)),
            "target": MetaTensor(hr, affine=affine, meta=dict(meta)),
            **fields,
        }

    return make


@pytest.fixture
def evaluate() -> Callable[..., ScanEvaluator]:
    """Run items through a `ScanEvaluator` with handlers and the half as the network."""

    def run(items: list[dict[str, Any]], *handlers: Any, **kwargs: Any) -> ScanEvaluator:
        engine = ScanEvaluator(
            device=torch.device("cpu"),
            val_data_loader=[[item] for item in items],
            network=Halve(),
            inferer=SimpleInferer(),
            val_handlers=list(handlers),
            **kwargs,
        )
        engine.run()
        return engine

    return run


def _with_meta(data: dict[str, Any]) -> dict[str, Any]:
    pred = MetaTensor(data["pred"], meta={**data["image"].meta, "saved_to": f"out/{data['stem']}_sr.nii.gz"})
    return {**data, "pred": pred}


@pytest.fixture
def postprocessing() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Gives the result affine and output path, as RestoreIntensityd and SaveScand do."""
    return _with_meta
