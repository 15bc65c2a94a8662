"""Reads the model and the weights of a run from its workdir or one of its checkpoints."""

from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict

from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import KERNELS, create_model
from tnt_jax.pretrained.sizes import sizes_of
from tnt_jax.pretrained.sources import BEST, HUB_PREFIX, Weights, check_choice
from tnt_jax.workdir import (
    CONFIG_FILE,
    FOLDER,
    IN_STATE,
    METRICS_FILE,
    folder_path,
    last_evaluation,
    measure,
    read_config,
    read_weights,
    select_best,
    with_current_keys,
)


def is_folder(source: str | Path) -> bool:
    """Whether a source is an existing folder, which can only be a workdir or a checkpoint in one."""
    if not str(source) or str(source).startswith(HUB_PREFIX):
        return False
    try:
        return folder_path(source).is_dir()
    except ValueError:  # no folder has such a name
        return False


def split_step(source: str | Path) -> tuple[Path, int | None]:
    """WORKDIR or WORKDIR/checkpoints/STEP -> (the workdir, absolute, the step or None)."""
    folder = folder_path(source)
    if folder.parent.name == FOLDER and folder.name.isdecimal():
        return folder.parent.parent, int(folder.name)
    return folder, None


def read_workdir(source: str | Path, choice: str = BEST) -> tuple[TNT, Weights]:
    """WORKDIR (its newest checkpoint) or WORKDIR/checkpoints/STEP -> (the run's model, its weights).

    `choice` as in load.load_pretrained: "best" is the set that did better in the run's last evaluation up to that step
    (raw weights if there was none).

    Raises:
      ValueError: not a workdir, no such checkpoint or set, or a config of another version of this project.
    """
    check_choice(choice)
    model, sets = read_sets(source)
    (step,) = {weights.step for weights in sets.values()}
    folder, _ = split_step(source)
    if choice != BEST and choice not in sets:
        raise ValueError(f"{folder} has no averaged weights at step {step}: its config.ema_decay is 0. Use weights=raw")
    taken = choice if choice != BEST else _best(folder, step, set(sets))
    logging.info("Using %s", sets[taken].source)
    return model, sets[taken]


def read_sets(source: str | Path) -> tuple[TNT, dict[str, Weights]]:
    """Like read_workdir, but -> (the run's model, all sets of weights of the checkpoint by "raw" and "averaged")."""
    folder, step = split_step(source)
    config = read_config(folder)
    if config is None:
        raise ValueError(
            f"{folder} is not a workdir of this project: it has no {CONFIG_FILE}. Give a run's workdir, "
            "or the weights file itself"
        )
    model = _model(config, folder / CONFIG_FILE)
    found, metadata = read_weights(folder, step)
    # config.json may have been edited since; checkpoints of earlier versions do not record their model.
    trained = _model(metadata, folder / FOLDER / str(metadata["step"])) if "model" in metadata else model
    return model, {
        name: Weights(
            {path: np.asarray(array, np.float32) for path, array in flatten_dict(found[key], sep="/").items()},
            "own",
            f"{folder}, {name} weights of step {metadata['step']}",
            grid=model.grid,
            kind=name,
            step=metadata["step"],
            sizes=sizes_of(trained),
        )
        for name, key in IN_STATE.items()
        if key in found
    }


def _best(folder: Path, step: int, names: set[str]) -> str:
    """The sets of weights of a checkpoint -> the better one; logs why if there are two."""
    if len(names) == 1:
        return next(iter(names))
    evaluation = last_evaluation(folder, step)
    if evaluation is None or not names <= evaluation[1].keys():
        logging.warning(
            "%s has no evaluation up to step %d that compares raw and averaged weights. Using the raw ones; "
            "weights=averaged selects the others.",
            folder / METRICS_FILE,
            step,
        )
        return "raw"
    evaluated, results = evaluation
    best = select_best(results)
    told = "; ".join(f"{name} weights {result[measure(result)]}" for name, result in results.items())
    judged = measure(results[best]).replace("_", " ")
    logging.info("By %s at step %d: %s. The %s weights are better", judged, evaluated, told, best)
    return best


def _model(config: dict[str, Any], path: Path) -> TNT:
    """config.json, or a checkpoint's metadata, which has the same "model" -> the run's model."""
    group = with_current_keys(config)[0].get("model")
    settings = {key: value for key, value in group.items() if value is not None} if isinstance(group, dict) else {}
    for name, kernels in KERNELS.items():
        if settings.get(name) in kernels:
            settings[name] = "auto"  # the run may have had an accelerator that this machine lacks
    if "name" not in settings or "num_classes" not in settings:
        raise ValueError(
            f"{path} does not say which model it is from: model.name and model.num_classes must be set. If the folder "
            "is not a run of this project, give the weights file in it"
        )
    try:
        return create_model(**settings)
    except ValueError as error:
        raise ValueError(f"{path} describes no model of this version: {error}") from error
