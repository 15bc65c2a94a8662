"""What a run prints, and its log files: metrics.jsonl, TensorBoard events, summary.json and others.

Functions that need TensorFlow (through clu) import it when they are called.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from tnt_jax import workdir as workdirs
from tnt_jax.data.faulty import FaultyImages
from tnt_jax.models.config import Params
from tnt_jax.names import printable_text
from tnt_jax.training.class_balance import balance_lines
from tnt_jax.training.config import Config, as_dict, peak_learning_rate
from tnt_jax.training.evaluation import Result
from tnt_jax.training.freezing import frozen_note
from tnt_jax.training.optimizer import start_in_average

if TYPE_CHECKING:
    from tnt_jax.training.setup import Plan, Run

PARAMETERS_FILE = "parameters.txt"
EVENT_FILES = "events.out.tfevents.*"  # TensorBoard's

STARVED = 0.05  # share of time waiting for data from which a log line reports it
START_IN_AVERAGE = 0.5  # share of initial weights in the average from which a note reports it
MEASURES = {  # Result key -> its name in a log line
    "mean_average_precision": "mAP",
    "subset_accuracy": "subset accuracy",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "loss": "loss",
}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")
_NAMED = 20  # faulty images listed at the end of a run
_RECORD_HEAD, _RECORD_TAIL = 12, 4  # bytes around a TFRecord: its length with a checksum, and its content's checksum


def log(text: str) -> None:
    """Prints a line on standard output; only in the first process.

    If a reader such as `head` has closed it, the run goes on, and standard error says so once.
    """
    if jax.process_index():
        return
    try:
        print(printable_text(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest of the process
        print("Note: standard output is closed. The run goes on and writes its numbers to its files.", file=sys.stderr)


def write_text(path: Path, text: str) -> None:
    """Writes the file atomically; only in the first process."""
    if jax.process_index() == 0:
        workdirs.write_atomically(path, text.encode())


def write_json(path: Path, values: Any) -> None:
    """Like `write_text`, as JSON."""
    write_text(path, json.dumps(values, indent=2) + "\n")


class MetricsWriter:
    """Appends to metrics.jsonl, one line per write: {"step": 100, "train/loss": 1.5, ...}, and to TensorBoard events.

    Only the first process writes. Every line reaches the operating system before a call returns, so that a killed
    process leaves whole lines. progress: step -> numbers to add to every line of that step, such as the epoch.
    All methods raise OSError if the disk is full, also from TensorFlow.
    """

    def __init__(self, workdir: Path, progress: Callable[[int], Mapping[str, float]] = lambda step: {}):
        self._progress = progress
        self._lines = self._events = None
        if jax.process_index() == 0:
            from clu import metric_writers

            self._lines = (workdir / workdirs.METRICS_FILE).open("a", buffering=1)
            with _oserrors():
                self._events = metric_writers.SummaryWriter(str(workdir))

    def write(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes a step's numbers. metrics.jsonl is synced: no checkpoint is ahead of it even if the machine crashes.

        JSON has no NaN or infinity: such values become null.
        """
        if self._lines is None:
            return
        values = {name: float(np.asarray(value)) for name, value in {**self._progress(step), **scalars}.items()}
        line = {"step": int(step)} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        with _oserrors():
            self._events.write_scalars(step, scalars)
            self._events.flush()
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        os.fsync(self._lines.fileno())

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration as TensorBoard text at step 0."""
        if self._events is None:
            return
        text = "\n".join(f"    {line}" for line in json.dumps(config, indent=2).splitlines())  # a Markdown code block
        with _oserrors():
            self._events.write_texts(0, {"config": text})
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._lines is not None:
            self._lines.close()
            with _oserrors():
                self._events.close()


@contextlib.contextmanager
def _oserrors() -> Iterator[None]:
    """Turns TensorFlow errors in its body into OSError."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(str(error).partition("\n")[0]) from error


def truncate_logs_after(workdir: Path, step: int, evaluation_due: bool) -> list[str]:
    """Removes from metrics.jsonl and TensorBoard's files what a run resumed at a step writes again.

    That is later steps, this step's evaluation if it is still due, and a record torn by the end of a process. Other
    damage is removed too, with a copy of the original file kept beside it -> a note for each damaged file.
    """

    def comes_again(name: str, written: int) -> bool:
        return written > step or not step or (evaluation_due and written == step and name.startswith("eval"))

    notes = [_truncate_lines(workdir / workdirs.METRICS_FILE, comes_again)]
    notes += [_truncate_events(path, comes_again) for path in sorted(workdir.glob(EVENT_FILES))]
    return [note for note in notes if note]


