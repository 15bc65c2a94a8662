"""The training loop, from the first step or the newest checkpoint to the summary.

The trainer only schedules; the other files of this folder do the work.
"""

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from tnt_jax import workdir as workdirs
from tnt_jax.data.decoding import DECODER
from tnt_jax.models.fast.stacking import unstack_blocks
from tnt_jax.training import agreement, checkpoints, logging, memory, monitor, runtime, steps
from tnt_jax.training.config import as_dict
from tnt_jax.training.evaluate import evaluate_split
from tnt_jax.training.evaluation import Result, means
from tnt_jax.training.input_pipeline import prefetch
from tnt_jax.training.logging import log
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.runtime import RunError, Stopped, WorkdirLock
from tnt_jax.training.setup import AnyConfig, Run, prepare
from tnt_jax.training.state import TrainState, create_state, initial_state, replicate, stack_layers, unreplicate

# Metadata of a run that has no checkpoint yet. Checkpoints of earlier versions lack the last two keys.
NEW_RUN = {"seconds": 0.0, "best_accuracy": None, "skipped": {"since_line": 0, "in_a_row": 0}, "evaluation_due": False}


def train_and_evaluate(config: AnyConfig, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains a config (configs/default.py) in a workdir -> the summary, also written to WORKDIR/summary.json.

    Raises ValueError, FileNotFoundError or PermissionError for invalid arguments, before anything is written.
    """
    return train(prepare(config, workdir))


def train(run: Run) -> dict[str, Any]:
    """Trains from the first step, or from the newest checkpoint in the workdir, to the end -> the summary.

    Raises RunError if a step is not finite, memory runs out, an example or every checkpoint is unreadable, or the
    workdir cannot be written; Stopped after SIGTERM or SIGINT, once the step under way is saved.
    """
    started = time.monotonic()
    with (
        runtime.abort_on_error(),
        runtime.writable(run.workdir),
        memory.enough(),
        runtime.PreemptionGuard() as guard,
    ):
        agreement.check_same_start(run)
        saved = workdirs.checkpoint_steps(run.workdir)
        summary = logging.summary_at(run.workdir, saved[-1]) if saved and saved[-1] >= run.plan.total_steps else None
        if summary is not None:
            log(f"All {run.plan.total_steps:,} steps are done.")
            log(logging.last_line(summary, run.workdir / workdirs.SUMMARY_FILE))
            return summary
        with enter_workdir(run) as lock:
            trainer = Trainer(run, guard, lock, started)
            try:  # aborts at once: the cleanup below would wait for the other processes
                with runtime.abort_on_error(), runtime.writable(run.workdir), memory.enough():
                    return trainer.train()
            finally:
                trainer.close()


@contextlib.contextmanager
def enter_workdir(run: Run) -> Iterator[WorkdirLock]:
    """Creates the workdir and its files, and holds its lock. By now every process has inspected the old content."""
    lock = WorkdirLock(run.workdir)
    try:
        token = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        if jax.process_index() == 0:
            run.workdir.mkdir(parents=True, exist_ok=True)
            lock.take(token)
            if lock.note:
                log(f"Note: {lock.note}")
        agreement.check_same_workdir(run, token)
        logging.write_run_files(run)
        yield lock
    finally:
        lock.release()


class Trainer:
    """A run and its state while one process trains it; starts from the newest checkpoint, if there is one."""

    def __init__(self, run: Run, guard: runtime.PreemptionGuard, lock: WorkdirLock, started: float):
        self._run, self._config, self._plan = run, run.config, run.plan
        self._guard, self._lock, self._started = guard, lock, started
        self._schedule = make_schedule(run.config, run.plan.steps_per_epoch)
        self._optimizer = make_optimizer(run.config, self._schedule)
        self.checkpoints = checkpoints.Checkpoints(run.workdir, run.config.keep_checkpoints)
        self.state, metadata, resumed = self._restore_or_create()
        self._seconds_before = metadata["seconds"]  # training time of earlier sessions
        self._best_accuracy = metadata["best_accuracy"]  # so far, the better of raw and averaged weights
        self._evaluation_due = metadata["evaluation_due"]  # the last session stopped before it
        self._skips = monitor.Skips(**metadata["skipped"])
        self._results: dict[str, Result] = {}  # of the last evaluation
        if jax.process_index() == 0:
            for note in logging.truncate_logs_after(run.workdir, int(self.state.step), self._evaluation_due):
                log(f"Note: {note}")
        self._writer = logging.MetricsWriter(run.workdir, self._progress)
        if not resumed:
            self._writer.write_config(as_dict(run.config))
        self._timer = monitor.StepTimer(run.config.batch_size, run.config.slow_step_factor)
        self._profiler = monitor.Profiler(run.config.profile_steps, run.workdir, int(self.state.step))
        self._eval_step = steps.make_eval_step(run.config, run.model)

    def train(self) -> dict[str, Any]:
        """Runs the remaining steps -> the summary."""
        parameters = logging.log_start(self._run, self.state.params)
        for line in self._run.pipeline.found:
            log(line)
        step, state = int(self.state.step), replicate(stack_layers(jax.device_get(self.state), self._config))
        self.state = None  # frees the host's copy
        if self._evaluation_due:
            self._make_up_for_evaluation(state, step)
        state = self._train_from(state, step)
        if not self._results:  # no step was left to run, but there is no summary
            self._results = self._evaluate(state)
        step = int(unreplicate(state.step))
        self.checkpoints.wait()
        if not self._results:
            raise self._stopped(step)
        return self._summarize(parameters, step)

    def close(self) -> None:
        """Stops the profiler and the background threads, and closes the files."""
        self._profiler.close()
        self._timer.close()
        self._writer.close()
        self.checkpoints.close()

    def _seconds(self) -> float:
        """Training time so far, over all sessions, including start-up."""
        return self._seconds_before + time.monotonic() - self._started

    def _progress(self, step: int) -> dict[str, float]:
        return {"epoch": step / self._plan.steps_per_epoch, "seconds": round(self._seconds(), 3)}

    def _restore_or_create(self) -> tuple[TrainState, dict[str, Any], bool]:
        """-> (initial state on the host, its checkpoint's metadata or NEW_RUN, whether there is a checkpoint)."""
        run, config = self._run, self._config
        for note in run.notes:
            log(f"Note: {note}")
        restored = self.checkpoints.restore_newest(
            jax.eval_shape(lambda: initial_state(config, run.model, self._optimizer))
        )
        if restored is None:
            if run.pretrained is not None:
                log(f"Starting from {run.pretrained_label}")
            return create_state(config, run.model, self._optimizer, run.pretrained), NEW_RUN, False
        state, metadata = restored[0], NEW_RUN | restored[1]
        step = int(state.step)
        log(f"Resuming from step {step:,}, {run.workdir / workdirs.FOLDER / str(step)}")
        agreement.check_same_step(run, step)
        agreement.check_same_model(run, metadata)
        for note in agreement.resume_notes(run, metadata):
            log(f"Note: {note}")
        if logging.summary_at(run.workdir, step):
            log(
                f"Note: the run ended there and now resumes to step {self._plan.total_steps:,}. The learning rate "
                f"schedule is still that of {config.epochs:g} + {config.cooldown_epochs:g} epochs."
            )
        return state, metadata, True

    def _train_from(self, state: TrainState, start: int) -> TrainState:
        """Replicated state after `start` steps -> after all steps. Step n runs while step n - 1 is reported."""
        if start >= self._plan.total_steps:
            log(f"All {self._plan.total_steps:,} steps are done.")
            return state
        train_step = steps.make_train_step(
            self._config,
            self._run.model,
            self._optimizer,
            self._schedule,
            log_every_steps=self._plan.log_every_steps,
            class_weights=self._run.class_weights,
            teacher=self._run.teacher,
        )
        beside = {}
        if teacher := self._run.teacher:
            log(f"Learning from {self._config.distillation.teacher} ({teacher.label}) as well as from the labels")
            beside = {"teacher": replicate(teacher.params)}
        if not start and (note := monitor.cpu_note(self._config, self._run.multiply_adds, self._plan.total_steps)):
            log(note)  # a resumed run cannot change the keys it suggests
        batches = prefetch(runtime.readable(lambda: self._run.pipeline.train(start)), self._config.prefetch_batches)
        waiting: tuple[int, steps.Results, jax.Array] | None = None
        for step in range(start + 1, self._plan.total_steps + 1):
            batch = self._timer.next_batch(batches) | beside
            if step == start + 1:  # jax keeps the compiled step: nothing is compiled twice
                log("Compiling the training step once (for a large model on a CPU: minutes).")
                log(memory.need_message(train_step.lower(state, batch).compile(), self._config))
            state, results = self._profiler.run(train_step, step, state, batch)
            self._timer.dispatched(results["finite"])
            if waiting is not None:
                self._report(*waiting)
            waiting = step, results, batch["index"]
            stopping = self._guard.should_stop(step)
            if stopping or self._plan.evaluates(step) or self._plan.checkpoints(step):
                self._report(*waiting)  # never evaluate or save a non-finite state
                waiting = None
                if stopping or step == self._plan.total_steps:
                    self._profiler.close()  # evaluation and checkpoint are not part of the step
                self._evaluate_and_save(state, step, stopping)
                self._timer.resume()
        return state

    def _report(self, step: int, results: steps.Results, index: jax.Array) -> None:
        """Waits for the step, raises RunError or skips it if it is not finite, and writes the metrics due."""
        finite = bool(unreplicate(results["finite"]))
        slow = self._timer.ended(step)
        for line in (slow, self._timer.first_estimate(self._plan.total_steps - step)):
            if line is not None:
                log(line)
        self._skips.count(finite)
        if finite and not self._plan.logs(step):
            return
        results = unreplicate(results)
        if not finite:
            self._stop_or_skip(step, results, index)
            if not self._plan.logs(step):
                return
        skips = self._config.nonfinite == "skip"
        values = means(results["sums"])
        values["learning_rate"] = float(results["learning_rate"])
        if skips:
            values["skipped_steps"] = self._skips.since_line
            self._skips.since_line = 0
        values |= monitor.speed_metrics(self._timer.take(), self._run.multiply_adds) | monitor.memory_metrics()
        self._write(step, {f"train/{name}": value for name, value in values.items()})
        left = self._timer.seconds_left(self._plan.total_steps - step, self._plan.pauses_after(step))
        faulty = self._run.pipeline.faulty.count("train")
        log(logging.progress_line(step, self._plan.total_steps, values, faulty, left))

    def _stop_or_skip(self, step: int, results: steps.Results, index: jax.Array) -> None:
        """Writes and logs the batch of a non-finite step; raises RunError unless config.nonfinite skips it."""
        description = monitor.describe_nonfinite(self._config, self._run.workdir, step, results, index)
        if self._config.nonfinite == "skip":
            if self._skips.in_a_row < self._config.nonfinite_limit:
                log(f"{description} It is skipped: weights, optimizer and average are unchanged.")
                return
            description += f" It is the last of {self._skips.in_a_row} in a row (config.nonfinite_limit)."
        self.checkpoints.wait()
        saved = self.checkpoints.last_good()
        if saved is None:
            last = "There is no checkpoint yet: start again with changed settings in the same --workdir."
        else:
            last = (
                f"The last good checkpoint is {saved}; to start from its weights with changed settings: "
                f"--config.pretrained={saved} --workdir=ANOTHER."
            )
        raise RunError(f"{description} This step was not saved. {last} {monitor.NONFINITE_FIX}")

    def _evaluate_and_save(self, state: TrainState, step: int, stopping: bool) -> None:
        """Runs the evaluation and saves the checkpoint due after a step; also saves after the best evaluation so far.

        `stopping`: the run ends here. It saves without evaluating; the checkpoint records that the evaluation is due,
        and the next session makes up for it. Raises Stopped once the checkpoint is on disk.
        """
        accuracy, improved = None, False
        self._evaluation_due = self._plan.evaluates(step)
        if self._evaluation_due and not stopping:
            accuracy, improved = self._evaluate_and_write(state, step)
            stopping = self._evaluation_due  # interrupted
        scheduled = improved or self._plan.checkpoints(step)
        if stopping or scheduled:
            self._restore_run_files()
            metadata = {
                "step": step,
                "seconds": self._seconds(),
                "best_accuracy": self._best_accuracy,
                "skipped": dataclasses.asdict(self._skips),
                "evaluation_due": self._evaluation_due,
                "train_examples": self._run.pipeline.train_examples,
                "data_set": self._run.pipeline.identity,
                "model": as_dict(self._config)["model"],
                "decoder": DECODER,
                "teacher": self._run.teacher and self._run.teacher.digest,
                **agreement.devices(),
            }
            self.checkpoints.save(unstack_blocks(unreplicate(state)), metadata, accuracy, scheduled)
        if stopping:
            raise self._stopped(step)

    def _make_up_for_evaluation(self, state: TrainState, step: int) -> None:
        """Runs the evaluation that the last session left out, and updates its checkpoint's metadata accordingly."""
        accuracy, improved = self._evaluate_and_write(state, step)
        if self._evaluation_due:
            raise self._stopped(step)
        changes = {"best_accuracy": self._best_accuracy, "evaluation_due": False}
        scheduled = improved or self._plan.checkpoints(step)
        self.checkpoints.update_metadata(step, changes, accuracy, scheduled)

    def _evaluate_and_write(self, state: TrainState, step: int) -> tuple[float | None, bool]:
        """-> (better weights' accuracy (workdir.measure), whether it is the best yet); (None, False) if interrupted."""
        self._results = self._evaluate(state)
        if not self._results:
            return None, False
        self._evaluation_due = False
        results = self._results.items()
        scalars = {f"{name}/{metric}": value for name, result in results for metric, value in result.items()}
        self._write(step, {name: value for name, value in scalars.items() if not isinstance(value, dict)})
        log(logging.evaluation_line(step, self._results))
        best = self._results[workdirs.select_best(self._results)]
        accuracy = best[workdirs.measure(best)]
        improved = self._best_accuracy is None or accuracy > self._best_accuracy
        self._best_accuracy = accuracy if improved else self._best_accuracy
        return accuracy, improved

    def _evaluate(self, state: TrainState) -> dict[str, Result]:
        """Evaluates raw and averaged weights on the whole evaluation split; {} if interrupted."""
        weights = {"eval": state.params}
        if state.ema_params is not None:
            weights["eval_ema"] = state.ema_params
        return evaluate_split(self._run, self._eval_step, weights, self._guard.should_stop_now) or {}

    def _stopped(self, step: int) -> Stopped:
        """Waits for the checkpoint -> the exception to raise."""
        self.checkpoints.wait()
        received = self._guard.signal
        return Stopped(
            f"{received.name}: stopped after step {step:,}, which is saved in {self.checkpoints.last_good()}. The same "
            "command resumes from there.",
            received,
        )

    def _write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends to metrics.jsonl and TensorBoard's file, before anything later is saved."""
        self._restore_run_files()
        files = workdirs.METRICS_FILE, logging.EVENT_FILES
        gone = [name for name in files if not any(self._run.workdir.glob(name))]
        if jax.process_index() == 0 and gone:
            for name in gone:
                log(f"Note: {self._run.workdir / name} was gone. It starts again at step {step:,}.")
            self._writer.close()
            self._writer = logging.MetricsWriter(self._run.workdir, self._progress)
        self._writer.write(step, scalars)

    def _restore_run_files(self) -> None:
        """Rewrites the files without which a run cannot be read, if one is missing or config.json is damaged."""
        if jax.process_index():
            return
        files = [self._run.workdir / name for name in (workdirs.CONFIG_FILE, workdirs.CLASSES_FILE)]
        lost = {path: "gone" for path in files if not path.is_file()}
        try:
            workdirs.read_config(self._run.workdir)
        except ValueError:
            lost[files[0]] = "damaged"
        if not lost:
            return
        self._run.workdir.mkdir(parents=True, exist_ok=True)
        self._lock.take()
        logging.write_run_files(self._run)
        words = " and ".join(f"{path} was {how}" for path, how in lost.items())
        log(f"Note: {words}. The files that describe the run are written again.")

    def _summarize(self, parameters: int, step: int) -> dict[str, Any]:
        """Writes and returns the summary; `eval_ema` is null without averaged weights."""
        summary = {
            "parameters": parameters,
            "steps": step,
            "seconds": self._seconds(),
            "images_per_second": self._timer.images_per_second(),
            "eval": self._results["eval"],
            "eval_ema": self._results.get("eval_ema"),
            "best": workdirs.select_best(self._results),
            "config": as_dict(self._config),
            "versions": logging.versions() | {"device": jax.devices()[0].device_kind},
        }
        path = self._run.workdir / workdirs.SUMMARY_FILE
        logging.write_json(path, summary)
        logging.log_faulty(self._run.pipeline.faulty)
        log(logging.last_line(summary, path))
        return summary
