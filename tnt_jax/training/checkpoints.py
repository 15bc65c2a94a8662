"""Checkpoints of the train state, written by orbax while the next steps run; tnt_jax/workdir.py has their format."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from tnt_jax.training.errors import RunError
from tnt_jax.training.state import TrainState
from tnt_jax.workdir import FOLDER

DAMAGED_FOLDER = "damaged_checkpoints"


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
