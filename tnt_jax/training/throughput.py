"""How fast a run is: images a second, the share of the device's peak, the time left."""

import collections
import dataclasses
import statistics
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


@dataclasses.dataclass
class Interval:
    """Steps, the seconds they took, and those of them in which the devices waited for data."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def add(self, seconds: float, waited: float) -> None:
        """One step more."""
        self.steps += 1
        self.seconds += seconds
        self.waited += waited

    @property
    def input_wait_share(self) -> float:
        """In 0..1."""
        return min(1.0, self.waited / self.seconds) if self.seconds > 0 else 0.0


class Meter:
    """Counts training steps and the seconds they take, evaluation and checkpoints left out.

    The first step of a session only starts the clock: it holds the compilation.
    """

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter):
        self._batch_size = batch_size
        self._clock = clock
        self._since: float | None = None
        self._waited = 0.0  # of the step under way
        self._interval = Interval()  # since the last `take`
        self._session = Interval()

    def wait(self, seconds: float) -> None:
        """The devices had nothing to do for so long, because the batch was not there."""
        self._waited += seconds

    def tick(self) -> Interval | None:
        """A step's result has arrived -> the step, or None for the first one of a session."""
        now, step = self._clock(), None
        if self._since is not None:
            step = Interval(1, now - self._since, self._waited)
            for counter in (self._interval, self._session):
                counter.add(step.seconds, step.waited)
        self._since, self._waited = now, 0.0
        return step

    def resume(self) -> None:
        """Training goes on after something else took time."""
        if self._since is not None:
            self._since = self._clock()

    def take(self) -> Interval:
        """The steps since the last call."""
        taken, self._interval = self._interval, Interval()
        return taken

    def speed(self, interval: Interval) -> float | None:
        """Images a second of an interval, or None where no step was timed."""
        return interval.steps * self._batch_size / interval.seconds if interval.seconds > 0 else None

    def images_per_second(self) -> float | None:
        """Images a second of the session so far, or None before the second step."""
        return self.speed(self._session)

    def seconds_left(self, steps: int) -> float | None:
        """Seconds that so many steps will take at the session's speed."""
        return steps * self._session.seconds / self._session.steps if self._session.steps else None


class SlowSteps:
    """Tells steps that take far longer than usual: `factor` times the median of the last hundred, and 1 s more."""

    FEWEST = 10  # steps before "usual" means anything
    MARGIN = 1.0  # seconds; steps of milliseconds are unsteady on a busy machine, and nobody minds

    def __init__(self, factor: float):
        self._factor = factor
        self._usual: collections.deque[float] = collections.deque(maxlen=100)

    def message(self, step: int, timed: Interval | None) -> str | None:
        """What to say about a step of this number and duration, if anything."""
        if timed is None or not self._factor:
            return None
        usual = statistics.median(self._usual) if len(self._usual) >= self.FEWEST else None
        self._usual.append(timed.seconds)
        if usual is None or timed.seconds < self._factor * usual + self.MARGIN:
            return None
        return (
            f"Step {step:,} took {timed.seconds:.1f} s, the usual one {usual:.2g} s; for "
            f"{timed.input_wait_share:.0%} of it the devices waited for data."
        )


def in_words(seconds: float) -> str:
    """80.2 -> "1 min 20 s"; days and hours where there are any."""
    seconds = round(seconds)
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])
