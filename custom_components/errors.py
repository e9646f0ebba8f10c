"""What a user reads when something went wrong: one line."""

from __future__ import annotations

import sys
from types import TracebackType

from .scans import ScanError


def root_cause(error: BaseException) -> BaseException:
    """The innermost `ScanError` of a chain of exceptions, else its first cause."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return next((e for e in reversed(chain) if isinstance(e, ScanError)), chain[-1])


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    cause = root_cause(error)
    text = " ".join(str(cause).split())
    return text if isinstance(cause, ScanError) else f"{type(cause).__name__}: {text}"


def one_line_errors() -> None:
    """Let a `ScanError` end the program with one line and exit code 1 in place of a traceback; other errors keep theirs."""

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(root_cause(error), ScanError):
            print(f"error: {reason(error)}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, traceback)

    sys.excepthook = hook
