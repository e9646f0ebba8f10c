from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom_components.transforms.trained_range import (
    CheckTrainedRanged,
    intensity_profile,
    measure_intensity_limits,
    trained_range_warnings,
)

LIMITS = {"scale_factor": [1, 3.5], "spacing": [0.5, 1.5]}


def _pair(
    lr_shape: tuple[int, ...], shape: tuple[int, ...], spacing: tuple[float, ...]
) -> tuple[MetaTensor, MetaTensor]:
    generator = torch.Generator().manual_seed(0)
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    return MetaTensor(torch.zeros(1, *shape), affine=affine), MetaTensor(torch.rand(1, *lr_shape, generator=generator))


def test_profile_against_numpy() -> None:
    img = torch.rand(1, 20, 21, 22, generator=torch.Generator().manual_seed(1)) - 0.3
    inside = img.numpy()[img.numpy() > 0.02]
    profile = intensity_profile(img)
    assert profile.pop("foreground") == pytest.approx(inside.size / img.numel())
    assert list(profile) == ["5", "25", "50", "75", "95"]
    np.testing.assert_allclose(list(profile.values()), np.percentile(inside, [5, 25, 50, 75, 95]), rtol=1e-5)


def test_an_empty_foreground_has_a_profile() -> None:
    assert set(intensity_profile(torch.zeros(1, 4, 4, 4)).values()) == {0.0}


def test_limits_hold_the_scans_they_were_measured_on() -> None:
    images = [torch.full((1, 4, 4, 4), v) for v in (0.4, 0.6)]
    limits = measure_intensity_limits(iter(images), margin=0.05)
    assert limits["50"] == pytest.approx([0.35, 0.65])
    assert limits["foreground"] == pytest.approx([0.95, 1.05])
    assert measure_intensity_limits(images, 0.5)["5"][0] == 0


@pytest.mark.parametrize(
    ("lr_shape", "shape", "spacing", "said"),
    [
        ((10, 10, 10), (20, 20, 30), (1, 1, 1), []),
        ((10, 10, 10), (35, 10, 10), (1, 0.5, 1.5), []),  # on the limits
        ((17, 10, 10), (60, 20, 20), (1, 1, 1), []),  # 3.53 is 3.5, rounded to whole voxels
        ((10, 10, 10), (36, 20, 20), (1, 1, 1), ["scale factor 3.6 x 2 x 2 is outside the trained range of 1 to 3.5"]),
        (
            (10, 10, 10),
            (20, 20, 20),
            (1, 0.3, 1),
            ["target spacing 1 x 0.3 x 1 mm is outside the trained range of 0.5 to 1.5 mm"],
        ),
        ((10, 10, 10), (40, 20, 20), (2, 1, 1), ["scale factor 4 x 2 x 2", "target spacing 2 x 1 x 1 mm"]),
    ],
)
def test_grid(lr_shape: Any, shape: Any, spacing: Any, said: list[str]) -> None:
    found = trained_range_warnings(*_pair(lr_shape, shape, spacing), LIMITS)
    assert len(found) == len(said)
    assert all(text in sentence for text, sentence in zip(said, found, strict=True))


def test_intensity() -> None:
    image, lowres = _pair((20, 20, 20), (40, 40, 40), (1, 1, 1))
    limits = {"intensity": measure_intensity_limits([lowres], margin=0.05)}
    assert trained_range_warnings(image, lowres, limits) == []
    (sentence,) = trained_range_warnings(image, lowres * 0.5, limits)
    assert sentence.startswith("intensity distribution is outside the trained range: ")
    assert "percentile 50 of the foreground 0.26, trained 0.46 to 0.56" in sentence
    assert "share of foreground" not in sentence
    half = lowres.clone()
    half[:, :10] = 0
    assert "share of foreground 0.49, trained" in trained_range_warnings(image, half, limits)[0]


def test_dictionary_adds_to_the_warnings_of_a_copy() -> None:
    image, lowres = _pair((10, 10, 10), (40, 20, 20), (1, 1, 1))
    before = {"image": image, "lowres": lowres, "warnings": ["a"]}
    after = CheckTrainedRanged(limits=LIMITS)(before)
    assert len(after["warnings"]) == 2
    assert before["warnings"] == ["a"]
    assert CheckTrainedRanged(limits={})({"image": image, "lowres": lowres})["warnings"] == []


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"factor": [1, 2]}, "limits must be among"),
        ({"spacing": [2, 1]}, r"each limit must be a range \[low, high\]"),
        ({"intensity": {"7": [0, 1]}}, "limits of intensity must be among"),
        ({"intensity": {"5": [0]}}, r"each limit must be a range \[low, high\]"),
    ],
)
def test_bad_limits(limits: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CheckTrainedRanged(limits=limits)


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="got 0 scans"):
        measure_intensity_limits([])
