"""A run that is asked to end: SIGTERM (a machine that is taken away) and SIGINT (Ctrl-C, or a notebook's stop button).

One process notes the signal, and the loop asks after every step. Several processes have to stop at the same step: jax's
preemption service, which jax.distributed starts, takes SIGTERM on any of them and agrees with the others on a step.
"""

import os
import signal
import sys
import threading
from collections.abc import Mapping
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Notice:
    """Inside `with`, the signals are noted instead of ending the process; a second SIGINT ends it at once.

    Only the main thread of Python receives signals; in another one there is nothing to note.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._agrees = jax.distributed.is_initialized()  # whether jax's preemption service is there

    def __enter__(self) -> "Notice":
        if threading.current_thread() is threading.main_thread():
            # With jax.distributed, SIGTERM is the service's.
            for each in SIGNALS if not self._agrees else (signal.SIGINT,):
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

    def reached(self, step: int) -> bool:
        """Whether the run has to end after this step: the same answer in all processes, which all ask at every step."""
        if self._agrees:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None

    def received(self) -> bool:
        """Whether a process that is alone has to end, at any moment; several agree on a step only."""
        return self._received is not None and not self._agrees

    @property
    def signal(self) -> signal.Signals:
        """What this process received; of several, those that others have told end as by SIGTERM."""
        return self._received or signal.SIGTERM


def end_at_once(codes: Mapping[signal.Signals, int]) -> None:
    """Has each signal end this process with a message and its exit code, wherever it is: before and after training.

    Without unwinding: TensorFlow makes another error of a SystemExit that meets it while it is imported.
    """

    def end(number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        text = f"main.py: {name}: ended with nothing new to save. The same command starts again, or goes on."
        print(text, file=sys.stderr, flush=True)
        os._exit(codes[signal.Signals(number)])

    for each in codes:
        signal.signal(each, end)
