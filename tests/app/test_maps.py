from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from custom_components.app.maps import colour_limit, coloured, draw_colour_bar


def test_the_limit_is_a_percentile_of_what_is_above_0():
    values = np.concatenate([np.zeros(5000), np.arange(1, 1002)]).astype(np.float32)
    assert colour_limit(values) == pytest.approx(1 + 0.995 * 1000)
    assert colour_limit(np.zeros((3, 3), np.float32)) == 1.0


def test_colours_are_brighter_with_each_step_from_black():
    shades = coloured(np.linspace(0, 8, 9, dtype=np.float32)[None], 4.0)
    assert (shades.shape, shades.dtype) == ((1, 9, 3), np.uint8)
    light = shades[0].astype(float) @ (0.2126, 0.7152, 0.0722)
    assert light[0] < 2
    assert np.all(np.diff(light[:5]) > 10)
    assert np.all(shades[0, 4:] == shades[0, 4])  # larger ones are shown as the limit
    np.testing.assert_allclose(shades[0, 2] / 255, colormaps["magma"](0.5)[:3], atol=1 / 255)


def test_the_bar_runs_through_the_colours(tmp_path):
    draw_colour_bar(30.0, tmp_path / "bar.png")
    with Image.open(tmp_path / "bar.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    wanted = coloured(np.linspace(0, 30, 20, dtype=np.float32)[None], 30.0)[0]
    line = pixels[len(pixels) // 5]
    places = [int(np.abs(line - shade).sum(1).argmin()) for shade in wanted]
    assert all(np.abs(line[place] - shade).max() <= 3 for place, shade in zip(places, wanted, strict=True))
    assert places == sorted(places)
    assert places[-1] - places[0] > 0.8 * pixels.shape[1]
