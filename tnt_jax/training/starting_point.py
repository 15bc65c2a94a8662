"""The weights a run starts from: config.pretrained, what the run takes over from it, and the classes they know.

Where class names are known, classes are compared by name, never by number alone.
"""

import dataclasses
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tnt_jax import workdir as workdirs
from tnt_jax.data.settings import EvalImages
from tnt_jax.keys import short_repr
from tnt_jax.models.cards import model_info
from tnt_jax.models.config import Params
from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained.load import fit, read_source
from tnt_jax.pretrained.sizes import sizes_of
from tnt_jax.pretrained.sources import HUB_PREFIX, download
from tnt_jax.pretrained.workdir import is_folder, split_step
from tnt_jax.training.config import Config
from tnt_jax.training.input_pipeline import Batch

Names = Sequence[str] | None
# Image settings in a model's card: fields of the card, of EvalImages and of config.data.
PUBLISHED_IMAGES = ("mean", "std", "eval_crop_fraction", "eval_interpolation")
_NAMED = 5  # most classes in a message


def check_pretrained(source: str) -> None:
    """Raises FileNotFoundError for a missing local source, ValueError for one that the hub does not provide."""
    if source.startswith(HUB_PREFIX):
        try:
            download(source.removeprefix(HUB_PREFIX))
        except ValueError as error:
            raise ValueError(f"config.pretrained={source}: {error}") from error
    if source and not source.startswith(HUB_PREFIX) and not os.path.exists(os.path.expanduser(source)):
        raise FileNotFoundError(
            f"config.pretrained={short_repr(source)}: there is no such file or folder. Give a .safetensors, .pth or "
            f".pth.tar file, a workdir, or {HUB_PREFIX}OWNER/NAME."
        )


def take_sizes(config: Config, workdir: Path, evaluates: bool) -> tuple[Config, tuple[str, ...]]:
    """Fills in model sizes that the config leaves open from the run that it starts from -> (config, notes).

    Once the run has checkpoints, they come from its own config.json. For an evaluation they include num_classes.
    """
    saved = bool(workdirs.checkpoint_steps(workdir))
    settings = _run_settings(config, workdir, saved, evaluates)
    if settings.get("name") != config.model.name:
        return config, ()
    taken = {
        field.name: tuple(value) if isinstance(value, list) else value
        for field in dataclasses.fields(config.model)
        if getattr(config.model, field.name) is None
        and (value := settings.get(field.name)) is not None
        and (evaluates or field.name != "num_classes")
    }
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **taken))
    return config, () if saved else tuple(_size_notes(config, taken, settings))


def _size_notes(config: Config, taken: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    """Yields notes on sizes that differ from the named variant's, and on an image size unlike that of the weights."""
    usual = sizes_of(create_model(config.model.name))
    usual["layer_scale"] = 0.0
    usual["tnt_blocks"] = tuple(range(1, settings["depth"] + 1)) if usual["tnt_blocks"] else ()
    told = ", ".join(f"{name}={value!r}" for name, value in taken.items() if usual.get(name) != value)
    if told:
        yield f"model sizes that the config leaves open are taken from {config.pretrained}: {told}."
    now, then = config.model.image_size, settings.get("image_size")
    if now != (then := tuple(then) if isinstance(then, list) else then):
        yield f"the weights were trained at image size {then}, but config.model.image_size is {now}."


def _run_settings(config: Config, workdir: Path, saved: bool, evaluates: bool) -> dict[str, Any]:
    """Returns `config.model` of the run that the weights come from (its own once it has checkpoints); {} if unknown."""
    if not saved:
        return _group(split_step(config.pretrained)[0], "model") if is_folder(config.pretrained) else {}
    own = workdirs.read_config(workdir) or {}
    began = own.get("pretrained") == config.pretrained != ""
    return _group(workdir, "model") if evaluates or began else {}


def _group(workdir: Path, name: str) -> dict[str, Any]:
    """Returns a group of keys of a run's config.json, of any version; {} if there is none."""
    group = (workdirs.read_config(workdir) or {}).get(name)
    return group if isinstance(group, dict) else {}


def load(source: str, config: Config, model: TNT) -> tuple[Params, str]:
    """Loads `config.pretrained` -> (parameters of the model, description of the weights)."""
    try:
        _, weights = read_source(source, config.pretrained_weights)
        params = fit(weights, model, config.pretrained_new_head, "--config.pretrained_new_head=True")
    except ValueError as error:
        raise ValueError(f"config.pretrained={source}: {error}{_name_hint(source, config)}") from error
    return params, weights.source


def _name_hint(source: str, config: Config) -> str:
    """Returns how to take over name and sizes of a run's model if it has another name, else ""."""
    name = _group(split_step(source)[0], "model").get("name") if is_folder(source) else None
    if name in (None, config.model.name):
        return ""
    return f"\nIts model is {name}: --config.model.name={name} takes the sizes that the config leaves open from it."


def published_images(name: str) -> EvalImages:
    """A model's name -> how its card prepares images for the published weights."""
    info = model_info(name)
    return EvalImages(**{field: getattr(info, field) for field in PUBLISHED_IMAGES})


def normalisation_note(config: Config) -> str | None:
    """Returns a note if the images of config.pretrained were normalised with another mean or std, else None.

    Known for runs and for published weights on the hub; not compared if the number of channels differs.
    """
    before: dict[str, Any] = {}
    channels = 3
    if is_folder(config.pretrained):
        workdir = split_step(config.pretrained)[0]
        before, channels = _group(workdir, "data"), _group(workdir, "model").get("in_channels", channels)
    elif config.pretrained.partition("@")[0] == f"{HUB_PREFIX}{model_info(config.model.name).hub_name}":
        images = published_images(config.model.name)
        before = {"mean": [*images.mean], "std": [*images.std]}
    if channels != config.model.in_channels:
        return None
    flags = [
        f'--config.data.{key}="{tuple(value)}"'
        for key in ("mean", "std")
        if (value := before.get(key)) and not np.array_equal(*np.broadcast_arrays(value, getattr(config.data, key)))
    ]
    if not flags:
        return None
    return (
        f"the images of {config.pretrained} were normalised differently. Unless that is intended, set "
        f"{' and '.join(flags)}."
    )


def label_map(known: Names, names: Names, data: str) -> np.ndarray | None:
    """Names of a model's classes and of a data set's labels -> int32 [labels], the model's class for each label.

    None if they are the same or if either has no names. `data` is the data set's name, for messages.
    Raises ValueError with the classes that the model does not know, or that a differing order has more than once.
    """
    known, names = normalised(known), normalised(names)
    if not known or not names or known == names:
        return None
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"{data} has classes that the model does not know: {listed(unknown)}. It knows {listed(known)}."
        )
    twice = sorted({name for name in names if known.count(name) > 1 or names.count(name) > 1})
    if twice:
        raise ValueError(
            f"{data} has its classes in another order than the model, and {listed(twice)} more than once, so its "
            "labels cannot be matched by name."
        )
    number = {name: index for index, name in enumerate(known)}
    return np.array([number[name] for name in names], np.int32)


