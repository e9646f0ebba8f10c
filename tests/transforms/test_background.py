from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from custom_components.transforms.background import KeepBackground, KeepBackgroundd, empty_background


def _stripped(shape: tuple[int, ...] = (8, 9, 7), low: float = -0.01) -> torch.Tensor:
    """A bright box on an exactly constant background."""
    scan = torch.full((1, *shape), low)
    scan[(0, *(slice(3, n - 2) for n in shape))] = 0.7
    return scan


def _oracle(lowres: torch.Tensor, shape: tuple[int, ...], margin: int) -> torch.Tensor:
    """Voxel by voxel, from the definition."""
    scan = lowres[0]
    mask = torch.zeros(shape, dtype=torch.bool)
    for where in torch.cartesian_prod(*(torch.arange(n) for n in shape)).tolist():
        at = [int((i + 0.5) * m / n) for i, m, n in zip(where, scan.shape, shape, strict=True)]
        around = scan[tuple(slice(max(a - margin, 0), a + margin + 1) for a in at)]
        mask[tuple(where)] = bool((around == scan.min()).all())
    return mask[None]


@pytest.mark.parametrize("margin", [0, 1, 2])
@pytest.mark.parametrize(("shape", "fine"), [((8, 9, 7), (16, 18, 14)), ((8, 9, 7), (20, 9, 23)), ((8, 9), (20, 13))])
def test_mask_is_the_definition(shape: tuple[int, ...], fine: tuple[int, ...], margin: int) -> None:
    lowres = _stripped(shape)
    expected = _oracle(lowres, fine, margin)
    assert expected.any()
    assert not expected.all()
    torch.testing.assert_close(empty_background(lowres, fine, margin), expected)


def test_background_takes_the_value_of_the_scan_and_the_rest_stays() -> None:
    lowres = _stripped()
    pred = torch.rand(1, 16, 18, 14) + 0.1
    before, mask = pred.clone(), _oracle(lowres, (16, 18, 14), 1)
    result = KeepBackground()(pred, lowres)
    assert result is pred
    assert (pred[mask] == lowres.min()).all()
    torch.testing.assert_close(pred[~mask], before[~mask], rtol=0, atol=0)


def test_noisy_air_is_left_alone() -> None:
    lowres = _stripped() + 0.01 * torch.rand(1, 8, 9, 7, generator=torch.Generator().manual_seed(0))
    pred = torch.rand(1, 16, 18, 14)
    before = pred.clone()
    torch.testing.assert_close(KeepBackground()(pred, lowres), before, rtol=0, atol=0)


def test_dictionary_works_on_results_of_inference_and_keeps_the_affine() -> None:
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    with torch.inference_mode():
        pred = MetaTensor(torch.rand(1, 16, 18, 14) + 0.1, affine=affine)
        item = KeepBackgroundd()({"pred": pred, "lowres": MetaTensor(_stripped())})
    assert isinstance(item["pred"], MetaTensor)
    torch.testing.assert_close(item["pred"].affine, affine)
    assert float(item["pred"].min()) == pytest.approx(-0.01)


def test_bad_margin() -> None:
    with pytest.raises(ValueError, match="margin must be >= 0, got -1"):
        KeepBackground(-1)