def _truncate_lines(path: Path, comes_again: Callable[[str, int], bool]) -> str:
    if not path.exists():
        return ""
    lines = path.read_bytes().splitlines(keepends=True)
    kept, damaged = [], 0
    for number, line in enumerate(lines, 1):
        values = workdirs.parse_metrics_line(line)
        if values is None:
            damaged += number < len(lines) or line.endswith(b"\n")  # else torn
        elif not any(comes_again(name, values["step"]) for name in values if name != "step"):
            kept.append(line)
    note = _keep_damaged(path, f"{damaged} of {len(lines)} lines of {path} are damaged") if damaged else ""
    workdirs.write_atomically(path, b"".join(kept))
    return note


def _truncate_events(path: Path, comes_again: Callable[[str, int], bool]) -> str:
    """Event files are TFRecord files; one is rewritten only if it has something to remove."""
    import tensorflow as tf

    kept, changed, read, note = [], False, 0, ""
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            read += _RECORD_HEAD + len(record) + _RECORD_TAIL
            event = tf.compat.v1.Event.FromString(record)
            values = event.summary.value if event.HasField("summary") else ()
            if any(comes_again(value.tag, event.step) for value in values):
                changed = True
            else:
                kept.append(record)
    except tf.errors.DataLossError:  # nothing after this can be read
        changed = True
        if not _is_torn(path, read):
            note = _keep_damaged(path, f"the last {path.stat().st_size - read:,} bytes of {path} are damaged")
    if changed:
        temporary = path.with_name(path.name.replace("tfevents", "rewritten"))  # a name that TensorBoard ignores
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in kept:
                writer.write(record)
        temporary.replace(path)
    return note


def _is_torn(path: Path, start: int) -> bool:
    """Whether the record at `start` is the file's last and cut short, as by the end of a process."""
    with path.open("rb") as file:
        file.seek(start)
        head = file.read(_RECORD_HEAD)
    length = int.from_bytes(head[:8], "little")
    return len(head) < _RECORD_HEAD or start + _RECORD_HEAD + length + _RECORD_TAIL > path.stat().st_size


def _keep_damaged(path: Path, what: str) -> str:
    """Copies the file as it is to a name that nothing reads -> a note about it."""
    copy = path.with_name("damaged." + path.name.replace("tfevents", "events"))
    copy.write_bytes(path.read_bytes())
    return f"{what[0].upper()}{what[1:]} and left out from now on; the original file is kept as {copy.name}."


def write_run_files(run: "Run") -> None:
    """Writes config.json and classes.json, which a reader of the run needs besides its checkpoints."""
    write_json(run.workdir / workdirs.CONFIG_FILE, as_dict(run.config))
    classes = run.workdir / workdirs.CLASSES_FILE
    # Checkpoints keep the labels that they were trained with.
    if not classes.exists() or not workdirs.checkpoint_steps(run.workdir):
        write_json(classes, run.pipeline.class_names)


def summary_at(workdir: Path, step: int) -> dict[str, Any] | None:
    """Returns summary.json if it is complete and of this step; else None."""
    try:
        summary = json.loads((workdir / workdirs.SUMMARY_FILE).read_text())
        whole = summary["steps"] == step and summary[summary["best"]]["accuracy"] >= 0 and summary["seconds"] >= 0
    except (OSError, ValueError, KeyError, TypeError):  # missing, or torn
        return None
    return summary if whole else None


def log_start(run: "Run", params: Params) -> int:
    """Logs what is about to be trained and writes parameters.txt -> number of parameters."""
    from clu import parameter_overview

    config, data, plan, pipeline = run.config, run.config.data, run.plan, run.pipeline
    parts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    count, width = sum(parts.values()), max(map(len, parts))
    log("\n".join(f"  {name:{width}}  {size:>12,}" for name, size in parts.items()))
    log(
        f"{config.model.name}: {count:,} parameters, {run.multiply_adds:,} multiply-adds per image of "
        f"{' x '.join(map(str, config.model.input_size))}, on {jax.device_count()} x "
        f"{jax.devices()[0].device_kind}"
    )
    log(
        f"{data.name}: {pipeline.train_examples:,} images to train ({data.train_split}), {pipeline.eval_examples:,} to "
        f"evaluate ({data.eval_split}), {pipeline.num_classes:,} classes"
    )
    for line in balance_lines(config, pipeline, run.class_weights):
        log(line)
    log(
        f"{plan.total_steps:,} steps of {config.batch_size} images ({plan.steps_per_epoch:,} per epoch) into "
        f"{run.workdir}"
    )
    rate = peak_learning_rate(config)
    log(f"{config.loss} loss, {config.optimizer}, {config.schedule} learning rate of at most {rate:g}")
    if config.freeze:
        log(frozen_note(config, params))
    for note in (average_note(config, plan.total_steps), warmup_note(config, plan)):
        if note:
            log(note)
    write_text(
        run.workdir / PARAMETERS_FILE, parameter_overview.get_parameter_overview(params, include_stats=False) + "\n"
    )
    return count


