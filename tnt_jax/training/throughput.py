"""How fast a run is: images a second, the share of the device's peak, the time left."""

import time
from collections.abc import Callable

# Dense bfloat16 multiply-add peak of one jax device in FLOP/s (two a multiply-add), by the start of `device_kind`.
# From the vendors' data sheets; a v4 or v5p device is a chip (two cores). First match counts, so longer names first.
PEAK_FLOPS = {
    "TPU v4 lite": 138e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}
# A training step costs the forward pass, and twice as much for the gradients of activations and of weights.
FLOPS_PER_MULTIPLY_ADD = 2
PASSES = 3


def peak_flops(device_kind: str) -> float | None:
    """The device's bfloat16 peak in FLOP/s, or None where it is not in the table."""
    return next((peak for name, peak in PEAK_FLOPS.items() if device_kind.startswith(name)), None)


def model_flops_utilization(images_per_second_per_device: float, multiply_adds: int, peak: float) -> float:
    """The share, in 0..1, of the device's peak that the model's own arithmetic takes (arXiv 2204.02311, appendix B).

    multiply_adds: of one image's forward pass. Recomputed activations do not count.
    """
    return images_per_second_per_device * multiply_adds * FLOPS_PER_MULTIPLY_ADD * PASSES / peak


class Meter:
    """Counts training steps and the seconds they take, evaluation and checkpoints left out.

    The first step of a session only starts the clock: it holds the compilation.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter):
        self._batch_size = batch_size
        self._clock = clock
        self._since: float | None = None
        self._interval = [0, 0.0]  # steps, seconds since the last `take`
        self._session = [0, 0.0]

    def tick(self) -> None:
        """A step's result has arrived."""
        now = self._clock()
        if self._since is not None:
            for counter in (self._interval, self._session):
                counter[0] += 1
                counter[1] += now - self._since
        self._since = now

    def resume(self) -> None:
        """Training goes on after something else took time."""
        if self._since is not None:
            self._since = self._clock()

    def take(self) -> float | None:
        """Images a second since the last call, or None where no step was timed."""
        steps, seconds = self._interval
        self._interval = [0, 0.0]
        return steps * self._batch_size / seconds if seconds > 0 else None

    def images_per_second(self) -> float | None:
        """Images a second of the session so far, or None before the second step."""
        steps, seconds = self._session
        return steps * self._batch_size / seconds if seconds > 0 else None

    def seconds_left(self, steps: int) -> float | None:
        """Seconds that so many steps will take at the session's speed."""
        done, seconds = self._session
        return steps * seconds / done if done else None


def in_words(seconds: float) -> str:
    """80.2 -> "1 min 20 s"; days and hours where there are any."""
    seconds = round(seconds)
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])
