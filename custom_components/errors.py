"""What a user reads when something went wrong: one line."""

from __future__ import annotations

import sys
from types import TracebackType


class ScanError(ValueError):
    """A scan cannot be used or a result cannot be written; the message is one line that names the file."""


def one_line(error: BaseException) -> str:
    """The reason in an exception as one short line, without the path an `OSError` repeats."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split())[:200] or type(error).__name__


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_refusal(error: BaseException) -> bool:
    """Whether this package itself raised it: a `ValueError` that says what was expected and what came."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, ScanError) or (isinstance(error, ValueError) and place.startswith(f"{__package__}."))


def root_cause(error: BaseException) -> BaseException:
    """The innermost `ScanError` of a chain of exceptions, else `ValueError` of this package, else the first cause."""
    chain = [error]
    while (cause := _cause(chain[-1])) is not None and cause not in chain:
        chain.append(cause)
    ours = [e for e in reversed(chain) if _is_refusal(e)]
    return next((e for e in ours if isinstance(e, ScanError)), ours[0] if ours else chain[-1])


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    cause = root_cause(error)
    text = " ".join(str(cause).split())
    return text if _is_refusal(cause) else f"{type(cause).__name__}: {text}"


def one_line_errors() -> None:
    """End the program with one line and exit code 1, in place of a traceback, when this package refuses what it got.

    That is a `ScanError`, or a `ValueError` raised in this package, as by `memory_gib=0`. Others keep their traceback.
    """

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if _is_refusal(root_cause(error)):
            print(f"error: {reason(error)}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook
