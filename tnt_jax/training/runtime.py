"""The process of a run: errors that end it, signals, devices, other processes and the workdir's lock."""

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
LATER = 60  # seconds from our timeout to jax's own
TILES = "--xla_tpu_scoped_vmem_limit_kib"  # limit on vector memory for the tiles of one operation on a TPU
# Model and image size -> that limit in KiB for scanned blocks; by estimate a step costs about the same (docs/tpu.md).
ESTIMATED_TILES = {("tnt_s_patch16_224", (224, 224)): 6144}
SIGNAL_CODES = {signal.SIGTERM: 4, signal.SIGINT: 130}  # main.py's exit codes
LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
T = TypeVar("T")
_process_locks: list[IO[str]] = []  # on this process's number, held until the process ends


class RunError(RuntimeError):
    """A valid run has to stop; the message has the cause and what remains."""

    code = 3  # main.py's exit code


class CannotStart(RunError):
    """A run with a valid config and workdir cannot start; nothing was written."""

    code = 2


class Stopped(RunError):
    """A signal stopped the run. Its state is saved; the same command resumes from there."""

    def __init__(self, message: str, received: signal.Signals):
        super().__init__(message)
        self.signal = received
        self.code = SIGNAL_CODES[received]


@contextlib.contextmanager
def writable(workdir: Path) -> Iterator[None]:
    """Turns an OSError in its body (a full disk, a folder that has become read-only) into a RunError."""
    try:
        yield
    except OSError as error:  # it was writable when it was checked
        raise RunError(
            f"--workdir={workdir} can no longer be written: {error}. What was written before remains; once that is "
            "solved, the same command resumes from the newest checkpoint."
        ) from error


def readable(make_batches: Callable[[], Iterator[T]]) -> Iterator[T]:
    """Yields from `make_batches`; a damaged file, image or label (named by the data package) raises RunError."""
    try:
        yield from make_batches()
    except (ValueError, OSError) as error:
        raise RunError(f"The data cannot be read any further. {error}") from error


class PreemptionGuard:
    """Inside `with`, records SIGTERM and SIGINT instead of ending the process; a SIGINT after that ends it at once.

    SIGTERM means preemption, SIGINT Ctrl-C or a notebook's stop button. Several processes must stop at the same step:
    jax's preemption service, which jax.distributed starts, takes SIGTERM in any of them and agrees with the others on
    a step. Only Python's main thread receives signals; in other threads the guard does nothing.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._agrees = jax.distributed.is_initialized()  # whether jax's preemption service runs

    def __enter__(self) -> "PreemptionGuard":
        if threading.current_thread() is threading.main_thread():
            # With jax.distributed, the service handles SIGTERM.
            for each in SIGNAL_CODES if not self._agrees else (signal.SIGINT,):
                self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._received = signal.Signals(number)
        # os.write, since a handler may interrupt a print.
        os.write(2, f"main.py: {self._received.name}: stopping after this step. Ctrl-C ends at once.\n".encode())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._agrees:
            signal.raise_signal(signal.SIGTERM)  # so that the service notifies the others

    def should_stop(self, step: int) -> bool:
        """Whether to stop after this step; the same in all processes, each of which must call it at every step."""
        if self._agrees:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def should_stop_now(self) -> bool:
        """Whether a single process has to stop, at any time; always False with several, which agree on a step."""
        return self._received is not None and not self._agrees

    @property
    def signal(self) -> signal.Signals:
        """The recorded signal; SIGTERM if jax's service or another process received it."""
        return self._received or signal.SIGTERM


def exit_on_signals() -> None:
    """Makes SIGTERM and SIGINT end this process with a message and their exit codes, before and after training.

    Without unwinding: TensorFlow turns a SystemExit during its import into another error.
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
    """Applies the config's settings for devices and processes; call it before any device is used."""
    if config.cpu_devices:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    limit_tiles(config)
    join_processes(config)


def limit_tiles(config: Config) -> None:
    """Limits the tiles of scanned blocks on a TPU to config.scan_tile_kib; call it before libtpu is loaded.

    libtpu unrolls the work on a tile, which takes most of the compile time. A limit already in LIBTPU_INIT_ARGS stays.
    """
    present, limit = os.environ.get("LIBTPU_INIT_ARGS", ""), config.scan_tile_kib
    if limit < 0:
        limit = ESTIMATED_TILES.get((config.model.name, config.model.input_size), 0)
    if config.model.scan and limit and TILES not in present:
        os.environ["LIBTPU_INIT_ARGS"] = f"{present} {TILES}={limit}".strip()


