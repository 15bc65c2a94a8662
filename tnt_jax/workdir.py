"""What a run leaves in its workdir, for whoever reads it: the configuration and the weights.

Format, WORKDIR/checkpoints/STEP/:
    state/      the TrainState as a pytree of float32 and integer arrays, one copy whatever the number of devices:
                step, params, opt_state, ema_params (absent where ema_decay is 0), key, metrics
    metadata/   JSON: step, seconds (of training so far, over all sessions), device_count, process_count,
                best_accuracy (so far, null before the first evaluation), checksums (CRC-32 of every array) and more:
                docs/checkpoints.md has all of it
orbax writes into a temporary folder and renames it, so a folder named by a number is complete. WORKDIR/config.json
holds the whole configuration, the model's with every size filled in, and WORKDIR/classes.json the names of the
classes, a list in the order of the labels (null where the data set has none). WORKDIR/metrics.jsonl is the log in
numbers: a line for each write, {"step": 100, "train/loss": 1.5, ...}, null for what was not finite.
"""

import concurrent.futures
import functools
import json
import math
import os
import re
import unicodedata
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

FOLDER = "checkpoints"
CONFIG_FILE = "config.json"
CLASSES_FILE = "classes.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
SUITE_FILE = "report_card.json"
# A checkpoint's sets of weights, as messages and --weights call them: their name in its state, and in an evaluation.
IN_STATE = {"raw": "params", "averaged": "ema_params"}
IN_EVALUATION = {"raw": "eval", "averaged": "eval_ema"}
IN_WORDS = {name: kind for kind, name in IN_EVALUATION.items()}  # of an evaluation's set, in words
WEIGHTS = ("best", *IN_STATE)  # what may be asked for; "best": whichever the last evaluation found better


# orbax takes paths for patterns, and tensorstore a backslash for a slash: what they wrote could not be read again.
_NOT_IN_PATHS = "[]*?\\"
_LONGEST_NAME, _LONGEST_PATH = 255, 4096 - 512  # bytes; the rest of a path is for what a run writes into the folder


def user_path(name: str | os.PathLike[str]) -> Path:
    """A path as people give it -> with the user's home for ~. Raises ValueError where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{ascii(os.fspath(name))}: there is no user of that name, whose home ~ would be.") from error


def folder_path(name: str | os.PathLike[str]) -> Path:
    """A folder's name -> its path, absolute, with the user's home for ~; the folder need not exist.

    Raises ValueError with the fix for a name that no folder can have, or in which nothing could be read again.
    """
    text = os.fspath(name)
    path = user_path(text).absolute()
    if odd := sorted({each for each in str(path) if unicodedata.category(each) in ("Cc", "Cs")}):
        raise ValueError(
            f"{ascii(text)}: {', '.join(map(ascii, odd))} cannot be in a path here, only what can be printed and is "
            "UTF-8. Choose another name."
        )
    if odd := [each for each in _NOT_IN_PATHS if each in str(path)]:
        raise ValueError(
            f"{text}: a path with {' or '.join(odd)} would be read as a pattern, and its checkpoints not found again. "
            "Choose another name."
        )
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > _LONGEST_NAME or len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(
            f"{text[:60]}...: a name may have {_LONGEST_NAME} bytes and a path {_LONGEST_PATH:,}; here are {longest:,} "
            f"and {len(os.fsencode(path)):,}. Choose a shorter one."
        )
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise ValueError(f"{text}: {part} is a link to {os.readlink(part)}, which is not there. Remove the link.")
    return path


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The configuration that a run left in its workdir, or None where there is none."""
    path = workdir / CONFIG_FILE
    fix = "Use another --workdir, or fix the file."
    if not path.is_file():
        return None
    config = read_json(path, fix)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no configuration. {fix}")
    config, notes = with_current_keys(config)
    for note in notes:
        warn_once(f"{path}: {note}")
    return config


def read_summary(workdir: Path) -> dict[str, Any] | None:
    """A run's results; None before its end. Raises ValueError for a damaged file."""
    return read_json(workdir / SUMMARY_FILE)


def read_json(path: Path, fix: str = "Fix or remove the file.") -> Any:
    """The content of a file that a run may have left, or None. Raises ValueError that names a damaged one."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). {fix}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, whose last value would win where a key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


@functools.cache  # a configuration is read several times on the way to an evaluation
def warn_once(message: str) -> None:
    """Logs a warning, the first time."""
    logging.warning("%s", message)


def with_current_keys(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A configuration of any version, or a checkpoint's metadata -> with today's keys, and what was changed, in words.

    model.inner_attention's "broadcast" and "dot" were forms of what "xla" now chooses by the device: the same numbers
    up to rounding. data.reader_threads, threads that batches never depended on, is left out.
    """
    config, notes = dict(config), []
    data, model = config.get("data"), config.get("model")
    if isinstance(data, dict) and "reader_threads" in data:
        config["data"] = data = dict(data)
        notes.append(f"data.reader_threads={data.pop('reader_threads')} is left out, see data.worker_processes")
    if isinstance(model, dict):
        config["model"] = model = dict(model)
        renamed = {
            "inner_attention": ("inner_implementation", {"broadcast": "xla", "dot": "xla"}),
            "remat_keeps": (
                "remat_policy",
                {"inputs": "nothing_saveable", "products": "dots_with_no_batch_dims_saveable"},
            ),
        }
        for old, (new, values) in renamed.items():
            if old in model:
                value = model.pop(old)
                model.setdefault(new, values.get(value, value))
                notes.append(f"model.{old}={value} is model.{new}={model[new]} now")
    return config, notes


