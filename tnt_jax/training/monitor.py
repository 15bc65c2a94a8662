"""Monitors a run: speed, waiting for data, memory, slow steps, non-finite steps, and profiles.

Profiles are in WORKDIR/profile, one folder per trace: TensorBoard with the xprof plugin reads them (`tensorboard
--logdir WORKDIR`), and ui.perfetto.dev opens their .trace.json.gz. Each of several processes writes its own.
"""

import collections
import concurrent.futures
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

from tnt_jax.training.config import Config
from tnt_jax.training.input_pipeline import Batch
from tnt_jax.training.logging import in_words, log, write_json
from tnt_jax.training.state import TrainState
from tnt_jax.training.steps import Results, TrainStep

# Dense bfloat16 peak of one jax device in FLOP/s (two per multiply-add), by prefix of `device_kind`.
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
# A training step costs one forward pass, and two more for the gradients of activations and weights.
FLOPS_PER_MULTIPLY_ADD = 2
PASSES = 3
CORE_FLOPS = 50e9  # FLOP/s of a CPU core in training: 62e9 on a Zen 5, 45e9 on a Xeon with AVX-512 (TNT-S, float32)
LONG = 600.0  # seconds of training from which an early estimate is logged
SMALL = 2e9  # multiply-adds up to which a model is no larger than TNT-Ti at 224 pixels
PROFILE_FOLDER = "profile"
NONFINITE_FIX = (
    "A lower config.learning_rate, a longer config.warmup_epochs, config.gradient_clip_norm=1 or "
    "config.model.dtype=float32 usually helps; config.nonfinite=skip skips single steps."
)
_BILLION = 1e9


def peak_flops(device_kind: str) -> float | None:
    """Returns the device's bfloat16 peak in FLOP/s, or None if it is not in the table."""
    return next((peak for name, peak in PEAK_FLOPS.items() if device_kind.startswith(name)), None)


def model_flops_utilization(images_per_second_per_device: float, multiply_adds: int, peak: float) -> float:
    """Returns the share, in 0..1, of the device's peak that the model's arithmetic uses (arXiv 2204.02311, appendix B).

    multiply_adds: of one image's forward pass. Recomputed activations do not count.
    """
    return images_per_second_per_device * multiply_adds * FLOPS_PER_MULTIPLY_ADD * PASSES / peak


def cpu_note(config: Config, multiply_adds: int, steps: int) -> str | None:
    """If training on a CPU takes long, returns an estimate and what to lower. multiply_adds: of a forward pass."""
    if jax.devices()[0].platform != "cpu":
        return None
    from tnt_jax.data.batches import usable_cores  # imports Grain, which takes a second

    cores = jax.process_count() * usable_cores()
    flops = steps * config.batch_size * multiply_adds * FLOPS_PER_MULTIPLY_ADD * PASSES
    seconds = flops / (cores * CORE_FLOPS)
    if config.freeze or seconds < LONG:  # frozen parameters save time, how much is not known
        return None
    if config.pretrained:
        other = "or --config.freeze='(\"(?!head/).*\",)' (the head alone: about a third)"
    elif multiply_adds > SMALL:
        other = "or a smaller --config.model.name (tnt_ti_patch16_224 is about a quarter of TNT-S)"
    else:
        other = "or a smaller model"
    return (
        f"Note: on {cores} CPU cores these {steps:,} steps take about {in_words(seconds)}, not counting "
        "evaluations, and longer on a busy machine. To shorten this: fewer --config.epochs, a smaller "
        f"--config.model.image_size (half the side takes a quarter), {other}."
    )


