"""The end of a run by several processes."""

from __future__ import annotations

import time

import torch.distributed

MOMENT = 1.0  # seconds: a thread lets go of its tensors within milliseconds, on a busy machine within tenths


def leave_process_group() -> None:
    """Destroy the process group, and wait a moment before the interpreter ends; nothing where there is none.

    Gloo's threads let go of the tensors of the last exchange after it was reported as done, for which they need the interpreter.
    One that is late ends the process by SIGABRT, "terminate called without an active exception", though all is done and written.
    The group's destructor would wait for them, but networks that are wrapped hold the group to the end.

    Reference:
        https://github.com/pytorch/pytorch/pull/179291, which describes the race and was not merged.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(MOMENT)
