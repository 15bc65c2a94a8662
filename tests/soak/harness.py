"""Runs of main.py that are killed at chosen moments and started again by the same command."""

import dataclasses
import os
import pathlib
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).parents[2]
PHASES = ("start-up", "step", "evaluation", "checkpoint")
PATIENCE = 900  # seconds for one process; a busy machine may stall it now and then


@dataclasses.dataclass(frozen=True)
class Plan:
    """A tiny TNT with everything that a run must carry over: drop path, mixing, averages, sums, two devices."""

    steps: int
    log_every: int = 5
    checkpoint_every: int = 10
    eval_every: int = 20
    examples: int = 2048  # per split; enough for an evaluation that a kill can hit

    def flags(self, workdir: pathlib.Path) -> list[str]:
        keys = {
            "model.name": "tnt_ti_patch16_224", "model.image_size": 32, "model.patch_size": 8, "model.word_size": 4,
            "model.inner_dim": 4, "model.outer_dim": 16, "model.inner_num_heads": 1, "model.outer_num_heads": 1,
            "model.depth": 1, "model.num_classes": 1000, "model.dtype": "float32", "model.drop_path_rate": 0.2,
            "data.name": "synthetic", "data.synthetic_examples": self.examples, "data.eval_split": "test",
            "batch_size": 32, "eval_batch_size": 64, "learning_rate": 0.02, "epochs": self.steps * 32 / self.examples,
            "warmup_epochs": 0.01, "cooldown_epochs": 0.0, "schedule_unit": "step", "ema_decay": 0.9,
            "steps": self.steps, "log_every_steps": self.log_every, "cpu_devices": 2,
            "checkpoint_every_steps": self.checkpoint_every, "eval_every_steps": self.eval_every,
        }  # fmt: skip
        named = [f"--config.{key}={value}" for key, value in keys.items()]
        return ["--config=configs/default.py", f"--workdir={workdir}", *named]


class Session:
    """One process of main.py, and its output so far."""

    def __init__(
        self,
        plan: Plan,
        workdir: pathlib.Path,
        cache: pathlib.Path | None,
        xla_flags: str = "",
        more: tuple[str, ...] = (),
    ):
        patience = "--xla_cpu_collective_call_terminate_timeout_seconds=1200"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{xla_flags} {patience}"}
        environment.pop("JAX_CPU_ENABLE_ASYNC_DISPATCH", None)
        if cache is not None:
            environment |= {
                "JAX_COMPILATION_CACHE_DIR": str(cache),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
            }
        self.plan, self.workdir, self.lines = plan, workdir, []
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "main.py", *plan.flags(workdir), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self.process.stdout:
            self._said.put(line.rstrip())
        self._said.put(None)

    def wait_for(self, pattern: str) -> bool:
        """Waits for a new line that matches; returns False if the process ends first."""
        deadline = time.monotonic() + PATIENCE
        while (line := self._said.get(timeout=deadline - time.monotonic())) is not None:
            self.lines.append(line)
            if re.search(pattern, line):
                return True
        self._said.put(None)  # for the next call
        return False

    def end(self) -> int:
        """Waits for the end -> the exit code."""
        self.wait_for(r"$^")
        return self.process.wait(PATIENCE)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Sends the signal and waits for the end -> the exit code."""
        self.process.send_signal(number)
        return self.end()

    def reach(self, phase: str, target: int, draw: random.Random) -> None:
        """Waits until the process is in the phase, for the first time at or after the target step."""
        if phase == "start-up":
            self.wait_for_seconds(draw.uniform(0.2, 12.0))
            return
        every = self.plan.eval_every if phase == "evaluation" else self.plan.log_every
        target = -(-target // every) * every
        if not self.wait_for(rf"^step {target:,}/"):
            raise RuntimeError("\n".join(self.lines))
        if phase == "checkpoint":
            while self.process.poll() is None and not self.writing():
                time.sleep(0.001)
        time.sleep(draw.uniform(0.0, {"step": 0.1, "evaluation": 0.2, "checkpoint": 0.05}[phase]))

    def wait_for_seconds(self, seconds: float) -> None:
        """Waits until `seconds` after the start, or until the first line about the run's steps."""
        while (left := self.started + seconds - time.monotonic()) > 0:
            try:
                line = self._said.get(timeout=left)
            except queue.Empty:
                return
            if line is None:
                self._said.put(None)
                return
            self.lines.append(line)
            if line.startswith("step "):
                return

    def last_step(self) -> int:
        """Returns the last step logged; 0 before the first."""
        found = [re.match(r"step ([\d,]+)/", line) for line in self.lines]
        return max((int(each[1].replace(",", "")) for each in found if each), default=0)

    def writing(self) -> bool:
        """Returns whether a checkpoint is half written."""
        return any((self.workdir / "checkpoints").glob("*orbax-checkpoint-tmp"))

    def hit(self) -> tuple[str, ...]:
        """Returns the phases hit by a kill, by what it left; a checkpoint write overlaps a step or evaluation."""
        trained = [line for line in self.lines if line.startswith(("step ", "evaluation at"))]
        if not trained:
            return ("start-up",)
        due = trained[-1].startswith("step ") and self.last_step() % self.plan.eval_every == 0
        return ("evaluation" if due else "step", *["checkpoint"] * self.writing())
