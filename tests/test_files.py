from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from custom_components.errors import ScanError
from custom_components.files import atomic_write


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_atomic_write_keeps_the_suffix_and_hides_until_done(tmp_path):
    path = tmp_path / "new" / "table.v2.csv"
    with atomic_write(path) as partial:
        assert partial.parent == path.parent
        assert partial.name.startswith(".")
        assert partial.suffix == ".csv"
        partial.write_text("all")
        assert not path.exists()
    assert path.read_text() == "all"
    assert os.listdir(path.parent) == [path.name]
    with atomic_write(tmp_path / "x.nii.gz") as one, atomic_write(tmp_path / "y.nii.gz") as two:
        assert one != two
        assert one.name.endswith(".nii.gz")
        touch(one, two)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("bug"), KeyboardInterrupt()])
def test_atomic_write_after_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    expected = ScanError if isinstance(error, OSError) else type(error)

    def fail():
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(expected) as info:
        fail()
    if expected is ScanError:
        assert str(info.value) == f"{path}: expected to write the file, got: No space left on device"
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.csv"]


def test_atomic_write_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ScanError, match=r"file/x\.csv: expected to write the file"),
        atomic_write(tmp_path / "file" / "x.csv"),
    ):
        pass


def test_leftovers_of_dead_processes_are_removed_and_only_those(tmp_path):
    code = (
        "import os, sys; from custom_components.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as p: p.write_text('half'); os._exit(9)"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(sys.modules["custom_components"].__file__)))
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.csv")], cwd=root, check=False)
    left = os.listdir(tmp_path)
    assert len(left) == 1
    dead = left[0].split("-")[-2]
    assert left[0].startswith(".partial-")
    host = socket.gethostname()
    others = [
        f".partial-{host}-{os.getppid()}-0.csv",
        f".partial-{host}-1-{dead}-0.csv",
        f".partial-elsewhere-{dead}-0.csv",
    ]
    touch(*(tmp_path / n for n in others))
    with atomic_write(tmp_path / "b.csv") as partial:
        partial.write_text("b")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "b.csv"])
