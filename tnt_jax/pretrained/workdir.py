"""From a run's workdir, or one of its checkpoints, to its model and weights."""

from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np
from absl import logging

from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained.sources import HUB_PREFIX, Weights
from tnt_jax.workdir import CONFIG_FILE, FOLDER, read_config, read_weights


def is_folder(source: str | Path) -> bool:
    """Whether a source names a folder that exists, which can only be a workdir or a checkpoint in one."""
    return not str(source).startswith(HUB_PREFIX) and Path(source).expanduser().is_dir()


def split_step(source: str | Path) -> tuple[Path, int | None]:
    """WORKDIR or WORKDIR/checkpoints/STEP -> (the workdir, absolute, the step or None)."""
    folder = Path(source).expanduser().absolute()
    if folder.parent.name == FOLDER and folder.name.isdecimal():
        return folder.parent.parent, int(folder.name)
    return folder, None


def read_workdir(source: str | Path, ema: bool) -> tuple[TNT, Weights]:
    """WORKDIR (its newest checkpoint) or WORKDIR/checkpoints/STEP -> (the run's model, its weights).

    `ema` takes the averaged weights where the run kept them, else the raw ones.

    Raises:
      ValueError: not a workdir, no such checkpoint, or a configuration of another version of this project.
    """
    folder, step = split_step(source)
    config = read_config(folder)
    if config is None:
        raise ValueError(
            f"{folder} is not a workdir of this project: it has no {CONFIG_FILE}. Give a run's workdir, "
            "or the weights file itself"
        )
    model = _model(config, folder / CONFIG_FILE)
    found, metadata = read_weights(folder, step)
    kind = "ema_params" if ema and "ema_params" in found else "params"
    taken = f"{folder}, {kind} of step {metadata['step']}"
    logging.info("Taking %s", taken)
    flat = flax.traverse_util.flatten_dict(found[kind], sep="/")
    arrays = {name: np.asarray(array, np.float32) for name, array in flat.items()}
    return model, Weights(arrays, "own", taken, model.grid)


def _model(config: dict[str, Any], path: Path) -> TNT:
    """config.json's content -> the run's model."""
    settings = {key: value for key, value in config.get("model", {}).items() if value is not None}
    if settings.get("inner_implementation") == "pallas":
        settings["inner_implementation"] = "auto"  # the run had a TPU; whoever reads its weights may not
    if "name" not in settings or "num_classes" not in settings:
        raise ValueError(f"{path} does not say which model it is of: model.name and model.num_classes must be set")
    try:
        return create_model(**settings)
    except ValueError as error:
        raise ValueError(f"{path} describes no model of this version: {error}") from error
