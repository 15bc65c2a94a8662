"""Where metrics go: TensorBoard event files and metrics.jsonl, both through clu. Imports TensorFlow (by way of clu)."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from clu import metric_writers

from tnt_jax.workdir import METRICS_FILE, parse_metrics_line

CONFIG_TAG = "config"
RECORD_HEAD, RECORD_TAIL = 12, 4  # bytes around a TFRecord: its length with a checksum, and the checksum of its content
# What depends on the machine and the moment. All else in metrics.jsonl is the same, digit for digit, in a run that was
# stopped and continued (on the same devices); these may differ, or be absent from a line whose steps were not timed.
TIME_LIKE = (
    "seconds",
    "train/images_per_second",
    "train/images_per_second_per_device",
    "train/model_flops_utilization",
    "train/input_wait_share",
    "train/host_memory_gb",
    "train/device_memory_gb",
)


class JsonLinesWriter(metric_writers.MetricWriter):
    """Appends one JSON object a write to a file: {"step": 100, "train/loss": 1.5, ...}. Numbers alone are kept.

    Every line reaches the operating system before the call returns, so that a killed process leaves whole lines.
    place: a step -> numbers that every line of it has, such as the epoch.
    """

    def __init__(self, path: Path, place: Callable[[int], Mapping[str, float]] = lambda step: {}):
        self._file = path.open("a", buffering=1)
        self._place = place

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One line. JSON has no NaN and no infinity: such a value becomes null."""
        values = {name: float(np.asarray(value)) for name, value in {**self._place(step), **scalars}.items()}
        line = {"step": int(step)} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Has the lines on the disk, so that no checkpoint is ahead of them even if the machine goes down."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def write_summaries(self, step: int, values: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
        """Not numbers: TensorBoard alone has them."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Not numbers: TensorBoard alone has them."""

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Not numbers: TensorBoard alone has them."""

    def write_audios(self, step: int, audios: Mapping[str, Any], *, sample_rate: int) -> None:
        """Not numbers: TensorBoard alone has them."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Not numbers: TensorBoard alone has them."""

    def write_histograms(
        self, step: int, arrays: Mapping[str, Any], num_buckets: Mapping[str, int] | None = None
    ) -> None:
        """Not numbers: TensorBoard alone has them."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """config.json has them."""


def make_writer(
    workdir: Path, writes: bool, place: Callable[[int], Mapping[str, float]] = lambda step: {}
) -> metric_writers.MetricWriter:
    """TensorBoard's files and metrics.jsonl in the workdir; nothing where another process writes.

    place: see JsonLinesWriter.
    """
    if not writes:
        return metric_writers.MultiWriter([])
    lines = JsonLinesWriter(workdir / METRICS_FILE, place)
    with _oserrors():
        return metric_writers.MultiWriter([metric_writers.SummaryWriter(str(workdir)), lines])


@contextlib.contextmanager
def _oserrors() -> Iterator[None]:
    """Inside it, what TensorFlow cannot write is an OSError."""
    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(str(error).partition("\n")[0]) from error


def close(writer: metric_writers.MetricWriter) -> None:
    """Closes the files. Raises OSError as `write` does."""
    with _oserrors():
        writer.close()


def write(writer: metric_writers.MetricWriter, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes the numbers of a step to the disk. Raises OSError where that fails, in TensorFlow too."""
    with _oserrors():
        writer.write_scalars(step, scalars)
        writer.flush()


def write_config(writer: metric_writers.MetricWriter, config: Mapping[str, Any]) -> None:
    """The configuration as text at step 0, for TensorBoard. Raises OSError as `write` does."""
    text = "\n".join(f"    {line}" for line in json.dumps(config, indent=2).splitlines())  # Markdown's code
    with _oserrors():
        writer.write_texts(0, {CONFIG_TAG: text})
        writer.flush()


def go_back(workdir: Path, step: int, evaluation_due: bool) -> list[str]:
    """Removes from metrics.jsonl and TensorBoard's files what a run resumed at a step will write again.

    That are later steps, the evaluation of this one where it is still due, and what was torn by the end of a process.
    -> what else cannot be read, a sentence for each file: it is left out too, and the file as it was kept beside it.
    """
    notes = [_go_back_in_lines(workdir / METRICS_FILE, step, evaluation_due)]
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        notes.append(_go_back_in_events(path, step, evaluation_due))
    return [note for note in notes if note]


def _go_back_in_lines(path: Path, step: int, evaluation_due: bool) -> str:
    if not path.exists():
        return ""
    lines = path.read_bytes().splitlines(keepends=True)
    kept, damaged = [], 0
    for number, line in enumerate(lines, 1):
        values = parse_metrics_line(line)
        if values is None:
            damaged += number < len(lines) or line.endswith(b"\n")  # else torn
        elif not any(_comes_again(name, values["step"], step, evaluation_due) for name in values if name != "step"):
            kept.append(line)
    note = _keep_damaged(path, f"{damaged} of {len(lines)} lines of {path} are damaged") if damaged else ""
    _replace(path, b"".join(kept))
    return note


def _go_back_in_events(path: Path, step: int, evaluation_due: bool) -> str:
    """A file of events is a file of TFRecords; only one that has something to remove is written anew."""
    kept, changed, read, note = [], False, 0, ""
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            read += RECORD_HEAD + len(record) + RECORD_TAIL
            event = tf.compat.v1.Event.FromString(record)
            values = event.summary.value if event.HasField("summary") else ()
            if any(_comes_again(value.tag, event.step, step, evaluation_due) for value in values):
                changed = True
            else:
                kept.append(record)
    except tf.errors.DataLossError:  # nothing behind this can be read
        changed = True
        if not _is_torn(path, read):
            note = _keep_damaged(path, f"the last {path.stat().st_size - read:,} bytes of {path} are damaged")
    if changed:
        temporary = path.with_name(path.name.replace("tfevents", "rewritten"))  # no name that TensorBoard reads
        with tf.io.TFRecordWriter(str(temporary)) as writer:
            for record in kept:
                writer.write(record)
        temporary.replace(path)
    return note


def _is_torn(path: Path, start: int) -> bool:
    """Whether the record that starts there is the file's last, cut short: what the end of a process leaves."""
    with path.open("rb") as file:
        file.seek(start)
        head = file.read(RECORD_HEAD)
    length = int.from_bytes(head[:8], "little")
    return len(head) < RECORD_HEAD or start + RECORD_HEAD + length + RECORD_TAIL > path.stat().st_size


def _keep_damaged(path: Path, what: str) -> str:
    """A copy of the file as it is, under a name that nobody reads -> a sentence about it."""
    copy = path.with_name("damaged." + path.name.replace("tfevents", "events"))
    copy.write_bytes(path.read_bytes())
    return f"{what[0].upper()}{what[1:]} and left out from now on; the file as it was is kept as {copy.name}."


def _comes_again(name: str, written: int, step: int, evaluation_due: bool) -> bool:
    return written > step or not step or (evaluation_due and written == step and name.startswith("eval"))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