def parse_metrics_line(line: bytes | str) -> dict[str, Any] | None:
    """A line of metrics.jsonl -> its object; None for one that is torn or damaged, so that it holds no such object."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError too
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    return values if all(isinstance(value, int | float | None) for value in values.values()) else None


def measure(result: Mapping[str, Any]) -> str:
    """What an evaluation is judged by: mean_average_precision of several labels an image, else accuracy."""
    return "mean_average_precision" if "mean_average_precision" in result else "accuracy"


def select_best(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The name of the result with the highest `measure`; among equals the one with the lowest loss."""

    def quality(name: str) -> tuple[float, float]:
        value, loss = results[name][measure(results[name])], results[name]["loss"]
        return -math.inf if value is None else value, -loss if loss is not None and loss == loss else -math.inf

    return max(results, key=quality)


def last_evaluation(workdir: Path, step: int) -> tuple[int, dict[str, dict[str, float | None]]] | None:
    """The last evaluation up to a step -> (its step, {"raw": {"accuracy": 0.9, "loss": 0.3}, "averaged": ...}).

    With mean_average_precision where images have several labels. From metrics.jsonl; None where that has none. Losses
    that were not finite are None.
    """
    path = workdir / METRICS_FILE
    lines = map(parse_metrics_line, path.read_bytes().splitlines()) if path.is_file() else ()
    found = None
    for values in lines:
        if values is None or values["step"] > step:
            continue
        results = {
            name: {
                metric: values.get(f"{prefix}/{metric}")
                for metric in ("mean_average_precision", "accuracy", "loss")
                if metric != "mean_average_precision" or f"{prefix}/{metric}" in values
            }
            for name, prefix in IN_EVALUATION.items()
            if f"{prefix}/accuracy" in values
        }
        if results:
            found = values["step"], results
    return found


def read_class_names(workdir: Path) -> tuple[str, ...] | None:
    """The class names that a run left in its workdir; () where its data set has none; None where there is no file."""
    path = workdir / CLASSES_FILE
    if not path.is_file():
        return None
    names = read_json(path)
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path} holds no list of names. Fix or remove the file.")
    model = (read_config(workdir) or {}).get("model")
    classes = model.get("num_classes") if isinstance(model, dict) else None
    if names and isinstance(classes, int) and len(names) > classes:
        raise ValueError(
            f"{path} names {len(names)} classes, and the run's model has {classes} ({CONFIG_FILE}). Fix or remove the "
            "file."
        )
    return tuple(names or ())


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes the whole file, its folder too, or leaves the old one as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def checkpoint_steps(workdir: Path) -> list[int]:
    """The steps of the complete checkpoints in a workdir, ascending; reads folder names alone."""
    folder = workdir / FOLDER
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name, re.ASCII))


def read_weights(workdir: Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workdir and a step (None: the newest) -> (weights, metadata), without knowing the model.

    weights: "params" and, where the run averaged them, "ema_params", nested dicts of numpy arrays. Where the run goes
    on meanwhile and removes the checkpoint that is read, the newest one then is taken.

    Raises ValueError where there is no such checkpoint, and where it is damaged, with the one before it.
    """
    while True:
        steps = checkpoint_steps(workdir)
        if not steps or (step is not None and step not in steps):
            found = f"steps {', '.join(map(str, steps))}" if steps else "none"
            raise ValueError(
                f"{workdir / FOLDER}: there is no checkpoint{'' if step is None else f' of step {step}'}, only {found}."
            )
        taken = steps[-1] if step is None else step
        folder = (workdir / FOLDER / str(taken)).absolute()
        try:
            return _read_folder(folder)
        except Exception as error:  # whatever orbax and tensorstore make of damaged files
            if taken not in checkpoint_steps(workdir):
                continue  # removed while it was read: the run has a newer one, or the loop says what there is
            before = [str(earlier) for earlier in steps if earlier < taken]
            fix = f"The one before it is {folder.parent / before[-1]}." if before else "There is none before it."
            why = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"The checkpoint {folder} is damaged: {why}. {fix}") from error


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's folder -> (weights, metadata)."""
    # orbax takes seconds to import, which nobody who reads a configuration should wait for.
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(), metadata=ocp.args.JsonRestore())
        )
    weights = {name: restored.state[name] for name in ("params", "ema_params") if restored.state[name] is not None}
    verify(weights, restored.metadata)
    return weights, restored.metadata


def checksums(tree: Any) -> dict[str, int]:
    """A tree of numpy arrays -> the CRC-32 of each one's bytes, by its path ("params/head/kernel").

    orbax' files have checksums in some places only: a changed byte could come back as another number.
    """
    import jax  # seconds, which nobody who reads a configuration should wait for
    import numpy as np

    def checksum(leaf: Any) -> int:
        return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib lets go of Python's lock
        return dict(zip(names, pool.map(checksum, [leaf for _, leaf in leaves]), strict=True))


def sign(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with a checksum of itself, in place of one that it may have."""
    return dict(metadata) | {"metadata_checksum": _metadata_checksum(metadata)}


def verify(tree: Any, metadata: Mapping[str, Any]) -> None:
    """Raises ValueError where arrays of a checkpoint, or its metadata, are not what was written.

    A tree with a part of the arrays will do. Checkpoints of earlier versions have no checksums, and are taken as read.
    """
    if "checksums" not in metadata:
        return
    if metadata["metadata_checksum"] != _metadata_checksum(metadata):
        raise ValueError("its metadata is not what was written")
    wanted, found = metadata["checksums"], checksums(tree)
    wrong = [name for name, checksum in found.items() if wanted.get(name) != checksum]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{', '.join(wrong[:3])}{more}: not the bytes that were written")


def _metadata_checksum(metadata: Mapping[str, Any]) -> int:
    plain = {name: value for name, value in metadata.items() if name != "metadata_checksum"}
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())
