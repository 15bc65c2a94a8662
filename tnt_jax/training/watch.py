"""What a run costs while it goes: time in which the devices wait for data, memory of host and devices."""

import concurrent.futures
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

_STATUS = Path("/proc/self/status")
_BILLION = 1e9


class InputWait:
    """Takes batches, and tells how long the devices had nothing to do because one was not there.

    The loop may wait for a batch while the step before is still running, which costs nothing; so a thread notes when
    each step ends.
    """

    def __init__(self) -> None:
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="step_end")
        self._running: concurrent.futures.Future[float] | None = None

    def dispatched(self, result: jax.Array) -> None:
        """A step is under way; `result` is one of its arrays."""
        self._running = self._executor.submit(_end_of, result)

    def take(self, batches: Iterator[Any]) -> tuple[Any, float]:
        """-> the next batch, and the seconds for which the devices waited for it."""
        asked = time.perf_counter()
        batch = next(batches)
        came = time.perf_counter()
        if self._running is None:
            return batch, came - asked
        if not self._running.done():
            return batch, 0.0
        failed = self._running.exception() is not None  # the loop meets the same error when it reads the step
        return batch, 0.0 if failed else max(0.0, came - max(asked, self._running.result()))

    def close(self) -> None:
        """Ends the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _end_of(result: jax.Array) -> float:
    result.block_until_ready()
    return time.perf_counter()


def memory_metrics() -> dict[str, float]:
    """host_memory_gb, of this process now; device_memory_gb, the peak of its fullest device where the device tells."""
    values = {"host_memory_gb": host_memory() / _BILLION}
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    if peaks:
        values["device_memory_gb"] = max(peaks) / _BILLION
    return values


def host_memory() -> int:
    """Bytes of memory that this process holds now; where there is no /proc, the most it ever held."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
