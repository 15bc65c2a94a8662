"""Where metrics go: TensorBoard event files and metrics.jsonl, both through clu. Imports TensorFlow (by way of clu)."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu import metric_writers

METRICS_FILE = "metrics.jsonl"
# What depends on the machine and the moment. All else in metrics.jsonl is the same, digit for digit, in a run that was
# stopped and continued (on the same devices); these may differ, or be absent from a line whose steps were not timed.
TIME_LIKE = (
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
    """

    def __init__(self, path: Path):
        self._file = path.open("a", buffering=1)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """One line. JSON has no NaN and no infinity: such a value becomes null."""
        values = {name: float(np.asarray(value)) for name, value in scalars.items()}
        line = {"step": int(step)} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Nothing waits."""
        self._file.flush()

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


def make_writer(workdir: Path, writes: bool) -> metric_writers.MetricWriter:
    """TensorBoard's files and metrics.jsonl in the workdir; nothing where another process writes."""
    if not writes:
        return metric_writers.MultiWriter([])
    return metric_writers.MultiWriter(
        [metric_writers.SummaryWriter(str(workdir)), JsonLinesWriter(workdir / METRICS_FILE)]
    )


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the lines of metrics.jsonl that a resumed run will write again: those of later steps, and a torn one."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    temporary.replace(path)


def _step_of(line: str) -> float:
    """The step of a line; infinity where the line was cut off by the end of its process."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
