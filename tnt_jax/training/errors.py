"""What ends a run that has begun."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


class RunError(RuntimeError):
    """A run that was possible cannot go on; the message says why and what remains."""

    code = 3  # main.py's exit code


class CannotStart(RunError):
    """A run that would not start, though its config and workdir are sound; nothing was written."""

    code = 2


class Stopped(RunError):
    """A signal asked the run to end. What it had come to is saved; the same command goes on from there."""

    def __init__(self, message: str, received: signal.Signals):
        super().__init__(message)
        self.signal = received
        self.code = 4 if received == signal.SIGTERM else 130


@contextlib.contextmanager
def writable(workdir: Path) -> Iterator[None]:
    """Inside it, an OSError (a full disk, a folder that is read-only by now) becomes a RunError."""
    try:
        yield
    except OSError as error:  # it was writable when it was checked
        raise RunError(
            f"--workdir={workdir} cannot be written any more: {error}. What was written before is there."
        ) from error


def readable(make_batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What `make_batches` gives; a damaged file, image or label (the data package names it) is a RunError."""
    try:
        yield from make_batches()
    except (ValueError, OSError) as error:
        raise RunError(f"The data cannot be read any further. {error}") from error
