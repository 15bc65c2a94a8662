"""Steps whose loss, gradient or updated weights are not finite: which batch it was, and what is said about it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from tnt_jax.training import report
from tnt_jax.training.setup import TrainingRun

FIX = (
    "A lower config.learning_rate, a longer config.warmup_epochs, config.gradient_clip_norm=1 or "
    "config.model.dtype=float32 usually helps; config.nonfinite=skip leaves single steps out."
)


@dataclasses.dataclass
class Skips:
    """Steps left out. Both are in every checkpoint, so that a resumed run counts on."""

    since_line: int = 0  # since the last line of the log
    in_a_row: int = 0  # up to now

    def count(self, finite: bool) -> None:
        """One step more."""
        self.since_line += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1


def save_batch(run: TrainingRun, step: int, results: dict[str, Any], index: Any) -> Path:
    """Writes WORKDIR/nonfinite_STEP.json: the step's numbers and the indices of its examples in the training split.

    results: what the step returned, on the host. index: the batch's, on the devices; all processes' are gathered.
    """
    own = np.concatenate([np.asarray(shard.data).ravel() for shard in index.addressable_shards])
    indices = multihost_utils.process_allgather(own).ravel() if jax.process_count() > 1 else own
    path = run.workdir / f"nonfinite_{step}.json"
    numbers = {name: float(results[name]) for name in ("loss", "gradient_norm", "learning_rate")}
    values = {
        "step": step,
        # JSON has neither NaN nor infinity.
        **{name: value if math.isfinite(value) else str(value) for name, value in numbers.items()},
        "data": run.experiment.data.name,
        "split": run.experiment.data.train_split,
        "indices": [int(number) for number in indices],
    }
    report.write_json(path, values)
    return path


def describe(step: int, results: dict[str, Any], path: Path) -> str:
    """The step in words, and where its batch is named."""
    return (
        f"Step {step}: the loss, the gradient or the updated weights are not finite (loss {results['loss']:g}, "
        f"gradient norm {results['gradient_norm']:g}, learning rate {results['learning_rate']:g}). {path} names the "
        "examples of its batch."
    )
