from __future__ import annotations

from pathlib import Path

import pytest
import torch

from custom_components.memory import peak_memory, reset_peak_memory


def test_peak_memory_sees_what_was_freed_and_forgets_it_after_a_reset() -> None:
    size = 2**28
    reset_peak_memory()
    before = peak_memory()
    block = torch.ones(size, dtype=torch.uint8)
    del block
    assert peak_memory() - before > 0.9 * size
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("the system does not let a process reset its peak")
    assert peak_memory() - before < 0.5 * size
