"""Checkpoints of the train state, written by orbax while the next steps run; format: docs/checkpoints.md."""

import contextlib
import dataclasses
import json
import logging as standard_logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from tnt_jax import workdir as workdirs
from tnt_jax.training.runtime import RunError
from tnt_jax.training.state import TrainState
from tnt_jax.workdir import FOLDER

DAMAGED_FOLDER = "damaged_checkpoints"


@dataclasses.dataclass(frozen=True)
class Retained:
    """Why a checkpoint is kept; every checkpoint's metadata has this for all checkpoints kept with it."""

    accuracy: float | None  # of the better of raw and averaged weights at its step; None: not evaluated
    scheduled: bool  # False: saved because the run had to stop there


def steps_to_retain(retained: Mapping[int, Retained], newest: int) -> set[int]:
    """The retention policy: the last step, the last `newest` scheduled ones, and the latest of the best ones."""
    steps = sorted(retained)
    scheduled = [step for step in steps if retained[step].scheduled]
    measured = [step for step in steps if retained[step].accuracy is not None]
    best = max(measured, key=lambda step: (retained[step].accuracy, step), default=None)
    return {*steps[-1:], *scheduled[-newest:], best} - {None}


class Checkpoints:
    """The checkpoints of one workdir: the newest few, and the best by accuracy. All processes make the same calls.

    A failed write (a full disk, a folder that has become read-only) raises RunError, which names the last good one.
    """

    def __init__(self, workdir: Path, keep: int):
        self._workdir = workdir
        self._folder = (workdir / FOLDER).absolute()
        self._keep = keep
        self._retained: dict[int, Retained] = {}
        self._failed = False
        _quiet_orbax()
        with self._writing():
            if jax.process_index() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)  # fails now, not at the first save, if it is a file
                _remove_half_written(self._folder)
            self._manager = ocp.CheckpointManager(
                self._folder,
                # Set before the first save or restore, so that item_metadata works on unread checkpoints.
                item_handlers={"state": ocp.StandardCheckpointHandler(), "metadata": ocp.JsonCheckpointHandler()},
                options=ocp.CheckpointManagerOptions(preservation_policy=self, cleanup_tmp_directories=True),
            )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Returns which checkpoints to keep; orbax calls it when a new one is complete."""
        del context
        return [info.step in self._retained for info in checkpoints]

    def save(
        self, state: TrainState, metadata: dict[str, Any], accuracy: float | None = None, scheduled: bool = True
    ) -> None:
        """Starts writing the (unreplicated, numpy) state; waits only for the previous write.

        With `accuracy`, of the better of raw and averaged weights at this step, the checkpoint competes for the best.
        Unless `scheduled`, it does not count among the newest and is deleted when the next one is complete.
        """
        step = int(state.step)
        with self._writing():
            # The previous one must be complete: this save may delete the checkpoints before it.
            self._manager.wait_until_finished()
            self._retain(step, accuracy, scheduled)
            more = {"kept": self._retained_as_json(), "checksums": workdirs.checksums(state)}
            described = workdirs.sign(metadata | more)
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(described)),
                force=True,
            )

    def update_metadata(self, step: int, changes: dict[str, Any], accuracy: float | None, scheduled: bool) -> None:
        """Changes a complete checkpoint's metadata, in one atomic write, and why it is kept."""
        with self._writing():
            self._manager.wait_until_finished()
            self._retain(step, accuracy, scheduled)
            if jax.process_index() == 0:
                path = self._folder / str(step) / "metadata" / "metadata"  # where orbax's JsonSave writes it
                described = json.loads(path.read_text()) | changes | {"kept": self._retained_as_json()}
                workdirs.write_atomically(path, json.dumps(workdirs.sign(described)).encode())
            self._delete_the_rest()

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """-> (state as numpy arrays, metadata) of the newest intact checkpoint, or None if there is no checkpoint.

        `like` gives structure, shapes and types. A damaged one (unreadable, or with wrong checksums) is logged and
        moved to WORKDIR/damaged_checkpoints, and the one before it is tried. Raises RunError if all checkpoints are
        damaged, or, with the arrays that differ, if one is of another model.
        """
        like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)
        damaged = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            self._check_arrays(step, like)
            try:
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(like), metadata=ocp.args.JsonRestore()),
                )
                workdirs.verify(restored.state, restored.metadata)
            except Exception as error:  # whatever orbax and tensorstore raise for damaged files
                if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                    raise
                why = str(error).partition("\n")[0] or type(error).__name__
                logging.warning("The checkpoint %s is damaged and is passed over: %s", self._path(step), why)
                damaged.append(step)
                continue
            self._move_away(damaged)
            self._resume_retention(restored.metadata)
            return restored.state, restored.metadata
        if damaged:
            raise RunError(
                f"None of the {len(damaged)} checkpoints in {self._workdir / FOLDER} can be read (see the warnings "
                "above). Use another --workdir, or delete that folder to start again."
            )
        return None

    def wait(self) -> None:
        """Waits until everything is on disk; raises RunError for a failed background write."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last write and stops the background threads."""
        if self._failed:  # already raised; orbax would raise it again
            return
        with self._writing():
            self._manager.close()

    def last_good(self) -> Path | None:
        """Returns the folder of the newest complete checkpoint, or None."""
        steps = workdirs.checkpoint_steps(self._workdir)
        return self._path(steps[-1]) if steps else None

    def _path(self, step: int) -> Path:
        return self._workdir / FOLDER / str(step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns any exception of a write in its body into a RunError that names the last good checkpoint."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:  # whatever orbax and tensorstore raise for a failed write
            self._failed = True
            last, words = self.last_good(), str(error)
            full = "No space left" in words or "RESOURCE_EXHAUSTED" in words
            raise RunError(
                f"A checkpoint could not be written into {self._folder}: "
                f"{'the disk is full. ' if full else ''}{words.partition(chr(10))[0][:300]}\n"
                + (f"The last good one is {last}. " if last else "There is no earlier one. ")
                + "Free disk space or fix the folder's permissions; the same command resumes from there."
            ) from error

    def _retain(self, step: int, accuracy: float | None, scheduled: bool) -> None:
        self._retained[step] = Retained(accuracy, scheduled)
        keep = steps_to_retain(self._retained, self._keep)
        self._retained = {step: entry for step, entry in sorted(self._retained.items()) if step in keep}

    def _retained_as_json(self) -> dict[str, Any]:
        return {str(step): dataclasses.asdict(entry) for step, entry in self._retained.items()}

    def _resume_retention(self, metadata: dict[str, Any]) -> None:
        """Restores the retention state of the restored checkpoint and finishes its pending deletions."""
        there = self._manager.all_steps()
        if "kept" in metadata:
            kept = {int(step): Retained(**entry) for step, entry in metadata["kept"].items()}
            self._retained = {step: entry for step, entry in kept.items() if step in there}
        else:  # from an earlier version, which left retention to orbax
            metrics = {step: self._manager.metrics(step) for step in there}
            self._retained = {
                step: Retained(found["accuracy"] if found else None, scheduled=True) for step, found in metrics.items()
            }
        self._delete_the_rest()

    def _delete_the_rest(self) -> None:
        for step in set(self._manager.all_steps()) - self._retained.keys():
            self._manager.delete(step)

    def _check_arrays(self, step: int, like: TrainState) -> None:
        """Raises RunError if the checkpoint is intact but of another model."""
        try:
            saved = _shapes(self._manager.item_metadata(step)["state"])
        except Exception:  # damaged: restoring it reports how
            return
        wanted = _shapes(like)
        differing = [
            f"{name} ({saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} now)"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if saved and differing:
            more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
            raise RunError(
                f"{self._path(step)} is of another model or optimizer: {'; '.join(differing[:5])}"
                f"{more}. Use another --workdir; --config.pretrained={self._workdir} starts from its weights."
            )

    def _move_away(self, steps: list[int]) -> None:
        """Moves damaged checkpoints out of the way of new ones of the same step; deletes nothing."""
        if not steps:
            return
        if jax.process_index() == 0:
            target = self._workdir / DAMAGED_FOLDER
            target.mkdir(exist_ok=True)
            for step in steps:
                number = len(list(target.glob(f"{step}-*"))) + 1
                self._path(step).rename(target / f"{step}-{number}")
        self._manager.reload()


def _remove_half_written(folder: Path) -> None:
    """Removes what a killed run left; retries, as a run that failed in this process may still be writing.

    orbax does the same once, in the background, and would fail at the first save if such a write interferes.
    """
    for _ in range(10):
        for path in folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        if not any(folder.glob("*.orbax-checkpoint-tmp")):
            return


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """A tree of arrays or of orbax's array metadata -> {path: shape}, with the same paths for both."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


class _NoTracebacks(standard_logging.Filter):
    """Drops the tracebacks that orbax logs for errors it also raises."""

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname) or logging.get_verbosity() > logging.WARNING


def _quiet_orbax() -> None:
    """Silences the follow-up errors of orbax's other threads; orbax raises the first error of a write itself."""
    logger = logging.get_absl_logger()
    if any(isinstance(each, _NoTracebacks) for each in logger.filters):
        return
    logger.addFilter(_NoTracebacks())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
