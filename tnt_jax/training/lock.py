"""One run at a time in a workdir: a lock of the operating system on WORKDIR/lock, released at any death."""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from tnt_jax.training.errors import CannotStart

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Lock:
    """The lock of one workdir. The file stays when the lock goes: to remove it would let two processes have one each.

    `note`: what to say where the file system has no locks, which are then done without; else empty.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK_FILE
        self._file: Any = None
        self.note = ""

    def take(self, token: str = "") -> None:
        """Takes the lock, again if its file was removed. Raises CannotStart where another process has it.

        token: what the other processes of the same run look for in the file, to know that they see the same workdir.
        """
        if self._file is not None and _same(self._path, self._file):
            return
        self.release()
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                holder = _read(self._path)
                file.close()
                raise CannotStart(_in_use(self._path.parent, holder)) from error
            self.note = (
                f"{self._path.parent} lies on a file system without locks ({error.strerror}): nothing keeps a second "
                "process from training there. Start only one."
            )
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": since, "token": token}
        file.write(json.dumps(holder) + "\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Lets go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


def token_of(workdir: Path) -> str:
    """What `take` wrote as the token; "" where there is none."""
    return str(_read(workdir / LOCK_FILE).get("token", ""))


def _read(path: Path) -> dict[str, Any]:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or about to be written
        return {}
    return holder if isinstance(holder, dict) else {}


def _in_use(workdir: Path, holder: dict[str, Any]) -> str:
    who = "Another process"
    if holder:
        who = f"Process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"
    return (
        f"{who} trains in --workdir={workdir}. Wait for its end or end it, or use another --workdir. Its lock "
        "goes with it, however it ends."
    )


def _same(path: Path, file: Any) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
