"""Training from the first step, or from the newest checkpoint, to the summary; and evaluation alone.

The loop only schedules: each phase is a function, and what they compute lives in the other files of this folder.
"""

import contextlib
import dataclasses
import math
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import jax

from tnt_jax import workdir as workdirs
from tnt_jax.data.augment import DECODER
from tnt_jax.models.fast.stacking import unstack_blocks
from tnt_jax.pretrained.load import fit
from tnt_jax.pretrained.workdir import read_sets
from tnt_jax.training import (
    agreement,
    checkpoints,
    devices,
    lock,
    memory,
    metrics,
    nonfinite,
    preemption,
    profiling,
    report,
    report_card,
    steps,
    watch,
)
from tnt_jax.training.classes import relabelled
from tnt_jax.training.config import as_dict
from tnt_jax.training.errors import RunError, Stopped, readable, writable
from tnt_jax.training.evaluation import Result, evaluate_weights
from tnt_jax.training.feed import prefetch
from tnt_jax.training.setup import Run, TrainingRun, prepare
from tnt_jax.training.state import TrainState, create_state, initial_state, replicate, training_form, unreplicate
from tnt_jax.training.throughput import Meter, SlowSteps

EVALUATION_FILE = "evaluation.json"
# What a checkpoint's metadata says of a run, before there is one; checkpoints of earlier versions lack the last two.
NEW_RUN = {"seconds": 0.0, "best_accuracy": None, "skipped": {"since_line": 0, "in_a_row": 0}, "evaluation_due": False}


@dataclasses.dataclass
class Session:
    """What changes while one process trains; `run` is what does not."""

    run: TrainingRun
    notice: preemption.Notice
    lock: lock.Lock
    store: checkpoints.Checkpoints
    writer: Any
    meter: Meter
    input_wait: watch.InputWait
    slow_steps: SlowSteps
    skips: nonfinite.Skips
    eval_step: Any
    profiler: profiling.Profiler
    started: float  # time.monotonic() at the start
    seconds_before: float  # of training in earlier sessions
    best_accuracy: float | None  # on the evaluation split so far, the better of raw and averaged weights
    evaluation_due: bool  # the run was stopped before the evaluation that its last step is followed by
    results: dict[str, Result] = dataclasses.field(default_factory=dict)  # of the last evaluation

    def seconds(self) -> float:
        """Of training so far, over all sessions, start-up included."""
        return self.seconds_before + time.monotonic() - self.started


