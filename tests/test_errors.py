from __future__ import annotations

import sys

import pytest

from custom_components.errors import ScanError, one_line_errors, reason, root_cause


def raised(*errors, implicit=False):
    """An exception whose cause is the one before it in the list, as MONAI's Compose and parser wrap what fails."""
    caught = None
    for error in errors:
        try:
            if implicit:
                try:
                    if caught:
                        raise caught
                finally:
                    raise error
            raise error from caught
        except Exception as e:  # noqa: PERF203
            caught = e
    return caught


@pytest.mark.parametrize("implicit", [False, True])
def test_the_scan_error_is_found_in_a_chain(implicit):
    inner, outer = ScanError("a.nii: expected\n  3D, got 4D"), RuntimeError("applying transform")
    error = raised(OSError("cannot read"), inner, KeyError("x"), outer, implicit=implicit)
    assert error is outer
    assert root_cause(error) is inner
    assert reason(error) == "a.nii: expected 3D, got 4D"


def test_the_innermost_scan_error_counts():
    first = ScanError("the reason")
    assert root_cause(raised(first, ScanError("a frame around it"))) is first


def test_raise_from_none_hides_what_was_before():
    def restate():
        try:
            raise ScanError("damaged")
        except ScanError as error:
            raise ScanError(f"{error}; start anew") from None

    with pytest.raises(ScanError) as info:
        restate()
    assert reason(info.value) == "damaged; start anew"


def test_without_a_scan_error_the_first_cause_with_its_kind():
    assert reason(raised(OSError("cannot\nread"), RuntimeError("wrapped"))) == "OSError: cannot read"
    assert reason(ValueError("alone")) == "ValueError: alone"


def test_a_circle_ends():
    a, b = ValueError("a"), ValueError("b")
    a.__context__, b.__context__ = b, a
    assert root_cause(a) is b


@pytest.fixture
def hook(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    one_line_errors()
    return lambda error: sys.excepthook(type(error), error, error.__traceback__)


def test_hook_gives_one_line_for_a_scan_error(hook, capsys):
    hook(raised(ScanError("d: no such\nfolder"), RuntimeError("Failed to instantiate")))
    assert capsys.readouterr() == ("", "error: d: no such folder\n")


def test_hook_keeps_the_traceback_of_other_errors(hook, capsys):
    hook(raised(TypeError("a defect")))
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("TypeError: a defect\n")


def test_hook_gives_one_line_for_a_value_that_this_package_refuses(hook, capsys):
    from custom_components.inferers import ExactInferer

    with pytest.raises(ValueError, match="memory_gib") as refused:
        ExactInferer(memory_gib=0)
    hook(raised(refused.value, RuntimeError("Failed to instantiate")))
    assert capsys.readouterr() == ("", "error: memory_gib must be > 0, got 0\n")


def test_hook_keeps_the_traceback_of_a_value_error_from_elsewhere(hook, capsys):
    with pytest.raises(ValueError, match="invalid literal") as elsewhere:
        int("a")
    hook(elsewhere.value)
    assert capsys.readouterr().err.startswith("Traceback")
