from __future__ import annotations

import pytest

from custom_components.app.parsing import parse_factor, parse_noise, parse_spacing, parse_thickness

READ = {
    parse_spacing: [
        ("", None),
        ("  ", None),
        ("1", (1.0,)),
        ("0.8", (0.8,)),
        ("1 1 2.5", (1.0, 1.0, 2.5)),
        ("[1, 1, 0]", (1.0, 1.0, 0.0)),
        ("1;1;2", (1.0, 1.0, 2.0)),
    ],
    parse_factor: [("", None), ("2", (2.0,)), ("1.5 1.5 3", (1.5, 1.5, 3.0)), ("[1,1,3.3]", (1.0, 1.0, 3.3))],
    parse_thickness: [("", None), (" ", None), ("3", 3.0), ("2.4 mm", 2.4), ("[5]", 5.0)],
    parse_noise: [("", None), ("0", 0.0), ("3", 0.03), ("2.5 %", 0.025), ("100%", 1.0)],
}
REFUSED = {
    parse_spacing: (
        r"target spacing must be one number in mm or three such as 1 1 2\.5, got '",
        ["a", "1 2", "1 1 1 1", "-1", "nan", "inf", "0", "0 0 0", "1,5 mm"],
    ),
    parse_factor: (
        r"scale factor must be one number >= 1 or three such as 1 1 3, got '",
        ["x2", "2 2", "0.5", "1 1 0", "nan", "inf", "-2"],
    ),
    parse_thickness: (
        r"slice thickness must be one number > 0 in mm, .*, got '",
        ["0", "-1", "1 1 3", "nan", "inf", "3 cm", "mm 3"],
    ),
    parse_noise: (r"noise must be one number from 0 to 100 in %, .*, got '", ["-1", "101", "nan", "1 2 3", "much"]),
}


@pytest.mark.parametrize(("parse", "text", "expected"), [(parse, *case) for parse in READ for case in READ[parse]])
def test_what_people_write_is_read(parse, text, expected):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("parse", "match", "text"), [(parse, match, text) for parse, (match, texts) in REFUSED.items() for text in texts]
)
def test_all_else_is_refused(parse, match, text):
    with pytest.raises(ValueError, match=match):
        parse(text)
