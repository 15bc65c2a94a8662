"""Checkpoints of the train state, written by orbax while the next steps run; docs/checkpoints.md has their format."""

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
    """Why a checkpoint is there; every checkpoint's metadata tells it of all that are kept with it."""

    accuracy: float | None  # at its step, the better of raw and averaged weights; None: not evaluated
    scheduled: bool  # False: saved because the run had to stop there


def steps_to_retain(retained: Mapping[int, Retained], newest: int) -> set[int]:
    """The retention policy: the last step, the last `newest` of the scheduled ones, and of the best ones the last."""
    steps = sorted(retained)
    scheduled = [step for step in steps if retained[step].scheduled]
    measured = [step for step in steps if retained[step].accuracy is not None]
    best = max(measured, key=lambda step: (retained[step].accuracy, step), default=None)
    return {*steps[-1:], *scheduled[-newest:], best} - {None}


class Checkpoints:
    """The checkpoints of one workdir: the newest few, and the best by accuracy. All processes make the same calls.

    What cannot be written (a full disk, a folder that is read-only by now) is a RunError that names the last good one.
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
                self._folder.mkdir(parents=True, exist_ok=True)  # else a file of that name is noticed at the first save
                _remove_half_written(self._folder)
            self._manager = ocp.CheckpointManager(
                self._folder,
                # Named before anything is saved or restored, so that a checkpoint can be described unread.
                item_handlers={"state": ocp.StandardCheckpointHandler(), "metadata": ocp.JsonCheckpointHandler()},
                options=ocp.CheckpointManagerOptions(preservation_policy=self, cleanup_tmp_directories=True),
            )

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """orbax asks which of its checkpoints to keep when a new one is complete."""
        del context
        return [info.step in self._retained for info in checkpoints]

    def save(
        self, state: TrainState, metadata: dict[str, Any], accuracy: float | None = None, scheduled: bool = True
    ) -> None:
        """Starts writing the (unreplicated, numpy) state; waits only for the write before it.

        With `accuracy`, the better of raw and averaged weights at this step, the checkpoint competes for the best.
        One that is not `scheduled` does not count among the newest, and goes when the next one is complete.
        """
        step = int(state.step)
        with self._writing():
            # The one before must be complete, for this one may be what removes those that it was to follow.
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
        """Changes what is said of a complete checkpoint: its metadata, in one atomic step, and why it is kept."""
        with self._writing():
            self._manager.wait_until_finished()
            self._retain(step, accuracy, scheduled)
            if jax.process_index() == 0:
                path = self._folder / str(step) / "metadata" / "metadata"  # where orbax' JsonSave has it
                described = json.loads(path.read_text()) | changes | {"kept": self._retained_as_json()}
                workdirs.write_atomically(path, json.dumps(workdirs.sign(described)).encode())
            self._delete_the_rest()

    def restore_newest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """-> (state as numpy arrays, metadata) of the newest sound checkpoint, or None where there is none.

        `like` gives structure, shapes and types. A damaged one (unreadable, or not the bytes that its checksums say) is
        moved to WORKDIR/damaged_checkpoints, logged, and the one before it taken. Raises RunError where there are
        checkpoints and none is sound, and for one of another model, with the arrays that differ.
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
            except Exception as error:  # whatever orbax and tensorstore make of damaged files
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
                "above). Use another --workdir, or delete that folder to start anew."
            )
        return None

    def wait(self) -> None:
        """Returns once everything is on disk; raises what went wrong in the background."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and ends the background threads."""
        if self._failed:  # reported already; orbax would raise it once more
            return
        with self._writing():
            self._manager.close()

    def last_good(self) -> Path | None:
        """The folder of the newest complete checkpoint."""
        steps = workdirs.checkpoint_steps(self._workdir)
        return self._path(steps[-1]) if steps else None

    def _path(self, step: int) -> Path:
        return self._workdir / FOLDER / str(step)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Inside it, whatever keeps a checkpoint from being written becomes a RunError that says what remains."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:  # whatever orbax and tensorstore make of a disk that cannot be written
            self._failed = True
            last, words = self.last_good(), str(error)
            full = "No space left" in words or "RESOURCE_EXHAUSTED" in words
            raise RunError(
                f"A checkpoint could not be written into {self._folder}: "
                f"{'the disk is full. ' if full else ''}{words.partition(chr(10))[0][:300]}\n"
                + (f"The last good one is {last}. " if last else "There is no earlier one. ")
                + "Make room or correct the folder's rights; the same command resumes from there."
            ) from error

    def _retain(self, step: int, accuracy: float | None, scheduled: bool) -> None:
        self._retained[step] = Retained(accuracy, scheduled)
        keep = steps_to_retain(self._retained, self._keep)
        self._retained = {step: entry for step, entry in sorted(self._retained.items()) if step in keep}

    def _retained_as_json(self) -> dict[str, Any]:
        return {str(step): dataclasses.asdict(entry) for step, entry in self._retained.items()}

    def _resume_retention(self, metadata: dict[str, Any]) -> None:
        """Takes up what was kept at the restored checkpoint, and deletes what it had been about to delete."""
        there = self._manager.all_steps()
        if "kept" in metadata:
            kept = {int(step): Retained(**entry) for step, entry in metadata["kept"].items()}
            self._retained = {step: entry for step, entry in kept.items() if step in there}
        else:  # of an earlier version of this project, which left it to orbax
            metrics = {step: self._manager.metrics(step) for step in there}
            self._retained = {
                step: Retained(found["accuracy"] if found else None, scheduled=True) for step, found in metrics.items()
            }
        self._delete_the_rest()

    def _delete_the_rest(self) -> None:
        for step in set(self._manager.all_steps()) - self._retained.keys():
            self._manager.delete(step)

    def _check_arrays(self, step: int, like: TrainState) -> None:
        """Raises RunError where the checkpoint is sound, but of another model."""
        try:
            saved = _shapes(self._manager.item_metadata(step)["state"])
        except Exception:  # damaged: reading it will say how
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
        """Damaged folders would stand in the way of a new checkpoint of the same step; nothing is deleted."""
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
    """What a killed run left. Of one that failed in this very process the last writes may still come, hence the turns.

    orbax does the same once, in the background, and would fail at the first save where a write comes in between.
    """
    for _ in range(10):
        for path in folder.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(path, ignore_errors=True)
        time.sleep(0.05)
        if not any(folder.glob("*.orbax-checkpoint-tmp")):
            return


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """A tree of arrays or of orbax' descriptions of them -> path: shape; the same paths for both."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: hasattr(node, "shape"))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
        if hasattr(leaf, "shape")
    }


class _NoTracebacks(standard_logging.Filter):
    """Drops the tracebacks that orbax logs of errors which it raises as well."""

    def filter(self, record: standard_logging.LogRecord) -> bool:
        return not (record.exc_info and "orbax" in record.pathname) or logging.get_verbosity() > logging.WARNING


def _quiet_orbax() -> None:
    """orbax raises the first error of a write; what its other threads meet after that is not logged by each again."""
    logger = logging.get_absl_logger()
    if any(isinstance(each, _NoTracebacks) for each in logger.filters):
        return
    logger.addFilter(_NoTracebacks())
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            before(unraisable)

    sys.unraisablehook = hook
