"""The classes that weights know against those of a data set: by name, never by number alone where names are known."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tnt_jax import workdir as workdirs
from tnt_jax.pretrained.workdir import is_folder, split_step
from tnt_jax.training.config import Experiment

Names = Sequence[str] | None
_SHOWN = 5  # names in a message


def label_map(known: Names, names: Names, data: str) -> np.ndarray | None:
    """Names of a model's classes and of a data set's labels -> int32 [labels], the model's class of each label.

    None where they are the same, or where either has no names. `data` is the set, for messages.
    Raises ValueError that names the classes which the model does not know.
    """
    if not known or not names or tuple(known) == tuple(names):
        return None
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"{data} has classes that the model does not know: {_listed(unknown)}. It knows {_listed(known)}."
        )
    twice = sorted({name for name in names if list(known).count(name) > 1 or list(names).count(name) > 1})
    if twice:
        raise ValueError(
            f"{data} has its classes in another order than the model, and {_listed(twice)} more than once, so that "
            "labels cannot be told apart by name."
        )
    number = {name: place for place, name in enumerate(known)}
    return np.array([number[name] for name in names], np.int32)


def relabelled(batches: Iterator[dict[str, Any]], classes: np.ndarray | None) -> Iterator[dict[str, Any]]:
    """Batches with a data set's labels -> with the model's classes, by `label_map`."""
    for batch in batches:
        yield batch if classes is None else batch | {"label": classes[np.asarray(batch["label"])]}


def check_classes(
    experiment: Experiment, workdir: Path, count: int, names: Names, evaluates: bool
) -> np.ndarray | None:
    """The data set's `count` classes and their names against those trained on -> the labels' map (`label_map`).

    Raises ValueError where training would go on, or start, with a head for others, and evaluation would count wrongly.
    """
    if evaluates:
        return _evaluated(experiment, trained_classes(experiment, workdir), count, names)
    if workdirs.checkpoint_steps(workdir):
        _check_resumed(workdir, names)
    elif is_folder(experiment.pretrained) and not experiment.pretrained_new_head:
        _check_pretrained(split_step(experiment.pretrained)[0], names)
    return None


def trained_classes(experiment: Experiment, workdir: Path) -> tuple[str, ...] | None:
    """The names of the classes of the weights that are to be evaluated, as their run left them; None: not known."""
    if workdirs.checkpoint_steps(workdir):
        return workdirs.read_class_names(workdir)
    return workdirs.read_class_names(split_step(experiment.pretrained)[0]) if is_folder(experiment.pretrained) else None


def _evaluated(experiment: Experiment, known: Names, count: int, names: Names) -> np.ndarray | None:
    data, head = experiment.data.name, experiment.model.num_classes
    if bool(known) != bool(names) and head not in (None, count):
        nameless = "what was trained on has" if names else "the data set has"
        raise ValueError(
            f"{data} has {count} classes and the model {head}, and which of them these are is not known, since "
            f"{nameless} no names. Evaluate on the data set that was trained on, or write the run's "
            f"{workdirs.CLASSES_FILE}: a JSON list of names in the order of its labels."
        )
    try:
        return label_map(known, names, data)
    except ValueError as error:
        raise ValueError(f"{error} Evaluate on a data set of classes that it was trained on.") from error


def _check_resumed(workdir: Path, names: Names) -> None:
    """Raises ValueError where a run with checkpoints would go on with other classes than those in its classes.json."""
    before = workdirs.read_class_names(workdir)
    if not before or not names or before == tuple(names):
        return
    raise ValueError(
        f"{workdir / workdirs.CLASSES_FILE} has the classes of this run, and the data set has others now: "
        f"{_difference(before, names)}. Its labels would be shifted. Rename the classes back, or use another --workdir "
        "(--config.pretrained and --config.pretrained_new_head=True start from this run's weights)."
    )


def _check_pretrained(source: Path, names: Names) -> None:
    """Raises ValueError where a run's head, for the classes in its classes.json, would be taken for others."""
    before = workdirs.read_class_names(source)
    if not before or not names or before == tuple(names):
        return
    raise ValueError(
        f"{source} was trained on other classes: {_difference(before, names)}. Start its head anew with "
        "--config.pretrained_new_head=True."
    )


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    if not gone and not new:
        return f"the same in another order, {_listed(before)} there and {_listed(now)} now"
    parts = [f"{_listed(gone)} there alone"] * bool(gone) + [f"{_listed(new)} in the data set alone"] * bool(new)
    return " and ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