def join_processes(config: Config) -> None:
    """Joins the other processes as config.distributed describes; call it before any device is used.

    From then on jax ends this process (SIGABRT, with its own message) if another has been silent for
    distributed.heartbeat_timeout_seconds, or if the first process, the coordinator, is gone. Raises ValueError with
    the keys if the processes cannot be joined, or not all have joined after initialization_timeout_seconds.
    """
    settings = config.distributed
    if not settings.enabled:
        return
    _claim_number(settings)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # for processes without accelerators
    error = _in_time(lambda: _initialize(settings), settings.initialization_timeout_seconds)
    if error is not None:
        raise ValueError(
            f"config.distributed: the processes could not be joined: {_first_line(error)}. Outside TPU, Slurm, Open "
            "MPI and Kubernetes, give every process config.distributed.coordinator_address (host:port of the first "
            "process, a free port), num_processes, and its own process_id, from 0."
        ) from error
    if jax.process_count() > 1 and faulthandler.is_enabled():
        faulthandler.disable()  # absl's: tracebacks of all threads would bury jax's message


def _claim_number(settings: DistributedSettings) -> None:
    """Raises ValueError if another process on this machine has this one's number, or the coordinator's port is taken.

    jax would end the process by a signal, after pages of output that name neither.
    """
    address, number = settings.coordinator_address, settings.process_id
    if not address or number < 0:  # they come from the cluster's environment
        return
    name = re.sub("[^0-9A-Za-z.-]", "_", f"tnt_jax_{os.getuid()}_{address}_{number}")
    with contextlib.suppress(PermissionError, FileNotFoundError):  # no folder for the lock: go without
        file = (Path(tempfile.gettempdir()) / name).open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"config.distributed.process_id={number} is taken: another process on this machine has joined "
                f"{address} with it. Give every process its own number, from 0."
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
                    f"config.distributed.coordinator_address={address}: port {port} on this machine is taken. Give all "
                    "processes another, or stop the program that listens there."
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
    """Calls a function for at most `seconds` -> the exception it raised, TimeoutError or None.

    Runs it in a thread, so that signals are handled meanwhile: jax waits outside Python, and its own timeout aborts
    the process. After a TimeoutError the thread keeps waiting; the process has to end.
    """
    raised: list[Exception] = []

    def call() -> None:
        try:
            function()
        except Exception as error:  # ValueError, TypeError, RuntimeError or jax's own, depending on the cause
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return TimeoutError(f"not all of them joined within {seconds:g} s (initialization_timeout_seconds)")
    return raised[0] if raised else None


def leave(code: int) -> NoReturn:
    """Ends the process at once after a failure, so that its message is the last output and other processes notice.

    A normal exit would wait for the others in jax.distributed.shutdown, while they wait for this one in a sum, and
    minutes for the threads of a checkpoint that cannot be written.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def abort_on_error() -> Iterator[None]:
    """For code that several processes run together: an error in it ends this one at once, see abort_all_processes."""
    try:
        yield
    except Exception as error:
        abort_all_processes(error)
        raise


def abort_all_processes(error: Exception) -> None:
    """Logs an error and ends the process, so that the others notice and end too.

    Returns without jax.distributed, and for Stopped, which all processes raise. A JaxRuntimeError comes from a failed
    sum over the processes: another process is gone.
    """
    if not jax.distributed.is_initialized() or isinstance(error, Stopped):
        return
    here = f"Process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, RunError):
        print(f"main.py: {here}: {error}", file=sys.stderr)
        leave(error.code)
    elif isinstance(error, jax.errors.JaxRuntimeError):
        print(
            f"main.py: {here}: another process has ended or cannot be reached; its last message says why. Start all "
            f"of them again with the same command: they resume from the last checkpoint. ({_first_line(error)})",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
        leave(UNEXPECTED)
    leave(RunError.code)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")


class WorkdirLock:
    """Allows one run at a time in a workdir: an operating-system lock on WORKDIR/lock, released however it ends.

    The file stays after the release: removing it would let two processes hold one each.
    `note`: what to log if the file system has no locks, in which case the run goes without; else empty.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / LOCK_FILE
        self._file: IO[str] | None = None
        self.note = ""

    def take(self, token: str = "") -> None:
        """Takes the lock, again if its file was removed. Raises CannotStart if another process has it.

        token: the other processes of the run look for it in the file, to check that they see the same workdir.
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
                f"{self._path.parent} is on a file system without locks ({error.strerror}): nothing keeps a second "
                "process from training there. Start only one."
            )
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": since, "token": token}
        file.write(json.dumps(holder) + "\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """Releases the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _in_use(self) -> str:
        holder, who = lock_holder(self._path.parent), "Another process"
        if holder:
            who = f"Process {holder.get('process')} on {holder.get('host')} (since {holder.get('since')})"
        return (
            f"{who} trains in --workdir={self._path.parent}. Wait for it, stop it, or use another --workdir. Its "
            "lock is released however it ends."
        )


def lock_holder(workdir: Path) -> dict[str, Any]:
    """Returns who has, or last had, the workdir's lock: host, process, since and token; {} if unknown."""
    try:
        holder = json.loads((workdir / LOCK_FILE).read_text())
    except (OSError, ValueError):  # missing, or being written
        return {}
    return holder if isinstance(holder, dict) else {}
