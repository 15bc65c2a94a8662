"""A process that runs in turns: the parent's end of the pipe, the worker's end, and the process's memory.

Imports only the standard library, because the baseline's interpreter has neither jax nor tnt_jax.

The worker starts with its case as its argument and writes lines of JSON. It sends {"ready": {...}} once everything is
compiled and warm, or {"error": TEXT}; it answers "turn" with {"seconds": S} for its fixed number of steps, and "end"
with {"memory_bytes": N or null, "memory_basis": TEXT}.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEAK_RESIDENT = "peak resident memory of the process while stepping, libraries included"
PEAK_SINCE_START = "peak resident memory of the process, compilation and libraries included"


class WorkerError(RuntimeError):
    """The worker cannot run its case; the message is the worker's."""


class Worker:
    """A started worker. Its methods block until it answers; between turns it sleeps in a read."""

    def __init__(self, command: list[str], case: dict[str, Any], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [*command, json.dumps(case)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def ready(self) -> dict[str, Any]:
        """Waits for the end of the warm-up -> the worker's description. Raises WorkerError."""
        return self._answer()["ready"]

    def turn(self) -> float:
        """Runs a turn -> the seconds that its steps took. Raises WorkerError."""
        return self._ask("turn")["seconds"]

    def end(self) -> dict[str, Any]:
        """Ends the process -> memory_bytes and memory_basis. Raises WorkerError."""
        answer = self._ask("end")
        self.close()
        return answer

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def _ask(self, question: str) -> dict[str, Any]:
        try:
            self._process.stdin.write(question + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; _answer reports how
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            cause = "killed, most likely for lack of memory" if status == -9 else "its message is above"
            raise WorkerError(f"the process ended with status {status} ({cause})")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise WorkerError(answer["error"])
        return answer


class Side:
    """What a worker times. A subclass opens its case in `open` and defines the rest."""

    def open(self, case: dict[str, Any]) -> dict[str, Any]:
        """Builds and compiles the case -> its description. Raises ValueError for an impossible case."""
        raise NotImplementedError

    def run(self, steps: int) -> None:
        """Runs this many steps and waits for the last one."""
        raise NotImplementedError

    def watch_memory(self) -> None:
        """Resets the peak."""
        reset_peak_memory()

    def memory(self) -> tuple[int | None, str]:
        """Returns (peak in bytes since `watch_memory` or None, what it measures)."""
        return peak_memory()

    def out_of_memory(self, error: Exception) -> bool:
        """Whether the error means out of memory."""
        return isinstance(error, MemoryError)


def serve(make_side: Callable[[], Side]) -> None:
    """Runs the worker. The case has threads (0: all), warmup_steps, turn_seconds, and what the side needs."""
    # Libraries may print to standard output; the pipe must carry only answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    case = json.loads(sys.argv[1])
    if case["threads"]:
        limit_threads(case["threads"])
    side = make_side()
    try:
        start = time.perf_counter()
        description = side.open(case)
        side.run(1)
        description["first_step_seconds"] = time.perf_counter() - start
        side.watch_memory()
        steps = steps_a_turn(side, case["warmup_steps"], case["turn_seconds"])
        answer(ready=description | {"steps_a_turn": steps})
        for line in sys.stdin:
            if line.strip() == "turn":
                answer(seconds=timed(side, steps))
            else:
                memory_bytes, basis = side.memory()
                answer(memory_bytes=memory_bytes, memory_basis=basis)
    except ValueError as error:
        answer(error=str(error))
    except Exception as error:
        if not side.out_of_memory(error):
            raise
        answer(error=f"out of memory: {str(error).splitlines()[0]}")


def steps_a_turn(side: Side, warmup_steps: int, turn_seconds: float) -> int:
    """Runs the warm-up -> the number of steps in a turn, by the time of its last step."""
    for _ in range(warmup_steps - 1):
        side.run(1)
    return max(1, math.ceil(turn_seconds / timed(side, 1)))


def timed(side: Side, steps: int) -> float:
    """Returns the seconds that this many steps take, to the end of the last one."""
    start = time.perf_counter()
    side.run(steps)
    return time.perf_counter() - start


def limit_threads(threads: int) -> None:
    """Limits this process and all threads that it starts from now on to this many cores (Linux only)."""
    if not hasattr(os, "sched_setaffinity"):
        raise OSError("--threads needs Linux: elsewhere a process cannot be limited to some cores. Leave it out.")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def reset_peak_memory() -> None:
    """Resets the process's peak resident memory to its current value, if Linux allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        reset_peak_memory.failed = True


reset_peak_memory.failed = False


def peak_memory() -> tuple[int | None, str]:
    """Returns (peak resident memory in bytes, what that includes); None if the system does not report it."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        found = None
    if found is None:
        return None, "not known on this system"
    return int(found.group(1)) * 1024, PEAK_SINCE_START if reset_peak_memory.failed else PEAK_RESIDENT
