from __future__ import annotations

import pytest

from custom_components.app.parsing import parse_factor, parse_noise, parse_spacing, parse_thickness


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("  ", None),
        ("1", (1.0,)),
        ("0.8", (0.8,)),
        ("1 1 2.5", (1.0, 1.0, 2.5)),
        ("[1, 1, 0]", (1.0, 1.0, 0.0)),
        ("1;1;2", (1.0, 1.0, 2.0)),
    ],
)
def test_spacing_is_read_as_people_write_it(text, expected):
    assert parse_spacing(text) == expected


@pytest.mark.parametrize("text", ["a", "1 2", "1 1 1 1", "-1", "nan", "inf", "0", "0 0 0", "1,5 mm"])
def test_other_spacing_is_refused(text):
    with pytest.raises(ValueError, match=r"target spacing must be one number in mm or three such as 1 1 2\.5, got '"):
        parse_spacing(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("", None), ("2", (2.0,)), ("1.5 1.5 3", (1.5, 1.5, 3.0)), ("[1,1,3.3]", (1.0, 1.0, 3.3))]
)
def test_a_factor_is_read_as_people_write_it(text, expected):
    assert parse_factor(text) == expected


@pytest.mark.parametrize("text", ["x2", "2 2", "0.5", "1 1 0", "nan", "inf", "-2"])
def test_other_factors_are_refused(text):
    with pytest.raises(ValueError, match=r"scale factor must be one number >= 1 or three such as 1 1 3, got '"):
        parse_factor(text)


@pytest.mark.parametrize(("text", "expected"), [("", None), (" ", None), ("3", 3.0), ("2.4 mm", 2.4), ("[5]", 5.0)])
def test_a_thickness_is_read_as_people_write_it(text, expected):
    assert parse_thickness(text) == expected


@pytest.mark.parametrize("text", ["0", "-1", "1 1 3", "nan", "inf", "3 cm", "mm 3"])
def test_other_thicknesses_are_refused(text):
    with pytest.raises(ValueError, match=r"slice thickness must be one number > 0 in mm, .*, got '"):
        parse_thickness(text)


@pytest.mark.parametrize(("text", "expected"), [("", None), ("0", 0.0), ("3", 0.03), ("2.5 %", 0.025), ("100%", 1.0)])
def test_noise_in_percent_is_a_part_of_the_range(text, expected):
    assert parse_noise(text) == expected


@pytest.mark.parametrize("text", ["-1", "101", "nan", "1 2 3", "much"])
def test_other_noise_is_refused(text):
    with pytest.raises(ValueError, match=r"noise must be one number from 0 to 100 in %, .*, got '"):
        parse_noise(text)
