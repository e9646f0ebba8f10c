from __future__ import annotations

from custom_components.markdown import markdown_table


def test_markdown_table() -> None:
    assert markdown_table([["scan", "x"], ["a", "1.0"], ["bcdef", "10.0"]]).splitlines() == [
        "| scan  |    x |",
        "| ----- | ---: |",
        "| a     |  1.0 |",
        "| bcdef | 10.0 |",
    ]
