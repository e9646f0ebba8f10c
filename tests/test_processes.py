from __future__ import annotations

import pytest
import torch.distributed

from custom_components import processes
from custom_components.processes import MOMENT, leave_process_group


@pytest.fixture
def slept(monkeypatch):
    """Seconds that were waited, and whether there still was a group then."""
    calls = []
    monkeypatch.setattr(processes.time, "sleep", lambda s: calls.append((s, torch.distributed.is_initialized())))
    return calls


def test_the_group_is_gone_and_its_threads_have_a_moment(tmp_path, slept):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    torch.distributed.all_reduce(torch.ones(3))
    leave_process_group()
    assert slept == [(MOMENT, False)] and not torch.distributed.is_initialized()


def test_nothing_without_a_group(slept):
    leave_process_group()
    assert slept == []