def relabelled(batch: Batch, classes: np.ndarray | None) -> Batch:
    """A batch with a data set's labels -> the same with the model's classes, by a map from `label_map`."""
    if classes is None:
        return batch
    batch = batch | {"label": classes[np.asarray(batch["label"])]}
    if "labels" in batch:
        present = np.zeros((*batch["label"].shape, classes.max() + 1), np.uint8)
        present[..., classes] = np.asarray(batch["labels"])
        batch["labels"] = present
    return batch


def check_classes(config: Config, workdir: Path, count: int, names: Names, evaluates: bool) -> np.ndarray | None:
    """Checks the data set's `count` classes and their names against the trained ones -> map of labels (`label_map`).

    Raises ValueError if training would start or resume with a head for other classes, or an evaluation would be wrong.
    """
    if evaluates:
        return _evaluated(config, trained_classes(config, workdir), count, names)
    if workdirs.checkpoint_steps(workdir):
        if differing := _difference(workdirs.read_class_names(workdir), names):
            raise ValueError(
                f"{workdir / workdirs.CLASSES_FILE} has the classes of this run, but the data set now has others: "
                f"{differing}. Its labels would be shifted. Rename the classes back, or use another --workdir "
                "(--config.pretrained and --config.pretrained_new_head=True start from this run's weights)."
            )
    elif is_folder(config.pretrained) and not config.pretrained_new_head:
        source, _ = split_step(config.pretrained)
        if differing := _difference(workdirs.read_class_names(source), names):
            raise ValueError(
                f"{source} was trained on other classes: {differing}. Start with a new head: "
                "--config.pretrained_new_head=True."
            )
    return None


def trained_classes(config: Config, workdir: Path) -> tuple[str, ...] | None:
    """Returns the class names that the run of the weights to evaluate has saved; None if unknown."""
    if workdirs.checkpoint_steps(workdir):
        return workdirs.read_class_names(workdir)
    return workdirs.read_class_names(split_step(config.pretrained)[0]) if is_folder(config.pretrained) else None


def _evaluated(config: Config, known: Names, count: int, names: Names) -> np.ndarray | None:
    data, head = config.data.name, config.model.num_classes
    if bool(known) != bool(names) and head not in (None, count):
        nameless = "the training data set has" if names else "the data set has"
        raise ValueError(
            f"{data} has {count} classes and the model {head}, and they cannot be matched, since "
            f"{nameless} no class names. Evaluate on the training data set, or write the run's "
            f"{workdirs.CLASSES_FILE}: a JSON list of names in the order of its labels."
        )
    try:
        return label_map(known, names, data)
    except ValueError as error:
        raise ValueError(f"{error} Evaluate on a data set with classes that it was trained on.") from error


def _difference(before: Names, now: Names) -> str:
    """Two lists of class names -> their difference as text; "" if there is none or one list is unknown."""
    before, now = normalised(before), normalised(now)
    if not before or not now or before == now:
        return ""
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    if not gone and not new:
        return f"the same in another order, {listed(before)} there and {listed(now)} now"
    parts = [f"{listed(gone)} only there"] * bool(gone) + [f"{listed(new)} only in the data set"] * bool(new)
    return " and ".join(parts)


def normalised(names: Names) -> tuple[str, ...]:
    """Returns the names in Unicode form NFC: macOS stores letters and accents apart, other systems do not."""
    return tuple(unicodedata.normalize("NFC", name) for name in names or ())


def listed(names: Sequence[str]) -> str:
    """Lists the first few names, for a message."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more