@dataclasses.dataclass(frozen=True)
class Interval:
    """Images of some training steps, the seconds they took, and the seconds the devices waited for data."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: "Interval") -> "Interval":
        return Interval(self.images + other.images, self.seconds + other.seconds, self.waited + other.waited)

    @property
    def images_per_second(self) -> float | None:
        """None if no step was timed."""
        return self.images / self.seconds if self.seconds > 0 else None

    @property
    def input_wait_share(self) -> float:
        """In 0..1."""
        return min(1.0, self.waited / self.seconds) if self.seconds > 0 else 0.0


def speed_metrics(interval: Interval, multiply_adds: int) -> dict[str, float]:
    """Returns images/s, images/s/device, the share of time the devices waited for data and, if the device's peak is
    known, the share of it; {} before any timing. multiply_adds: of one image's forward pass.
    """
    if interval.images_per_second is None:
        return {}
    per_device = interval.images_per_second / jax.device_count()
    speed = {"images_per_second": interval.images_per_second, "images_per_second_per_device": per_device}
    speed["input_wait_share"] = interval.input_wait_share
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is not None:
        speed["model_flops_utilization"] = model_flops_utilization(per_device, multiply_adds, peak)
    return speed


def memory_metrics() -> dict[str, float]:
    """Returns host_memory_gb, this process's now, and, if reported, device_memory_gb, its fullest device's peak."""
    values = {"host_memory_gb": host_memory() / _BILLION}
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    if peaks:
        values["device_memory_gb"] = max(peaks) / _BILLION
    return values


def host_memory() -> int:
    """Returns the bytes of memory that this process holds now."""
    return psutil.Process().memory_info().rss


class StepTimer:
    """Times training steps, without evaluations and checkpoints, and how long the devices wait for data.

    The first step of a session only starts the clock: it includes compilation. The loop may wait for a batch while the
    previous step still runs, which costs nothing; so a thread records when each step ends.
    """

    FEWEST = 10  # steps before "usual" means anything
    MARGIN = 1.0  # seconds; steps of milliseconds vary on a busy machine, and nobody minds

    def __init__(self, batch_size: int, slow_step_factor: float, clock: Callable[[], float] = time.perf_counter):
        self._batch_size = batch_size
        self._factor = slow_step_factor
        self._clock = clock
        self._since: float | None = None
        self._waited = 0.0  # seconds, of the step under way
        self._interval = Interval()  # since the last `take`
        self._session = Interval()
        self._pauses: list[float] = []  # seconds of each evaluation or checkpoint since the first step
        self._usual: collections.deque[float] = collections.deque(maxlen=100)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="step_end")
        self._running: concurrent.futures.Future[float] | None = None

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        """Returns the next batch; counts the time for which the devices are idle because it is not ready."""
        asked = self._clock()
        batch = next(batches)
        came = self._clock()
        if self._running is None:
            self._waited += came - asked
        elif self._running.done() and self._running.exception() is None:  # an error surfaces in the loop
            self._waited += max(0.0, came - max(asked, self._running.result()))
        return batch

    def dispatched(self, result: jax.Array) -> None:
        """Records that a step is under way; `result` is one of its arrays."""
        self._running = self._executor.submit(self._end_of, result)

    def _end_of(self, result: jax.Array) -> float:
        result.block_until_ready()
        return self._clock()

    def ended(self, step: int) -> str | None:
        """Records the end of a step -> a line to log if it took far longer than usual.

        That is slow_step_factor times the median of the last hundred steps, plus 1 s; never if the factor is 0.
        """
        now, since = self._clock(), self._since
        waited, self._since, self._waited = self._waited, now, 0.0
        if since is None:
            return None
        timed = Interval(self._batch_size, now - since, waited)
        self._interval += timed
        self._session += timed
        usual = statistics.median(self._usual) if len(self._usual) >= self.FEWEST else None
        self._usual.append(timed.seconds)
        if not self._factor or usual is None or timed.seconds < self._factor * usual + self.MARGIN:
            return None
        return (
            f"Step {step:,} took {timed.seconds:.1f} s instead of the usual {usual:.2g} s; for "
            f"{timed.input_wait_share:.0%} of it the devices waited for data."
        )

    def resume(self) -> None:
        """Restarts the clock after an evaluation or a checkpoint."""
        if self._since is not None:
            now = self._clock()
            self._pauses.append(now - self._since)
            self._since = now

    def take(self) -> Interval:
        """Returns the interval since the last call."""
        taken, self._interval = self._interval, Interval()
        return taken

    def images_per_second(self) -> float | None:
        """Images/s of the session so far, or None before the second step."""
        return self._session.images_per_second

    def seconds_left(self, steps: int, pauses: int = 0) -> float | None:
        """Estimates the seconds of `steps` and `pauses` (0 s each before the first); None before a timed step."""
        if not self._session.images:
            return None
        step = self._session.seconds / self._session.images * self._batch_size
        return steps * step + pauses * (statistics.mean(self._pauses) if self._pauses else 0.0)

    def first_estimate(self, steps: int) -> str | None:
        """After the first timed step, returns a line on how long `steps` more take, if that is long; else None."""
        left = self.seconds_left(steps)
        if self._session.images != self._batch_size or left is None or left < LONG:
            return None
        return f"A step takes {self._session.seconds:.2g} s: about {in_words(left)} left, evaluations not counted."

    def close(self) -> None:
        """Stops the thread."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Profiler:
    """Traces steps first to first + count - 1; `profile_steps` () traces nothing.

    The trace starts when the step before has ended and stops at the end of its last step. It includes evaluations and
    checkpoints between its steps, but none after its last step or the run's. It is also written when the run ends
    early, by an error or at its last step.
    """

    def __init__(self, profile_steps: tuple[int, ...], workdir: Path, start: int) -> None:
        """start: the step after which the session begins."""
        first, count = profile_steps or (0, 0)
        self._steps = range(max(first, start + 1), first + count)
        self._folder = workdir / PROFILE_FOLDER
        self._running = False
        if count and not self._steps:
            log(f"config.profile_steps: step {first + count - 1:,} is already done, so there is no trace of it.")

    def run(self, train_step: TrainStep, step: int, state: TrainState, batch: Batch) -> tuple[TrainState, Results]:
        """Calls the training step; traces it if it is one of `profile_steps`."""
        if step not in self._steps:
            return train_step(state, batch)
        if not self._running:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            outcome = train_step(state, batch)
        if step == self._steps[-1]:
            jax.block_until_ready(outcome)
            self.close()
        return outcome

    def close(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            log(f"The trace of the profiled steps is in {self._folder}.")


@dataclasses.dataclass
class Skips:
    """Counts of skipped non-finite steps; both are in every checkpoint, so that a resumed run keeps counting."""

    since_line: int = 0  # since the last log line
    in_a_row: int = 0  # up to now

    def count(self, finite: bool) -> None:
        """Counts one more step."""
        self.since_line += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1


def describe_nonfinite(config: Config, workdir: Path, step: int, results: Results, index: jax.Array) -> str:
    """Returns a description of a step whose loss, gradient or updated weights are not finite.

    Writes WORKDIR/nonfinite_STEP.json: its numbers and the indices of its examples in the training split.
    results: the step's, on the host. index: the batch's, on the devices; gathered from all processes.
    """
    own = np.concatenate([np.asarray(shard.data).ravel() for shard in index.addressable_shards])
    indices = multihost_utils.process_allgather(own).ravel() if jax.process_count() > 1 else own
    path = workdir / f"nonfinite_{step}.json"
    numbers = {name: float(results[name]) for name in ("loss", "gradient_norm", "learning_rate")}
    values = {
        "step": step,
        # JSON has neither NaN nor infinity.
        **{name: value if math.isfinite(value) else str(value) for name, value in numbers.items()},
        "data": config.data.name,
        "split": config.data.train_split,
        "indices": [int(number) for number in indices],
    }
    write_json(path, values)
    return (
        f"Step {step}: the loss, the gradient or the updated weights are not finite (loss {results['loss']:g}, "
        f"gradient norm {results['gradient_norm']:g}, learning rate {results['learning_rate']:g}). {path} lists the "
        "examples of its batch."
    )
