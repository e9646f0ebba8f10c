from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from custom_components.errors import ScanError
from custom_components.files import atomic_write, locked


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


FORK = multiprocessing.get_context("fork")


def count(path, times):
    """Add 1 to the number in a file, many times; lost where two processes read the same number."""
    for _ in range(times):
        with locked(path):
            number = int(path.read_text())
            time.sleep(0.0005)
            path.write_text(str(number + 1))


def test_locked_lets_one_process_at_a_time(tmp_path):
    path = tmp_path / "number"
    path.write_text("0")
    processes = [FORK.Process(target=count, args=(path, 50)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert path.read_text() == "150"
    assert os.listdir(tmp_path) == ["number"]


def hold(path, held):
    with locked(path):
        held.set()
        time.sleep(60)


def test_a_killed_process_holds_nothing(tmp_path):
    held = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path / "a.csv", held))
    process.start()
    assert held.wait(10)
    waiting = FORK.Process(target=count, args=(tmp_path / "a.csv", 0))
    waiting.start()
    assert os.listdir(tmp_path) == [".lock-a.csv"]
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    started = time.monotonic()
    with locked(tmp_path / "a.csv"):
        assert time.monotonic() - started < 10
    waiting.join()
    assert os.listdir(tmp_path) == []


def test_locked_where_there_are_no_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with locked(tmp_path / "new" / "a.csv"):
        (tmp_path / "new" / "a.csv").write_text("")
    assert len(os.listdir("/proc/self/fd")) == descriptors if descriptors else True
    (tmp_path / "file").write_text("")
    with locked(tmp_path / "file" / "a.csv"):
        pass


def test_locked_gives_way_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "a.csv"):
        raise KeyError
    assert os.listdir(tmp_path) == []
