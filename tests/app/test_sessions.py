from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from custom_components.app import sessions as module
from custom_components.app.sessions import PREFIX, Sessions, remove_abandoned
from custom_components.errors import ScanError

ROOT = Path(__file__).parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_folders_are_private_and_apart(tmp_path):
    with Sessions(tmp_path) as sessions:
        one, two = sessions.get("one"), sessions.get("two")
        assert sessions.get("one") is one
        assert one.folder != two.folder
        assert [mode(p) for p in (sessions.root, one.folder, one.new_input(), one.new_run())] == 4 * [0o700]
        assert "one" not in str(one.folder)  # what a page sends does not name a folder


def test_a_session_takes_its_files_with_it(tmp_path):
    with Sessions(tmp_path) as sessions:
        one, two = sessions.get("one"), sessions.get("two")
        for session in (one, two):
            (session.new_input() / "scan.nii").write_bytes(b"x")
        sessions.close("one")
        sessions.close("unknown")
        assert one.closed and not one.folder.exists()
        assert (two.folder / "input" / "scan.nii").exists()
        assert sessions.get("one") is not one
    assert list(tmp_path.iterdir()) == []


def test_a_new_scan_and_a_new_run_take_the_place_of_the_ones_before(tmp_path):
    with Sessions(tmp_path) as sessions:
        session = sessions.get("one")
        (session.new_input() / "old.nii").write_bytes(b"x")
        session.scan = session.folder / "input" / "old.nii"
        assert list(session.new_input().iterdir()) == []
        assert session.scan is None
        before = session.new_run()
        assert session.new_run() != before
        assert not before.exists()


def test_idle_sessions_and_stray_uploads_go(tmp_path):
    with Sessions(tmp_path, idle=0.2) as sessions:
        busy = sessions.get("busy")
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

        class Running:
            def running(self):
                return process.poll() is None

            def stop(self):
                process.kill()
                process.wait()
                process.stdin.close()

        busy.run = Running()
        idle = sessions.get("idle")
        stray, fresh = sessions.root / "0123abcd", sessions.root / "4567abcd"
        for folder in (stray, fresh):
            folder.mkdir()
            (folder / "scan.nii").write_bytes(b"x")
        past = time.time() - module.STRAY - 1
        os.utime(stray, (past, past))
        time.sleep(0.3)
        young = sessions.get("young")
        sessions.sweep()
        assert idle.closed and not idle.folder.exists()
        assert not busy.closed and not young.closed and busy.folder.exists()
        assert not stray.exists() and fresh.exists()
    assert process.poll() is not None  # the end of the server is that of its runs
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_server_stays(tmp_path):
    with Sessions(tmp_path) as first, Sessions(tmp_path) as second:
        assert first.root != second.root
        assert first.root.exists()
        assert remove_abandoned(tmp_path) == []


def test_only_own_folders_are_taken_for_abandoned(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    temp = tmp_path / "temp"
    temp.mkdir()
    (temp / f"{PREFIX}link").symlink_to(elsewhere)
    (temp / f"{PREFIX}file").write_text("x")
    (temp / "other").mkdir()
    assert remove_abandoned(temp) == []
    assert (elsewhere / "kept").exists()
    assert len(list(temp.iterdir())) == 3


@pytest.mark.slow
def test_the_next_start_removes_what_a_killed_server_left(tmp_path):
    code = (
        "import sys, time; from custom_components.app.sessions import Sessions\n"
        "s = Sessions(sys.argv[1]); (s.get('a').new_input() / 'scan.nii').write_bytes(b'x')\n"
        "print(s.root, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        left = Path(process.stdout.readline().strip())
        assert len(list(left.rglob("scan.nii"))) == 1
        process.send_signal(signal.SIGKILL)
    assert left.exists()
    with Sessions(tmp_path) as sessions:
        assert not left.exists()
        assert list(tmp_path.iterdir()) == [sessions.root]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ScanError, match=r"file: expected a folder to write to, got: Not a directory"):
        Sessions(tmp_path / "file")
