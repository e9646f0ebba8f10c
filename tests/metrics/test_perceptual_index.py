"""The perceptual index; the library of the score of Ma et al. is stood in for, as it is no dependency."""

from __future__ import annotations

import importlib
import math
import sys
import types

import pytest
import torch

from custom_components.metrics import NIQE, MaScore, NaturalModel, PerceptualIndex, perceptual_index


def brightness(image):
    """A scorer that shows which slice it got."""
    assert image.shape[:2] == (1, 1) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1
    return 10 * image.mean()


@pytest.fixture(scope="module")
def volume():
    generator = torch.Generator().manual_seed(0)
    return 0.3 + 0.4 * torch.rand(1, 1, 48, 48, 48, generator=generator)


@pytest.mark.parametrize(("ma", "niqe", "expected"), [(10, 0, 0), (0, 0, 5), (8, 3, 2.5), (10, 40, 20)])
def test_formula(ma, niqe, expected):
    assert perceptual_index(ma, niqe) == expected


def test_slices_are_spread_over_those_that_show_something():
    ramp = torch.zeros(1, 1, 8, 8, 14)
    ramp[..., 2:12] = torch.linspace(0.2, 0.65, 10)  # a step of 0.05 per slice; two dark slices at each end
    for count, slices in ((1, [5]), (2, [2, 7]), (10, range(10)), (99, range(10))):
        expected = sum(10 * (0.2 + 0.05 * k) for k in slices) / len(slices)
        assert MaScore(max_slices=count, scorer=brightness)(ramp).item() == pytest.approx(expected, rel=1e-5)
    assert MaScore(scorer=brightness)(0.4 * ramp.new_zeros(1, 2, 8, 8, 8)).isnan().all()


def test_range_and_axes(volume):
    expected = MaScore(max_slices=99, scorer=brightness)(volume).item()
    assert MaScore(max_slices=99, data_range=255, scorer=brightness)(255 * volume).item() == pytest.approx(expected)
    assert MaScore(axis=None, max_slices=99, scorer=brightness)(volume).item() == pytest.approx(expected, rel=1e-5)
    assert MaScore(scorer=brightness)(2 * volume[..., 0]).item() == pytest.approx(
        10 * (2 * volume[..., 0]).clamp(max=1).mean().item(), rel=1e-5
    )


def test_index_of_an_image(volume):
    niqe = NIQE(NaturalModel.fit(volume[0, 0], sharpness=0), axis=0)
    ma = MaScore(axis=0, scorer=brightness)
    index = PerceptualIndex(niqe, ma)
    assert index(volume).item() == pytest.approx((10 - ma(volume).item() + niqe(volume).item()) / 2)
    assert index.aggregate().item() == pytest.approx(index(volume).item())


def test_library_that_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(
        ValueError, match=r"expected the library pyiqa .* allow non-commercial use only\), got: not installed"
    ):
        MaScore()


def test_weights_that_are_not_there(monkeypatch):
    def create_metric(name, device):
        raise OSError(f"no route to the\nhost of {name}")

    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=create_metric))
    with pytest.raises(ValueError, match=r"expected pyiqa's weights .* got OSError: no route to the host of nrqm"):
        MaScore()


@pytest.mark.parametrize(
    "error", [ModuleNotFoundError("No module named 'timm'", name="timm"), RuntimeError("built for\nanother torch")]
)
def test_library_that_cannot_be_imported(monkeypatch, error):
    """It takes dozens of other packages along, and then it is not the one that is missing."""
    imported = importlib.import_module

    def fail(name, *args):
        if name == "pyiqa":
            raise error
        return imported(name, *args)

    monkeypatch.setattr(importlib, "import_module", fail)
    reason = " ".join(str(error).split())
    with pytest.raises(ValueError, match=rf"the library pyiqa .*, got: {type(error).__name__}: {reason}; NIQE alone"):
        MaScore()


def library(image):
    """As `pyiqa.create_metric("nrqm")`: colours in [0, 1] are brought to 0 to 255 by their luminance, grey images are not."""
    assert image.ndim == 4 and image.min() >= 0 and image.max() <= 1
    if image.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        image = 255 * (weights * image).sum(1, keepdim=True)
    return 10 * image.mean() / 255


def test_library_that_is_there(monkeypatch, volume):
    asked = []

    def create_metric(name, device):
        asked.append((name, device))
        return library

    monkeypatch.setitem(sys.modules, "pyiqa", types.SimpleNamespace(create_metric=create_metric))
    niqe = NIQE(NaturalModel.fit(volume[0, 0], sharpness=0), axis=1)
    index = PerceptualIndex(niqe)
    assert asked == [("nrqm", torch.device("cpu"))]
    assert index.ma.axis == 1
    expected = perceptual_index(MaScore(axis=1, scorer=brightness)(volume).item(), niqe(volume).item())
    assert math.isclose(index(volume).item(), expected, rel_tol=1e-6)


def test_bad_input():
    with pytest.raises(ValueError, match="max_slices must be >= 1, got 0"):
        MaScore(max_slices=0, scorer=brightness)
    with pytest.raises(ValueError, match="data_range must be positive, got -1"):
        MaScore(data_range=-1, scorer=brightness)
