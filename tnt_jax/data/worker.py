"""The first module that a Grain worker process runs, in place of the program's main module.

A spawned process imports the program's main module again, and Grain imports jax wherever it is installed: both would
take seconds and memory in every worker, and the accelerator. `prepare_workers` starts workers with this module instead.
"""

import atexit
import contextlib
import importlib.abc
import os
import pathlib
import signal
import sys
import threading
import time
from multiprocessing import shared_memory, spawn

from absl import flags, logging

_WORKERS = "grain-process-prefetch"  # name prefix of Grain's processes
_preparation_data = spawn.get_preparation_data


class _NoJax(importlib.abc.MetaPathFinder):
    """Makes `import jax` fail as if it were not installed, which Grain allows for."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "jax":
            raise ModuleNotFoundError(f"{name}: a worker process makes batches without jax", name=name)


def prepare_workers() -> None:
    """In the main process: makes workers that Grain starts from now on run this module instead of the program's."""

    def preparation_data(name: str) -> dict[str, object]:
        data = _preparation_data(name)
        if name.startswith(_WORKERS):
            data.pop("init_main_from_path", None)
            data["init_main_from_name"] = __name__
        return data

    if spawn.get_preparation_data is _preparation_data:
        atexit.register(clear_shared_memory, os.getpid())
    spawn.get_preparation_data = preparation_data
    if not flags.FLAGS.is_parsed():  # in a notebook; Grain reads its own flags
        flags.FLAGS.mark_as_parsed()


def last_words(exit_code: int, workers: int) -> str:
    """Returns why one of `workers` worker processes may have ended with `exit_code`, and the fix."""
    reasons = {
        -signal.SIGKILL: "it was killed (SIGKILL), by the system if it ran out of memory",
        -signal.SIGBUS: "/dev/shm, which carries the batches, was full (in a container: --shm-size)",
    }
    return (
        f"One of {workers} worker processes that make batches has ended: "
        f"{reasons.get(exit_code, f'exit code {exit_code}, its own messages are above')}. Use fewer with "
        "--config.data.worker_processes, or 0 for none; the same command resumes from the last checkpoint."
    )


def clear_shared_memory(parent: int) -> None:
    """Removes what workers of the process `parent` left in shared memory; its batches are unusable afterwards.

    A worker killed while it creates a segment has not yet registered it with Python's resource tracker.
    """
    for path in pathlib.Path("/dev/shm").glob(f"{_prefix(parent)}*"):  # only Linux has the folder
        with contextlib.suppress(FileNotFoundError):  # the tracker was faster
            segment = shared_memory.SharedMemory(path.name)
            segment.close()
            segment.unlink()  # also informs the tracker


def _prefix(parent: int) -> str:
    return f"tnt_jax_{parent}_"


def _begin() -> None:
    """In a worker: ignores signals, since the main process ends its workers, and exits if that process is gone."""
    # Names segments after the main process, in place of Python's psm_1234abcd.
    shared_memory._SHM_NAME_PREFIX = f"/{_prefix(os.getppid())}"
    shared_memory._SHM_SAFE_NAME_LENGTH = len(shared_memory._SHM_NAME_PREFIX) + 16
    logging.set_verbosity(logging.ERROR)  # Grain warns in each worker that there is no jax
    sys.meta_path.insert(0, _NoJax())
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    clear_shared_memory(parent)
    os._exit(1)


if __name__ == "__mp_main__":
    _begin()
