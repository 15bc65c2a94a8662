"""The process that a run is in: errors that end it, signals, its devices, the other processes, the workdir's lock."""

import contextlib
import errno
import faulthandler
import fcntl
import json
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn, TypeVar

import jax
from jax.experimental import multihost_utils

from tnt_jax.training.config import Config, DistributedSettings

UNEXPECTED = 1  # exit code of an unexpected exception
LATER = 60  # seconds by which jax's own timeout comes after ours
TILES = "--xla_tpu_scoped_vmem_limit_kib"  # vector memory that the tiles of one operation may take on a TPU
# Model and image size -> that limit for scanned blocks, where a step costs about the same by estimate (docs/tpu.md).
ESTIMATED_TILES = {("tnt_s_patch16_224", (224, 224)): 6144}
SIGNAL_CODES = {signal.SIGTERM: 4, signal.SIGINT: 130}  # main.py's exit codes
LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
T = TypeVar("T")
_process_locks: list[IO[str]] = []  # on this process's number, held until it ends


class RunError(RuntimeError):
    """A run that was possible has to stop; the message says why and what remains."""

    code = 3  # main.py's exit code


class CannotStart(RunError):
    """A run that would not start, though its config and workdir are sound; nothing was written."""

    code = 2


class Stopped(RunError):
    """A signal asked the run to end. What it had come to is saved; the same command resumes from there."""

    def __init__(self, message: str, received: signal.Signals):
        super().__init__(message)
        self.signal = received
        self.code = SIGNAL_CODES[received]


@contextlib.contextmanager
def writable(workdir: Path) -> Iterator[None]:
    """Inside it, an OSError (a full disk, a folder that is read-only by now) becomes a RunError."""
    try:
        yield
    except OSError as error:  # it was writable when it was checked
        raise RunError(
            f"--workdir={workdir} cannot be written any more: {error}. What was written before is there."
        ) from error


def readable(make_batches: Callable[[], Iterator[T]]) -> Iterator[T]:
    """What `make_batches` gives; a damaged file, image or label (the data package names it) is a RunError."""
    try:
        yield from make_batches()
    except (ValueError, OSError) as error:
        raise RunError(f"The data cannot be read any further. {error}") from error


class PreemptionGuard:
    """Inside `with`, SIGTERM and SIGINT are noted instead of ending the process; a second SIGINT ends it at once.

    SIGTERM is a machine that is taken away, SIGINT Ctrl-C or a notebook's stop button. Several processes have to stop
    at the same step: jax's preemption service, which jax.distributed starts, takes SIGTERM on any of them and agrees
    with the others on a step. Only Python's main thread receives signals; in another one there is nothing to note.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._agrees = jax.distributed.is_initialized()  # whether jax's preemption service is there

    def __enter__(self) -> "PreemptionGuard":
        if threading.current_thread() is threading.main_thread():
            # With jax.distributed, SIGTERM is the service's.
            for each in SIGNAL_CODES if not self._agrees else (signal.SIGINT,):
                self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = signal.Signals(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._agrees:
            signal.raise_signal(signal.SIGTERM)  # so that the service tells the others

    def should_stop(self, step: int) -> bool:
        """Whether the run has to end after this step: the same answer in all processes, which all ask at every step."""
        if self._agrees:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def should_stop_now(self) -> bool:
        """Whether a process that is alone has to end, at any moment; several agree on a step only."""
        return self._received is not None and not self._agrees

    @property
    def signal(self) -> signal.Signals:
        """What this process received; of several, those that others have told end as by SIGTERM."""
        return self._received or signal.SIGTERM


def exit_on_signals() -> None:
    """Has SIGTERM and SIGINT end this process with a message and their codes, before and after training.

    Without unwinding: TensorFlow makes another error of a SystemExit that meets it while it is imported.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        text = f"main.py: {name}: ended with nothing new to save. The same command starts again, or resumes."
        print(text, file=sys.stderr, flush=True)
        os._exit(SIGNAL_CODES[signal.Signals(number)])

    for each in SIGNAL_CODES:
        signal.signal(each, end)


