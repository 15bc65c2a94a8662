"""Reads what a run leaves in its workdir: configuration, metrics and weights.

Format, WORKDIR/checkpoints/STEP/:
    state/      the TrainState as a pytree of float32 and integer arrays, one copy whatever the number of devices:
                step, params, opt_state, ema_params (absent where ema_decay is 0), key, metrics
    metadata/   JSON: step, seconds (of training so far, over all sessions), device_count, process_count,
                best_accuracy (so far, null before the first evaluation), checksums (CRC-32 of every array) and more:
                see docs/checkpoints.md
orbax writes into a temporary folder and renames it, so a folder named by a number is complete. WORKDIR/config.json
holds the whole configuration, with every size of the model filled in, and WORKDIR/classes.json the class names, a list
in label order (null if the data set has none). WORKDIR/metrics.jsonl is the log in numbers: one line per write,
{"step": 100, "train/loss": 1.5, ...}, with null for values that were not finite.
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
# A checkpoint's sets of weights, as in messages and --weights -> their names in its state and in an evaluation.
IN_STATE = {"raw": "params", "averaged": "ema_params"}
IN_EVALUATION = {"raw": "eval", "averaged": "eval_ema"}
IN_WORDS = {name: kind for kind, name in IN_EVALUATION.items()}  # name in an evaluation -> name in messages
WEIGHTS = ("best", *IN_STATE)  # choices of --weights; "best": whichever the last evaluation found better


# orbax reads paths as patterns, and tensorstore a backslash as a slash: they could not read back what they wrote.
_NOT_IN_PATHS = "[]*?\\"
_LONGEST_NAME, _LONGEST_PATH = 255, 4096 - 512  # bytes; 512 are left for what a run writes into the folder


def user_path(name: str | os.PathLike[str]) -> Path:
    """A user's path -> the path with ~ expanded. Raises ValueError if there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{ascii(os.fspath(name))}: there is no user of that name, whose home ~ would be.") from error


def folder_path(name: str | os.PathLike[str]) -> Path:
    """A folder's name -> its absolute path with ~ expanded; the folder need not exist.

    Raises ValueError, with the fix, for a name that no folder can have, or whose content could not be read back.
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
    """Returns the configuration that a run left in its workdir, or None if there is none."""
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
    """Returns a run's results, or None before its end. Raises ValueError for a damaged file."""
    return read_json(workdir / SUMMARY_FILE)


def read_json(path: Path, fix: str = "Fix or remove the file.") -> Any:
    """Returns the content of a file that a run may have left, or None. Raises ValueError for a damaged file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). {fix}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object. Raises ValueError for a repeated key, whose last value would win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


@functools.cache  # an evaluation reads a configuration several times
def warn_once(message: str) -> None:
    """Logs a warning once."""
    logging.warning("%s", message)


def with_current_keys(config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A configuration of any version, or a checkpoint's metadata -> the same with today's keys, notes on the changes.

    model.inner_attention's "broadcast" and "dot" were forms of what "xla" now chooses by device: equal up to rounding.
    data.reader_threads is dropped; batches never depended on it.
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
    """A line of metrics.jsonl -> its values, or None if the line is truncated or damaged."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError too
        return None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
        return None
    return values if all(isinstance(value, int | float | None) for value in values.values()) else None


def measure(result: Mapping[str, Any]) -> str:
    """Returns the metric that ranks evaluations: mean_average_precision for several labels per image, or accuracy."""
    return "mean_average_precision" if "mean_average_precision" in result else "accuracy"


def select_best(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the name of the result with the highest `measure`; among equals, the lowest loss."""

    def quality(name: str) -> tuple[float, float]:
        value, loss = results[name][measure(results[name])], results[name]["loss"]
        return -math.inf if value is None else value, -loss if loss is not None and loss == loss else -math.inf

    return max(results, key=quality)


def last_evaluation(workdir: Path, step: int) -> tuple[int, dict[str, dict[str, float | None]]] | None:
    """Returns the last evaluation up to a step: (its step, {"raw": {"accuracy": 0.9, "loss": 0.3}, "averaged": ...}).

    It also has mean_average_precision if images have several labels. Reads metrics.jsonl, and returns None if that has
    no evaluation. Losses that were not finite are None.
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
    """Returns the class names in a run's workdir: () if its data set has none, None if there is no file."""
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
    """Writes the whole file, creating its folder if needed, or leaves the old file as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def checkpoint_steps(workdir: Path) -> list[int]:
    """Returns the steps of the complete checkpoints in a workdir, ascending; reads only folder names."""
    folder = workdir / FOLDER
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if path.is_dir()]
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name, re.ASCII))


def read_weights(workdir: Path, step: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """A workdir and a step (None: the newest) -> (weights, metadata), without knowing the model.

    weights: "params" and, if the run averaged them, "ema_params", nested dicts of numpy arrays. If step is None and
    the run removes the checkpoint while it is read, the one that is then the newest is read instead.

    Raises ValueError if there is no such checkpoint, or if it is damaged; the message then names the one before it.
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
                continue  # removed during the read: take a newer one, or raise with what there is
            before = [str(earlier) for earlier in steps if earlier < taken]
            fix = f"The one before it is {folder.parent / before[-1]}." if before else "There is none before it."
            why = str(error).partition("\n")[0] or type(error).__name__
            raise ValueError(f"The checkpoint {folder} is damaged: {why}. {fix}") from error


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A checkpoint's folder -> (weights, metadata)."""
    # Imported here because it takes seconds, which reading a configuration should not.
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder, args=ocp.args.Composite(state=ocp.args.StandardRestore(), metadata=ocp.args.JsonRestore())
        )
    weights = {name: restored.state[name] for name in ("params", "ema_params") if restored.state[name] is not None}
    verify(weights, restored.metadata)
    return weights, restored.metadata


def checksums(tree: Any) -> dict[str, int]:
    """A tree of numpy arrays -> the CRC-32 of each one's bytes, by path ("params/head/kernel").

    orbax's files have checksums only in places: a changed byte could be read as another number.
    """
    import jax  # takes seconds, which reading a configuration should not
    import numpy as np

    def checksum(leaf: Any) -> int:
        return zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8))

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    with concurrent.futures.ThreadPoolExecutor() as pool:  # zlib releases the GIL
        return dict(zip(names, pool.map(checksum, [leaf for _, leaf in leaves]), strict=True))


def sign(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metadata with a checksum of itself, replacing any old one."""
    return dict(metadata) | {"metadata_checksum": _metadata_checksum(metadata)}


def verify(tree: Any, metadata: Mapping[str, Any]) -> None:
    """Raises ValueError if arrays of a checkpoint, or its metadata, are not what was written.

    The tree may have only some of the arrays. Checkpoints of earlier versions have no checksums and are not checked.
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
