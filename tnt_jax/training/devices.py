"""Which devices a process has, which other processes belong to it, and what happens when one of them ends."""

import contextlib
import errno
import faulthandler
import fcntl
import os
import re
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NoReturn

import jax

from tnt_jax.training.config import DistributedSettings, Experiment
from tnt_jax.training.errors import RunError, Stopped

UNEXPECTED = 1  # exit code of what nobody thought of
LATER = 60  # seconds by which jax's own timeout comes after ours
TILES = "--xla_tpu_scoped_vmem_limit_kib"  # vector memory that the tiles of one operation may take on a TPU
# Model and image size -> that limit for scanned blocks, where it was found to cost nothing (docs/tpu.md).
MEASURED_TILES = {("tnt_s_patch16_224", 224): 6144}
_places: list[IO[str]] = []  # locks on this process's number


def set_up(experiment: Experiment) -> None:
    """What the config says of devices and of other processes; before any device is touched."""
    split_cpu(experiment)
    limit_tiles(experiment)
    join_processes(experiment)


def limit_tiles(experiment: Experiment) -> None:
    """Scanned blocks are compiled for a TPU in tiles as small as config.scan_tile_kib says; before libtpu is loaded.

    libtpu unrolls what it does with a tile, and that takes most of the time to compile. A limit that LIBTPU_INIT_ARGS
    has already stays.
    """
    present, limit = os.environ.get("LIBTPU_INIT_ARGS", ""), experiment.scan_tile_kib
    if limit < 0:
        limit = MEASURED_TILES.get((experiment.model.name, experiment.model.image_size), 0)
    if experiment.model.scan and limit and TILES not in present:
        os.environ["LIBTPU_INIT_ARGS"] = f"{present} {TILES}={limit}".strip()


def split_cpu(experiment: Experiment) -> None:
    """Makes several jax devices of the host's CPU as the config says; before any device is touched."""
    if experiment.cpu_devices:
        jax.config.update("jax_num_cpu_devices", experiment.cpu_devices)


def join_processes(experiment: Experiment) -> None:
    """Joins the other processes as the config says; before any device is touched.

    From then on jax ends this process (SIGABRT, with a message of its own) once another has been silent for
    distributed.heartbeat_timeout_seconds, or the first process, which keeps the list, is gone. Raises ValueError with
    the keys where the processes cannot be joined, or have not all come after initialization_timeout_seconds.
    """
    settings = experiment.distributed
    if not settings.enabled:
        return
    _claim_place(settings)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for processes without accelerators
    error = _in_time(lambda: _initialize(settings), settings.initialization_timeout_seconds)
    if error is not None:
        raise ValueError(
            f"config.distributed: the processes could not be joined: {_first_line(error)}. Outside of TPU, Slurm, Open "
            "MPI and Kubernetes give every process config.distributed.coordinator_address (host:port of the first "
            "process, a free port), num_processes, and its own process_id, from 0."
        ) from error
    if jax.process_count() > 1 and faulthandler.is_enabled():
        faulthandler.disable()  # absl's: a traceback of every thread would bury jax's message


def _claim_place(settings: DistributedSettings) -> None:
    """Raises ValueError where another process of this machine has this one's number, or the first one's port is taken.

    jax would end the process by a signal, after pages that do not name either.
    """
    address, number = settings.coordinator_address, settings.process_id
    if not address or number < 0:  # the cluster's environment says them
        return
    name = re.sub("[^0-9A-Za-z.-]", "_", f"tnt_jax_{os.getuid()}_{address}_{number}")
    with contextlib.suppress(PermissionError, FileNotFoundError):  # no folder for it: then without
        file = (Path(tempfile.gettempdir()) / name).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"config.distributed.process_id={number} is taken: another process of this machine has joined "
                f"{address} with it. Give every process a number of its own, from 0."
            ) from error
        _places.append(file)  # held until this process ends
    if number == 0:
        port = int(address.rpartition(":")[2])
        try:
            socket.create_server(("", port), family=socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET).close()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(
                    f"config.distributed.coordinator_address={address}: port {port} of this machine is taken. Give all "
                    "processes another, or end what listens there."
                ) from error


def _initialize(settings: DistributedSettings) -> None:
    jax.distributed.initialize(
        coordinator_address=settings.coordinator_address or None,
        num_processes=settings.num_processes or None,
        process_id=settings.process_id if settings.process_id >= 0 else None,
        initialization_timeout=settings.initialization_timeout_seconds + LATER,
        heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
        shutdown_timeout_seconds=settings.heartbeat_timeout_seconds,
    )


def _in_time(function: Callable[[], None], seconds: float) -> Exception | None:
    """Calls a function, for `seconds` at most -> what it raised, TimeoutError or None.

    In a thread, so that a signal is heard meanwhile: jax waits outside of Python, and its own timeout aborts the
    process. After a TimeoutError the thread waits on; the process has to end.
    """
    raised: list[Exception] = []

    def call() -> None:
        try:
            function()
        except Exception as error:  # ValueError, TypeError, RuntimeError or jax's own, by what is missing
            raised.append(error)

    thread, end = threading.Thread(target=call, daemon=True), time.monotonic() + seconds
    thread.start()
    while thread.is_alive():
        thread.join(0.1)  # a join without end would keep signals waiting
        if time.monotonic() > end:
            return TimeoutError(f"not all of them have come within {seconds:g} s (initialization_timeout_seconds)")
    return raised[0] if raised else None


def leave(code: int) -> NoReturn:
    """Ends the process at once after a failure, so that its message is the last word and other processes notice.

    Python's usual end would wait for the others in jax.distributed.shutdown, while they wait for this one in a sum, and
    minutes for the threads of a checkpoint that cannot be written.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what several processes do together: an error inside ends this one at once, see leave_others."""
    try:
        yield
    except Exception as error:
        leave_others(error)
        raise


def leave_others(error: Exception) -> None:
    """After an error that one of several processes meets alone: says it and ends the process. Returns for any other.

    What jax raises where a sum over the processes fails means that another one is gone.
    """
    if not jax.distributed.is_initialized() or isinstance(error, Stopped):
        return
    place = f"Process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, RunError):
        print(f"main.py: {place}: {error}", file=sys.stderr)
        leave(error.code)
    elif isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"main.py: {place}: another process has ended or cannot be reached; its own last words say why. Start all "
            f"of them again by the same command: they go on from the last checkpoint. ({_first_line(error)})",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
        leave(UNEXPECTED)
    leave(RunError.code)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