def average_note(config: Config, total_steps: int) -> str:
    """Returns a note if at least half of the average will still be initial weights after the last step; else ""."""
    share = start_in_average(config, total_steps) if config.ema_decay else 0.0
    if share < START_IN_AVERAGE:
        return ""
    way = "Set --config.ema_warmup=True or lower" if not config.ema_warmup else "Lower"
    return (
        f"Note: {share:.0%} of the averaged weights will still be the initial ones after {total_steps:,} steps "
        f"(config.ema_decay={config.ema_decay:g}). {way} config.ema_decay, or use the raw weights."
    )


def warmup_note(config: Config, plan: "Plan") -> str:
    """Returns a note if the run ends before its warm-up does, or else ""."""
    steps = config.warmup_epochs * plan.steps_per_epoch
    if plan.total_steps >= steps:
        return ""
    return (
        f"Note: the run ends within its warm-up of {steps:,.0f} steps (config.warmup_epochs={config.warmup_epochs:g}), "
        "with a small learning rate. Lower config.warmup_epochs to train in so few steps."
    )


def progress_line(
    step: int, total_steps: int, values: Mapping[str, float], faulty: int, seconds_left: float | None
) -> str:
    """ "step 500/2,200  loss 1.234  accuracy 0.567  learning rate 0.001  350 images/s  1 min 20 s left"."""
    parts = [
        f"step {step:,}/{total_steps:,}",
        f"loss {values['loss']:.4f}",
        f"accuracy {values['accuracy']:.4f}",
        f"learning rate {values['learning_rate']:.3g}",
    ]
    if "images_per_second" in values:
        parts.append(f"{values['images_per_second']:,.0f} images/s")
    if "model_flops_utilization" in values:
        parts.append(f"{values['model_flops_utilization']:.1%} of peak")
    if values.get("input_wait_share", 0.0) >= STARVED:
        parts.append(f"{values['input_wait_share']:.0%} of the time waiting for data")
    if values.get("skipped_steps"):
        parts.append(f"{values['skipped_steps']:.0f} step{'s' * (values['skipped_steps'] > 1)} skipped")
    if faulty:
        parts.append(f"{faulty} faulty image{'s' * (faulty > 1)} replaced so far")
    if seconds_left is not None:
        parts.append(f"{in_words(seconds_left)} left")
    return "  ".join(parts)


def evaluation_line(step: int | None, results: Mapping[str, Result]) -> str:
    """Returns the line for an evaluation, with raw and averaged weights side by side."""
    parts = [
        f"{workdirs.IN_WORDS[name]} weights: "
        + ", ".join(f"{word} {result[metric]:.4f}" for metric, word in MEASURES.items() if metric in result)
        for name, result in results.items()
    ]
    count = next(iter(results.values()))["count"]
    return f"evaluation{'' if step is None else f' at step {step:,}'} on {count:,} images  {'; '.join(parts)}"


def last_line(summary: Mapping[str, Any], path: Path) -> str:
    """Returns the line with the run's result and the summary's path."""
    best = summary["best"]
    measure = workdirs.measure(summary[best])
    return (
        f"test {MEASURES[measure]} {summary[best][measure]:.2%} ({workdirs.IN_WORDS[best]} weights) after "
        f"{summary['steps']:,} steps and {in_words(summary['seconds'])}; {path}"
    )


def log_faulty(faulty: FaultyImages) -> None:
    """Logs the number and names of the images that could not be decoded since this process started, if any."""
    for purpose, done in {"train": "replaced in training", "eval": "left out of the evaluation"}.items():
        if names := faulty.names(purpose):
            more = [f"and {len(names) - _NAMED} more, all in the log"] if len(names) > _NAMED else []
            log("\n  ".join([f"Faulty images {done}: {len(names)}", *names[:_NAMED], *more]))


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that results depend on."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version()} | found


def in_words(seconds: float) -> str:
    """80.2 -> "1 min 20 s"; the two largest units of d, h, min and s."""
    seconds = round(seconds)
    parts = [(seconds // 86400, "d"), (seconds // 3600 % 24, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s")]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2])