def set_up(config: Config) -> None:
    """What the config says of devices and of other processes; before any device is touched."""
    if config.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    limit_tiles(config)
    join_processes(config)


def limit_tiles(config: Config) -> None:
    """Scanned blocks are compiled for a TPU in tiles as small as config.scan_tile_kib says; before libtpu is loaded.

    libtpu unrolls what it does with a tile, and that takes most of the time to compile. A limit that LIBTPU_INIT_ARGS
    has already stays.
    """
    present, limit = os.environ.get("LIBTPU_INIT_ARGS", ""), config.scan_tile_kib
    if limit < 0:
        limit = ESTIMATED_TILES.get((config.model.name, config.model.input_size), 0)
    if config.model.scan and limit and TILES not in present:
        os.environ["LIBTPU_INIT_ARGS"] = f"{present} {TILES}={limit}".strip()


def join_processes(config: Config) -> None:
    """Joins the other processes as the config says; before any device is touched.

    From then on jax ends this process (SIGABRT, with a message of its own) once another has been silent for
    distributed.heartbeat_timeout_seconds, or the first process, which keeps the list, is gone. Raises ValueError with
    the keys where the processes cannot be joined, or have not all come after initialization_timeout_seconds.
    """
    settings = config.distributed
    if not settings.enabled:
        return
    _claim_number(settings)
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


def _claim_number(settings: DistributedSettings) -> None:
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
        _process_locks.append(file)
    if number == 0:
        port = int(address.rpartition(":")[2])
        try:
            if socket.has_dualstack_ipv6():  # as jax does: for IPv4 and IPv6 at once
                socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
            else:
                socket.create_server(("", port)).close()
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
def abort_on_error() -> Iterator[None]:
    """Around what several processes do together: an error inside ends this one at once, see abort_all_processes."""
    try:
        yield
    except Exception as error:
        abort_all_processes(error)
        raise


def abort_all_processes(error: Exception) -> None:
    """After an error that one of several processes meets alone: logs it and ends the process. Returns for any other.

    The others notice, and end too. What jax raises where a sum over the processes fails means that another is gone.
    """
    if not jax.distributed.is_initialized() or isinstance(error, Stopped):
        return
    here = f"Process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, RunError):
        print(f"main.py: {here}: {error}", file=sys.stderr)
        leave(error.code)
    elif isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"main.py: {here}: another process has ended or cannot be reached; its own last words say why. Start all "
            f"of them again by the same command: they resume from the last checkpoint. ({_first_line(error)})",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
        leave(UNEXPECTED)
    leave(RunError.code)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


class WorkdirLock:
    """One run at a time in a workdir: a lock of the operating system on WORKDIR/lock, released at any death.

    The file stays when the lock goes: to remove it would let two processes have one each.
    `note`: what to log where the file system has no locks, which are then done without; else empty.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK_FILE
        self._file: IO[str] | None = None
        self.note = ""

    def take(self, token: str = "") -> None:
        """Takes the lock, again if its file was removed. Raises CannotStart where another process has it.

        token: what the other processes of the same run look for in the file, to know that they see the same workdir.
        """
        if self._file is not None:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                    return
        self.release()
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise CannotStart(self._in_use()) from error
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

    def _in_use(self) -> str:
        holder, who = lock_holder(self._path.parent), "Another process"
        if holder:
            who = f"Process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"
        return (
            f"{who} trains in --workdir={self._path.parent}. Wait for its end or end it, or use another --workdir. Its "
            "lock goes with it, however it ends."
        )


def lock_holder(workdir: Path) -> dict[str, Any]:
    """Who has, or last had, the workdir's lock: host, process, since and token; {} where that is not known."""
    try:
        holder = json.loads((workdir / LOCK_FILE).read_text())
    except (OSError, ValueError):  # not there, or about to be written
        return {}
    return holder if isinstance(holder, dict) else {}
