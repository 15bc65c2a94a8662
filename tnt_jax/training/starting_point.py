"""config.pretrained: what a run starts from, and what it takes over from there."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn

from tnt_jax import workdir as workdirs
from tnt_jax.data.settings import shown
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained.load import fit, read_source
from tnt_jax.pretrained.sizes import sizes_of
from tnt_jax.pretrained.sources import HUB_PREFIX, download
from tnt_jax.pretrained.workdir import is_folder, split_step
from tnt_jax.training.config import Experiment, as_dict


def check_pretrained(source: str) -> None:
    """Raises FileNotFoundError for a local source that is not there, ValueError for one that the hub does not give."""
    if source.startswith(HUB_PREFIX):
        try:
            download(source.removeprefix(HUB_PREFIX))
        except ValueError as error:
            raise ValueError(f"config.pretrained={source}: {error}") from error
    if source and not source.startswith(HUB_PREFIX) and not os.path.exists(os.path.expanduser(source)):
        raise FileNotFoundError(
            f"config.pretrained={shown(source)}: there is no such file or folder. Give a .safetensors, .pth or "
            f".pth.tar file, a workdir, or {HUB_PREFIX}OWNER/NAME."
        )


def take_sizes(experiment: Experiment, workdir: Path, evaluates: bool) -> tuple[Experiment, tuple[str, ...]]:
    """Sizes of the model that the config leaves open are those of the run that it starts from -> (experiment, notes).

    Once a run has checkpoints, they are those in its own config.json. To evaluate, the number of classes is too.
    """
    saved = bool(workdirs.checkpoint_steps(workdir))
    settings = _run_settings(experiment, workdir, saved, evaluates)
    if settings.get("name") != experiment.model.name:
        return experiment, ()
    taken = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(experiment.model)
        if getattr(experiment.model, field.name) is None
        and (value := settings.get(field.name)) is not None
        and (evaluates or field.name != "num_classes")
    }
    experiment = dataclasses.replace(experiment, model=dataclasses.replace(experiment.model, **taken))
    return experiment, () if saved else tuple(_size_notes(experiment, taken, settings))


def _size_notes(experiment: Experiment, taken: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    """What is not the named variant's own of the sizes taken, and an image size that is not the weights'."""
    usual = sizes_of(create_model(experiment.model.name))
    usual["tnt_blocks"] = tuple(range(1, settings["depth"] + 1)) if usual["tnt_blocks"] else ()
    told = ", ".join(f"{name}={value!r}" for name, value in taken.items() if usual.get(name) != value)
    if told:
        yield f"sizes of the model that the config leaves open are those of {experiment.pretrained}: {told}."
    if (now := experiment.model.image_size) != (then := settings.get("image_size")):
        yield f"the weights were trained on images of {then} pixels, and config.model.image_size is {now}."


def _run_settings(experiment: Experiment, workdir: Path, saved: bool, evaluates: bool) -> dict[str, Any]:
    """`config.model` of the run that the weights come from: of a resumed one its own, where it began elsewhere."""
    if not saved:
        return _group(split_step(experiment.pretrained)[0], "model") if is_folder(experiment.pretrained) else {}
    own = workdirs.read_config(workdir)
    began = isinstance(own, dict) and own.get("pretrained") == experiment.pretrained != ""
    return _group(workdir, "model") if evaluates or began else {}


def _group(workdir: Path, name: str) -> dict[str, Any]:
    """A group of keys of a run's config.json, of any version; {} where there is none."""
    config = workdirs.read_config(workdir)
    group = config.get(name) if isinstance(config, dict) else None
    return group if isinstance(group, dict) else {}


def load(source: str, experiment: Experiment, model: nn.Module) -> tuple[Any, str]:
    """`config.pretrained` -> (parameters of the model, which weights these are)."""
    try:
        _, weights = read_source(source, experiment.pretrained_weights)
        params = fit(weights, model, experiment.pretrained_new_head, "--config.pretrained_new_head=True")
    except ValueError as error:
        raise ValueError(f"config.pretrained={source}: {error}{_name_hint(source, experiment)}") from error
    return params, weights.source


def _name_hint(source: str, experiment: Experiment) -> str:
    """Where a run's model has another name, how to take its sizes with the name; else nothing."""
    name = _group(split_step(source)[0], "model").get("name") if is_folder(source) else None
    if name in (None, experiment.model.name):
        return ""
    return f"\nIts model is {name}: --config.model.name={name} takes the sizes that the config leaves open from there."


def normalisation_note(experiment: Experiment) -> str | None:
    """Where config.pretrained is a run whose images had another mean or deviation: a line that says so."""
    before = _group(split_step(experiment.pretrained)[0], "data") if is_folder(experiment.pretrained) else {}
    now = as_dict(experiment)["data"]
    then = {key: before.get(key, now[key]) for key in ("mean", "std")}
    flags = [f'--config.data.{key}="{tuple(value)}"' for key, value in then.items() if value != now[key]]
    if not flags:
        return None
    return (
        f"the images of {experiment.pretrained} were normalised in another way. Unless that is meant, give "
        f"{' and '.join(flags)}."
    )
