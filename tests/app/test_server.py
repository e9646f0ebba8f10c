from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from custom_components.app.server import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--max_files", "0"], r"files must be >= 1, got 0"),
        (["--max_upload_mib", "-1"], r"upload_mib must be >= 1, got -1"),
        (["--max_runs", "0"], r"max_runs must be >= 1, got 0"),
        (["--port", "70000"], r"port must be a free one of 127\.0\.0\.1, got 70000"),
        (["--bundles_dir", "."], r"expected a folder of bundles, got none"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(tmp_path, monkeypatch, options, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=line):
        main(["--port", "0", "--temp_dir", str(tmp_path), *options])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_user_reads_one_line(tmp_path):
    command = [sys.executable, "-m", "custom_components.app", "--port", "0", "--temp_dir", str(tmp_path / "none")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert (
        ended.stderr == f"error: {tmp_path / 'none'}: expected a folder to write to, got: No such file or directory\n"
    )
