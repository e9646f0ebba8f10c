"""Small JSON files in which a comparison remembers what it did."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ..files import atomic_write


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A dictionary from a JSON file of ours; empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}
