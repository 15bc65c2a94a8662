"""One process a workdir: refused while another lives, free after any death, said where there are no locks."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from tnt_jax.training import lock
from tnt_jax.training.errors import CannotStart

HOLD = """
import pathlib, sys, time
from tnt_jax.training import lock
held = lock.Lock(pathlib.Path(sys.argv[1]))
held.take()
print("held", flush=True)
time.sleep(600)
"""


def test_another_process_is_named_until_it_dies(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    mine = lock.Lock(tmp_path)
    with pytest.raises(CannotStart, match=rf"Process {other.pid} on .* trains in --workdir={tmp_path}\. Wait"):
        mine.take()
    other.send_signal(signal.SIGKILL)
    other.wait()
    mine.take("token")
    assert lock.token_of(tmp_path) == "token"
    mine.release()
    lock.Lock(tmp_path).take()


def test_a_lock_whose_file_is_removed_is_taken_again(tmp_path):
    first, second = lock.Lock(tmp_path), lock.Lock(tmp_path)
    first.take()
    first.take()  # which is no second one
    (tmp_path / lock.LOCK_FILE).unlink()
    first.take()
    with pytest.raises(CannotStart):
        second.take()
    (tmp_path / lock.LOCK_FILE).unlink()
    second.take()
    with pytest.raises(CannotStart, match=f"Process {os.getpid()} "):
        first.take()


def test_a_file_system_without_locks_is_said_and_done_without(tmp_path, monkeypatch):
    def none(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", none)
    held = lock.Lock(tmp_path)
    held.take("token")
    assert f"{tmp_path} lies on a file system without locks" in held.note and lock.token_of(tmp_path) == "token"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_a_lock_file_of_nobody_is_no_lock(tmp_path, content):
    (tmp_path / lock.LOCK_FILE).write_bytes(content)
    assert lock.token_of(tmp_path) == ""
    lock.Lock(tmp_path).take()