def train_and_evaluate(config: Any, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """A config (configs/default.py) and a workdir -> the summary that is also written to WORKDIR/summary.json.

    Raises ValueError, FileNotFoundError or PermissionError for what cannot work, before anything is written.
    """
    return train(prepare(config, workdir))


def train(run: TrainingRun) -> dict[str, Any]:
    """Trains from the first step, or from the newest checkpoint in the workdir, to the end -> the summary.

    Raises RunError when the loss stops being a number, when an example cannot be read, no checkpoint can, or nothing
    can be written; and Stopped, when SIGTERM or SIGINT has asked for the end, once the step under way is saved.
    """
    started = time.monotonic()
    with devices.together(), writable(run.workdir), memory.enough(), preemption.Notice() as notice:
        agreement.check_same_start(run)
        summary = report.read_summary_of_the_end(run)
        if summary is not None:
            report.say(f"All {run.plan.total_steps:,} steps are done.")
            report.say(report.last_line(summary, run.workdir / report.SUMMARY_FILE))
            return summary
        with _enter_workdir(run) as held:
            return _train_and_summarize(run, notice, held, started)


def _train_and_summarize(
    run: TrainingRun, notice: preemption.Notice, held: lock.Lock, started: float
) -> dict[str, Any]:
    from tnt_jax.training import writers  # imports TensorFlow

    state, session = _start(run, notice, held, started)
    try:
        count = report.describe(run, state.params)
        report.say_found(run)
        step, state = int(state.step), replicate(training_form(jax.device_get(state), run.experiment))
        if session.evaluation_due:
            _evaluate_after_all(session, state, step)
        state = _train(session, state, step)
        if not session.results:  # the run had ended before; its last word is asked for again
            session.results = _evaluate(session, state)
        steps_done = int(unreplicate(state.step))
        session.store.wait()
        if not session.results:
            raise _stopped(session, steps_done)
        return _summarize(session, count, steps_done)
    except Exception as error:
        devices.leave_others(error)  # at once: what follows would wait for them
        raise
    finally:
        session.profiler.close()
        session.input_wait.close()
        writers.close(session.writer)
        session.store.close()


@contextlib.contextmanager
def _enter_workdir(run: TrainingRun) -> Iterator[lock.Lock]:
    """Creates the workdir and its files, and holds its lock. Every process has looked at what was there before."""
    held = lock.Lock(run.workdir)
    try:
        token = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        if jax.process_index() == 0:
            run.workdir.mkdir(parents=True, exist_ok=True)
            held.take(token)
            if held.note:
                report.say(f"Note: {held.note}")
        agreement.check_same_workdir(run, token, lock.token_of)
        report.write_run_files(run)
        yield held
    finally:
        held.release()


def _mend_workdir(session: Session) -> None:
    """Writes again what a run cannot be read without, where somebody has removed it (or the whole workdir)."""
    run = session.run
    if jax.process_index() or (run.workdir / workdirs.CONFIG_FILE).is_file():
        return
    run.workdir.mkdir(parents=True, exist_ok=True)
    session.lock.take()
    report.write_run_files(run)
    report.say(f"Note: {run.workdir / workdirs.CONFIG_FILE} was gone. What the run needs to be read is written again.")


def _start(run: TrainingRun, notice: preemption.Notice, held: lock.Lock, started: float) -> tuple[TrainState, Session]:
    """The state to go on from, on the host, and the session around it."""
    from tnt_jax.training import writers  # imports TensorFlow

    store = checkpoints.Checkpoints(run.workdir, run.experiment.keep_checkpoints)
    for note in run.notes:
        report.say(f"Note: {note}")
    shapes = jax.eval_shape(lambda: initial_state(run.experiment, run.model, run.optimizer))
    restored = store.restore_newest(shapes)
    if restored is None:
        state = create_state(run.experiment, run.model, run.optimizer, run.pretrained)
        metadata = NEW_RUN
        if run.pretrained is not None:
            report.say(f"Starting from {run.pretrained_label}")
    else:
        state, metadata = restored[0], NEW_RUN | restored[1]
        report.say(f"Going on from step {int(state.step):,}, {run.workdir / workdirs.FOLDER / str(int(state.step))}")
        _say_what_differs(run, metadata)
        if report.ended_at(run, int(state.step)):
            report.say(
                f"Note: the run had ended there and goes on to step {run.plan.total_steps:,}. The schedule of the "
                f"learning rate stays that of {run.experiment.epochs:g} + {run.experiment.cooldown_epochs:g} epochs."
            )
    if jax.process_index() == 0:
        for note in writers.go_back(run.workdir, int(state.step), metadata["evaluation_due"]):
            report.say(f"Note: {note}")
    writer = _make_writer(run, metadata["seconds"], started)
    if restored is None:
        writers.write_config(writer, as_dict(run.experiment))
    return state, Session(
        run=run,
        notice=notice,
        lock=held,
        store=store,
        writer=writer,
        meter=Meter(run.experiment.batch_size),
        input_wait=watch.InputWait(),
        slow_steps=SlowSteps(run.experiment.slow_step_factor),
        skips=nonfinite.Skips(**metadata["skipped"]),
        eval_step=steps.make_eval_step(run.experiment, run.model),
        profiler=profiling.Profiler(run.experiment.profile_steps, run.workdir),
        started=started,
        seconds_before=metadata["seconds"],
        best_accuracy=metadata["best_accuracy"],
        evaluation_due=metadata["evaluation_due"],
    )


def _place() -> dict[str, Any]:
    """What the last bits of a run depend on beside its config."""
    kind = jax.devices()[0].device_kind
    return {"device_count": jax.device_count(), "process_count": jax.process_count(), "device_kind": kind}


def _say_what_differs(run: TrainingRun, metadata: dict[str, Any]) -> None:
    """Notes for what makes a resumed run another than the one that was never stopped, if only in its last bits.

    Checkpoints of earlier versions lack some of what is compared.
    """
    place = _place()
    before = {name: metadata.get(name, value) for name, value in place.items()}
    if before != place:
        note = (
            f"Note: {_in_words(**before)} then, {_in_words(**place)} now. Sums are rounded in another order and drop "
            "path is drawn anew, so the run continues equivalently, but not bit for bit."
        )
        if before["process_count"] != place["process_count"] and run.experiment.data.repeated_augmentation > 1:
            note += " The copies of an image (config.data.repeated_augmentation) are mixed with other images than then."
        report.say(note)
    decoder = metadata.get("decoder", "the decoder of earlier versions")
    if decoder != DECODER and run.experiment.data.name != "synthetic":
        report.say(
            f"Note: images were made by {decoder} then and are made by {DECODER} now, so the remaining ones may differ "
            "a little from what they would have been; those of a folder are turned as their EXIF says if "
            f"config.data.exif_orientation={run.experiment.data.exif_orientation} says so."
        )
    examples = metadata.get("train_examples", run.feed.train_examples)
    if examples != run.feed.train_examples:
        report.say(
            f"Note: the training split {run.experiment.data.train_split!r} of {run.experiment.data.name} had "
            f"{examples:,} examples then and has {run.feed.train_examples:,} now: the run goes on with other batches "
            "than it would have had, and epochs of another length."
        )


def _in_words(device_count: int, process_count: int, device_kind: str) -> str:
    return f"{device_count} x {device_kind} in {process_count} process{'es' * (process_count > 1)}"


def _train(session: Session, state: TrainState, start: int) -> TrainState:
    """The replicated state after `start` steps -> after all of them. Step n is under way while n - 1 is reported."""
    run = session.run
    train_step = steps.make_train_step(
        run.experiment, run.model, run.optimizer, run.schedule, log_every_steps=run.plan.log_every_steps
    )
    if start >= run.plan.total_steps:
        report.say(f"All {run.plan.total_steps:,} steps are done.")
        return state
    train_step = memory.announced(train_step, run.experiment, report.say)
    train_step = session.profiler.around(train_step, start)
    batches = prefetch(readable(lambda: run.feed.train(start)), run.experiment.prefetch_batches)
    waiting: tuple[int, Any, Any] | None = None
    for step in range(start + 1, run.plan.total_steps + 1):
        batch, seconds = session.input_wait.take(batches)
        session.meter.wait(seconds)
        state, results = train_step(state, batch)
        session.input_wait.dispatched(results["finite"])
        if waiting is not None:
            _report(session, *waiting)
        waiting = step, results, batch["index"]
        stopping = session.notice.reached(step)
        if stopping or run.plan.evaluates(step) or run.plan.checkpoints(step):
            _report(session, *waiting)  # nothing that is not finite is evaluated or saved
            waiting = None
            if stopping or step == run.plan.total_steps:
                session.profiler.close()  # what comes now is no part of a step
            _evaluate_and_save(session, state, step, stopping)
            session.meter.resume()
    return state


def _report(session: Session, step: int, results: dict[str, Any], index: Any) -> None:
    """Waits for the step, stops the run or skips the step if it is not finite, and writes what is due."""
    run = session.run
    finite = bool(metrics.to_host(results["finite"]))
    slow = session.slow_steps.message(step, session.meter.tick())
    if slow is not None:
        report.say(slow)
    session.skips.count(finite)
    if finite and not run.plan.logs(step):
        return
    results = metrics.to_host(results)
    if not finite:
        _stop_or_skip(session, step, results, index)
        if not run.plan.logs(step):
            return
    values = metrics.averages(results["sums"], nothing=math.nan if run.experiment.nonfinite == "skip" else None)
    values["learning_rate"] = float(results["learning_rate"])
    if run.experiment.nonfinite == "skip":
        values["skipped_steps"] = session.skips.since_line
        session.skips.since_line = 0
    interval = session.meter.take()
    values |= report.speed_metrics(run, session.meter.speed(interval), interval.input_wait_share)
    values |= watch.memory_metrics()
    _write(session, step, {f"train/{name}": value for name, value in values.items()})
    left = session.meter.seconds_left(run.plan.total_steps - step)
    report.say(report.progress_line(run, step, values, left))


def _stop_or_skip(session: Session, step: int, results: dict[str, Any], index: Any) -> None:
    """A step that is not finite: names its batch, and raises RunError unless the config says to go on."""
    experiment, in_a_row = session.run.experiment, session.skips.in_a_row
    description = nonfinite.describe(step, results, nonfinite.save_batch(session.run, step, results, index))
    if experiment.nonfinite == "skip":
        if in_a_row < experiment.nonfinite_limit:
            report.say(f"{description} It is skipped: weights, optimizer and average are as before.")
            return
        description += f" It is the last of {in_a_row} in a row (config.nonfinite_limit)."
    session.store.wait()
    saved = session.store.last_good()
    if saved is None:
        last = "There is no checkpoint yet: start anew, with changed settings, in the same --workdir."
    else:
        last = (
            f"The last good checkpoint is {saved}; to go on from its weights with changed settings: "
            f"--config.pretrained={saved} --workdir=ANOTHER."
        )
    raise RunError(f"{description} Nothing of this step was saved. {last} {nonfinite.FIX}")


def _evaluate_and_save(session: Session, state: TrainState, step: int, stopping: bool) -> None:
    """What is due after a step: an evaluation, a checkpoint; a checkpoint too where the evaluation is the best yet.

    `stopping`: the run has to end here. Then the checkpoint comes first: it says that the evaluation is due, which the
    next session makes up for. Raises Stopped once the checkpoint is on disk.
    """
    plan, accuracy, improved = session.run.plan, None, False
    session.evaluation_due = plan.evaluates(step)
    if session.evaluation_due and not stopping:
        accuracy, improved = _evaluate_and_write(session, state, step)
        stopping = session.evaluation_due  # interrupted
    if stopping or improved or plan.checkpoints(step):
        _mend_workdir(session)
        metadata = {
            "step": step,
            "seconds": session.seconds(),
            "best_accuracy": session.best_accuracy,
            "skipped": dataclasses.asdict(session.skips),
            "evaluation_due": session.evaluation_due,
            "train_examples": session.run.feed.train_examples,
            "model": as_dict(session.run.experiment)["model"],
            "decoder": DECODER,
            **_place(),
        }
        on_host = unstack_blocks(unreplicate(state))
        session.store.save(on_host, metadata, accuracy, scheduled=improved or plan.checkpoints(step))
    if stopping:
        raise _stopped(session, step)


def _evaluate_after_all(session: Session, state: TrainState, step: int) -> None:
    """The evaluation that the end of the last session left out; its checkpoint is one like every other from now on."""
    accuracy, improved = _evaluate_and_write(session, state, step)
    if session.evaluation_due:
        raise _stopped(session, step)
    changes = {"best_accuracy": session.best_accuracy, "evaluation_due": False}
    session.store.amend(step, changes, accuracy, scheduled=improved or session.run.plan.checkpoints(step))


def _evaluate_and_write(session: Session, state: TrainState, step: int) -> tuple[float | None, bool]:
    """-> the accuracy of the better weights, and whether it is the best yet; (None, False) if it was interrupted."""
    session.results = _evaluate(session, state)
    if not session.results:
        return None, False
    session.evaluation_due = False
    _write_results(session, step)
    accuracy = session.results[workdirs.select_best(session.results)]["accuracy"]
    improved = session.best_accuracy is None or accuracy > session.best_accuracy
    session.best_accuracy = accuracy if improved else session.best_accuracy
    return accuracy, improved


def _stopped(session: Session, step: int) -> Stopped:
    """Waits for the checkpoint -> what to raise."""
    session.store.wait()
    name = session.notice.signal.name
    return Stopped(
        f"{name}: stopped after step {step:,}, which is saved in {session.store.last_good()}. The same command goes on "
        "from there.",
        session.notice.signal,
    )


def _evaluate(session: Session, state: TrainState) -> dict[str, Result]:
    """Raw and averaged weights on the whole evaluation split; {} if it was interrupted."""
    weights = {"eval": state.params}
    if state.ema_params is not None:
        weights["eval_ema"] = state.ema_params
    run = session.run
    batches, ahead = readable(run.feed.evaluation), run.experiment.prefetch_batches
    return evaluate_weights(session.eval_step, weights, batches, ahead, session.notice.received) or {}


def _write_results(session: Session, step: int) -> None:
    """The last evaluation, written and said."""
    results = session.results
    scalars = {f"{name}/{metric}": value for name, result in results.items() for metric, value in result.items()}
    _write(session, step, scalars)
    report.say(report.evaluation_line(step, results))


def _write(session: Session, step: int, scalars: dict[str, Any]) -> None:
    """To metrics.jsonl and TensorBoard's file, on the disk before anything that comes later."""
    from tnt_jax.training import writers  # imports TensorFlow

    _mend_workdir(session)
    path = session.run.workdir / workdirs.METRICS_FILE
    if jax.process_index() == 0 and not path.exists():
        report.say(f"Note: {path} was gone. It begins again at step {step:,}, and so do TensorBoard's files.")
        session.writer.close()
        session.writer = _make_writer(session.run, session.seconds_before, session.started)
    writers.write(session.writer, step, scalars)


def _make_writer(run: TrainingRun, seconds_before: float, started: float) -> Any:
    """The writer of metrics; every line of metrics.jsonl has the epoch, and the seconds of training so far."""
    from tnt_jax.training import writers  # imports TensorFlow

    def place(step: int) -> dict[str, float]:
        seconds = seconds_before + time.monotonic() - started
        return {"epoch": step / run.plan.steps_per_epoch, "seconds": round(seconds, 3)}

    return writers.make_writer(run.workdir, writes=jax.process_index() == 0, place=place)


def _summarize(session: Session, parameters: int, steps_done: int) -> dict[str, Any]:
    """Writes and returns what the run came to; `eval_ema` is null where no average was kept."""
    summary = {
        "parameters": parameters,
        "steps": steps_done,
        "seconds": session.seconds(),
        "images_per_second": session.meter.images_per_second(),
        "eval": session.results["eval"],
        "eval_ema": session.results.get("eval_ema"),
        "best": workdirs.select_best(session.results),
        "config": as_dict(session.run.experiment),
        "versions": report.versions(),
    }
    path = session.run.workdir / report.SUMMARY_FILE
    report.write_json(path, summary)
    report.say_faulty(session.run)
    report.say(report.last_line(summary, path))
    return summary


def evaluate(run: Run) -> dict[str, Any]:
    """Evaluates the newest checkpoint of the run's workdir or, where it has none, `config.pretrained`.

    -> eval and eval_ema (None where there is one set of weights), best (of the two), step, source; also in
    WORKDIR/evaluation.json.
    Where config.report_card names data sets: the report card of these, see report_card.make_report_card.

    Raises RunError where the checkpoint or an example cannot be read, memory does not suffice, or nothing can be
    written.
    """
    with devices.together(), memory.enough(memory.MEND_EVALUATION):
        return _evaluate_alone(run)


def _evaluate_alone(run: Run) -> dict[str, Any]:
    for note in run.notes:
        report.say(f"Note: {note}")
    if run.pretrained is None:
        named, step, source = *_checkpoint(run), str(run.workdir)
    else:
        named, step, source = {"eval": run.pretrained}, None, run.pretrained_label
    replicated = {name: replicate(training_form(params, run.experiment)) for name, params in named.items()}
    if run.experiment.report_card:
        renamed = {report_card.WEIGHTS[name]: params for name, params in replicated.items()}
        return report_card.make_report_card(run, renamed, step, source)
    report.say_found(run)
    eval_step = steps.make_eval_step(run.experiment, run.model)
    batches = relabelled(readable(run.feed.evaluation), run.label_map)
    results = evaluate_weights(eval_step, replicated, batches, run.experiment.prefetch_batches)
    report.say_faulty(run)
    report.say(report.evaluation_line(step, results))
    outcome = {
        "eval": results["eval"],
        "eval_ema": results.get("eval_ema"),
        "best": workdirs.select_best(results),
        "step": step,
        "source": source,
    }
    with writable(run.workdir):
        run.workdir.mkdir(parents=True, exist_ok=True)
        report.write_json(run.workdir / EVALUATION_FILE, outcome)
    return outcome


def _checkpoint(run: Run) -> tuple[dict[str, Any], int]:
    """Every set of weights of the workdir's newest checkpoint, by its name in an evaluation, and the step.

    Raises RunError where it is damaged, and where it is not of the model that config.json describes.
    """
    try:
        _, sets = read_sets(run.workdir)
        named = {workdirs.IN_EVALUATION[kind]: fit(weights, run.model) for kind, weights in sets.items()}
    except ValueError as error:
        config = run.workdir / workdirs.CONFIG_FILE
        raise RunError(f"{error}\n{config} says which model a checkpoint is of: was it edited?") from error
    return named, sets["raw"].step
