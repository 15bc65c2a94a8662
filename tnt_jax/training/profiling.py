"""A trace of a few training steps, as the config asks for it: what every device and the host did, and when.

In WORKDIR/profile, one folder a trace: TensorBoard with the xprof plugin reads it (`tensorboard --logdir WORKDIR`), and
ui.perfetto.dev opens its .trace.json.gz. With several processes each writes its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from tnt_jax.training import report

FOLDER = "profile"
Step = Callable[[Any, Any], tuple[Any, Any]]


class Profiler:
    """Traces steps first to first + count - 1; `profile_steps` () traces nothing.

    The trace starts once the step before has ended and ends with its last step. Evaluations and checkpoints between
    its steps are in it; those after its last step, or after the run's, are not. It is written too when the run ends
    early, by an error or at its last step.
    """

    def __init__(self, profile_steps: tuple[int, ...], workdir: Path) -> None:
        first, count = profile_steps or (0, 0)
        self._steps = range(first, first + count)
        self._folder = workdir / FOLDER
        self._running = False

    def around(self, train_step: Step, start: int) -> Step:
        """The training step, first called for step `start` + 1 -> the same, with its number in the trace."""
        if not self._steps:
            return train_step
        if start + 1 >= self._steps.stop:
            report.say(f"config.profile_steps: step {self._steps[-1]:,} is done already, so there is no trace of it.")
            return train_step
        if start + 1 > self._steps.start:
            self._steps = range(start + 1, self._steps.stop)
        done = start

        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            nonlocal done
            done += 1
            if done not in self._steps:
                return train_step(state, batch)
            if not self._running:
                jax.block_until_ready(state)
                jax.profiler.start_trace(self._folder)
                self._running = True
            with jax.profiler.StepTraceAnnotation("train", step_num=done):
                outcome = train_step(state, batch)
            if done == self._steps[-1]:
                jax.block_until_ready(outcome)
                self.close()
            return outcome

        return step

    def close(self) -> None:
        """Writes the trace, if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
            report.say(f"The trace of the profiled steps is in {self._folder}.")
