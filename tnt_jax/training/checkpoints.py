"""Checkpoints of the train state, written by orbax while the next steps run.

Format, WORKDIR/checkpoints/STEP/:
    state/      the TrainState as a pytree of float32 and integer arrays, one copy whatever the number of devices:
                step, params, opt_state, ema_params (absent where ema_decay is 0), key, metrics
    metadata/   JSON: step, seconds (of training so far, over all sessions), device_count, process_count,
                best_accuracy (so far, null before the first evaluation)
orbax writes into a temporary folder and renames it, so a folder named by a number is complete. WORKDIR/config.json
holds the whole configuration, the model's with every size filled in.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from tnt_jax.training.state import TrainState

FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged_checkpoints"
CONFIG_FILE = "config.json"


class RunError(RuntimeError):
    """A run that was possible cannot go on; the message says why and what remains."""


class Checkpoints:
    """The checkpoints of one workdir: the newest few, and the best by accuracy. All processes make the same calls."""

    def __init__(self, workdir: Path, keep: int):
        self._workdir = workdir
        policies = [
            checkpoint_managers.LatestN(n=keep),
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics["accuracy"], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = ocp.CheckpointManager(
            (workdir / FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: TrainState, metadata: dict[str, Any], accuracy: float | None = None) -> None:
        """Starts writing the (unreplicated, numpy) state; waits only for the write before it.

        With `accuracy`, the better of raw and averaged weights at this step, the checkpoint competes for the best.
        """
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)),
            metrics=None if accuracy is None else {"accuracy": accuracy},
            force=True,
        )

    def newest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """-> (state as numpy arrays, metadata) of the newest readable checkpoint, or None where there is none.

        `like` gives structure, shapes and types. One that cannot be read is moved to WORKDIR/damaged_checkpoints, said
        so, and the one before it taken. Raises RunError where there are checkpoints and none can be read.
        """
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(like), metadata=ocp.args.JsonRestore()),
                )
            except Exception as error:  # whatever orbax and tensorstore make of damaged files
                logging.warning(
                    "The checkpoint %s cannot be read and is passed over: %s",
                    self._workdir / FOLDER / str(step),
                    str(error).partition("\n")[0],
                )
                damaged.append(step)
                continue
            self._move_away(damaged)
            return restored.state, restored.metadata
        if damaged:
            raise RunError(
                f"None of the {len(damaged)} checkpoints in {self._workdir / FOLDER} can be read (see the warnings "
                "above). Use another --workdir, or delete that folder to start anew."
            )
        return None

    def wait(self) -> None:
        """Returns once everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and ends the background threads."""
        self._manager.close()

    def _move_away(self, steps: list[int]) -> None:
        """Damaged folders would stand in the way of a new checkpoint of the same step; nothing is deleted."""
        if not steps:
            return
        if jax.process_index() == 0:
            target = self._workdir / DAMAGED_FOLDER
            target.mkdir(exist_ok=True)
            for step in steps:
                number = len(list(target.glob(f"{step}-*"))) + 1
                (self._workdir / FOLDER / str(step)).rename(target / f"{step}-{number}")
        self._manager.reload()


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The configuration that a run left in its workdir, or None where there is none."""
    path = workdir / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}). Use another --workdir, or mend the file.") from error


def checkpoint_steps(workdir: Path) -> list[int]:
    """The steps of the complete checkpoints in a workdir, ascending; reads folder names alone."""
    folder = workdir / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def read_weights(workdir: Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workdir and a step (None: the newest) -> (weights, metadata), without knowing the model.

    weights: "params" and, where the run averaged them, "ema_params", nested dicts of numpy arrays.
    Raises ValueError where there is no such checkpoint.
    """
    steps = checkpoint_steps(workdir)
    if not steps or (step is not None and step not in steps):
        found = f"steps {', '.join(map(str, steps))}" if steps else "none"
        raise ValueError(
            f"{workdir / FOLDER}: there is no checkpoint{'' if step is None else f' of step {step}'}, only {found}."
        )
    step = steps[-1] if step is None else step
    folder = (workdir / FOLDER / str(step)).absolute()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(), metadata=ocp.args.JsonRestore())
        )
    weights = {name: restored.state[name] for name in ("params", "ema_params") if restored.state[name] is not None}
    return weights, restored.metadata
