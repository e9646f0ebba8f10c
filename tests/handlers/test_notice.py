from __future__ import annotations

import logging

import pytest
from ignite.engine import Engine

from custom_components.handlers import Notice


def test_one_line_per_run_before_the_first_iteration(caplog):
    order = []
    engine = Engine(lambda *_: order.append(len(caplog.records)))
    Notice("100 % invented: see summary.csv").attach(engine)
    with caplog.at_level(logging.WARNING):
        engine.run([0, 1], max_epochs=2)
    assert caplog.record_tuples == [
        ("custom_components.handlers.notice", logging.WARNING, "100 % invented: see summary.csv")
    ]
    assert order == [1, 1, 1, 1]
    engine.run([0], max_epochs=3)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("text", ["", "  ", "two\nlines"])
def test_bad_text(text):
    with pytest.raises(ValueError, match="text must be one line, got "):
        Notice(text)


def test_nothing_to_say(caplog):
    engine = Engine(lambda *_: None)
    Notice(None).attach(engine)
    engine.run([0])
    assert not caplog.records
