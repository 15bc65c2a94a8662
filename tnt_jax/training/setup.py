"""From a config and a workdir to a run that is known to be possible. Nothing is written in here."""

import dataclasses
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from tnt_jax import workdir as workdirs
from tnt_jax.models.complexity import multiply_adds
from tnt_jax.models.variants import VARIANTS, create_model
from tnt_jax.training.card_sets import CardFeed
from tnt_jax.training.classes import check_classes, trained_classes
from tnt_jax.training.config import Experiment, ModelSettings, as_dict, check_config
from tnt_jax.training.feed import Feed, make_feed
from tnt_jax.training.memory import check_memory
from tnt_jax.training.optimizer import Schedule, make_optimizer, make_schedule
from tnt_jax.training.plan import Plan, check_evaluation_devices, check_training_devices, make_plan
from tnt_jax.training.recorded import read_run_config, saved_config
from tnt_jax.training.starting_point import check_pretrained, load, normalisation_note, take_sizes
from tnt_jax.training.steps import for_platform

# Keys that may change between the sessions of a run, because the weights it ends with do not depend on them (up to
# rounding, for those of the model and the devices), or because they say how to go on after a step that was not finite.
# "distributed" and every other group stands for all of its keys.
CHANGEABLE = (
    "steps",
    "eval_batch_size",
    "log_every_steps",
    "eval_every_steps",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "prefetch_batches",
    "nonfinite",
    "nonfinite_limit",
    "slow_step_factor",
    "cpu_devices",
    "scan_tile_kib",
    "report_card",
    "profile_steps",
    "model.remat",
    "model.remat_keeps",
    "model.scan",
    "model.inner_implementation",
    "data.directory",
    "data.worker_processes",
    "data.exif_orientation",
    "data.max_faulty_images",
    "data.allow_faulty_eval",
    "distributed",
)
# Evaluating may differ in these as well: in how exactly the same weights are computed with, and in training's own.
CHANGEABLE_IN_EVALUATION = ("model.dtype", "model.drop_path_rate")


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that evaluation needs, made and checked."""

    experiment: Experiment  # sizes of the model filled in
    workdir: Path
    feed: Feed | CardFeed
    model: nn.Module
    pretrained: Any  # parameters of config.pretrained to start from or to evaluate; None: a checkpoint's or random ones
    pretrained_label: str  # where these come from and which set they are, in words
    label_map: np.ndarray | None  # int32 [labels], the model's classes of the data set's labels; None: the same
    notes: tuple[str, ...]  # what the run should say of how it was made from its config

    @functools.cached_property  # counting traces the model, which takes seconds
    def multiply_adds(self) -> int:
        """Of one image's forward pass."""
        return multiply_adds(self.model)


@dataclasses.dataclass(frozen=True)
class TrainingRun(Run):
    """Everything that training needs beside it."""

    plan: Plan
    schedule: Schedule
    optimizer: optax.GradientTransformation


def prepare(config: Any, workdir: str | os.PathLike[str], feed: Feed | None = None) -> TrainingRun:
    """A config and a workdir -> a run to train. `feed` stands in for the config's data set.

    Raises ValueError, FileNotFoundError or PermissionError with what, where and the fix; nothing has been written.
    """
    experiment = check_config(config)
    check_training_devices(experiment, jax.device_count())
    run = _prepare(experiment, check_workdir(workdir), feed, evaluates=False)
    plan = make_plan(experiment, run.feed.steps_per_epoch)
    schedule = make_schedule(experiment, plan.steps_per_epoch)
    parts = {field.name: getattr(run, field.name) for field in dataclasses.fields(run)}
    return TrainingRun(**parts, plan=plan, schedule=schedule, optimizer=make_optimizer(experiment, schedule))


def prepare_evaluation(config: Any, workdir: str | os.PathLike[str], feed: Feed | None = None) -> Run:
    """A workdir with a run, or a config with `pretrained` -> a run to evaluate. Raises as `prepare` and CardFeed do.

    Where config.report_card names data sets, its feed is a CardFeed of them, and the run's own set is not needed.

    config: None takes the workdir's own config.json; one that is given must have the same model. Weights that it names
    beside the workdir's checkpoints are an error, unless the run itself started from them.
    """
    path = check_workdir(workdir)
    before = read_run_config(path)
    if config is None and before is not None:
        config = saved_config(path, evaluates=True)
    if config is None:
        raise ValueError(
            f"{path} holds no {workdirs.CONFIG_FILE}. Give the --workdir of a run, or --config and --config.pretrained."
        )
    experiment = check_config(config)
    saved = workdirs.checkpoint_steps(path)
    if saved and experiment.pretrained not in ("", (before or {}).get("pretrained")):
        raise ValueError(
            f"{path} holds checkpoints, and config.pretrained={experiment.pretrained} names other weights: give only "
            "one of them. Leave --config.pretrained out to evaluate the run, or use another --workdir."
        )
    if not saved and not experiment.pretrained:
        raise ValueError(
            f"There is nothing to evaluate: {path / workdirs.FOLDER} holds no checkpoint and config.pretrained is "
            "empty. Give the --workdir of a run, or weights by --config.pretrained."
        )
    if experiment.report_card and feed is None:
        num_classes = experiment.model.num_classes or (before["model"]["num_classes"] if before else None)
        feed = CardFeed(experiment, num_classes, trained_classes(experiment, path))
    return _prepare(experiment, path, feed, evaluates=True)


def _prepare(experiment: Experiment, workdir: Path, feed: Feed | CardFeed | None, evaluates: bool) -> Run:
    """The checks that training and evaluation share, the cheap ones first; last the data set, which may be fetched."""
    # With a checkpoint, what the run once started from is no longer needed.
    source = "" if workdirs.checkpoint_steps(workdir) else experiment.pretrained
    check_pretrained(source)
    experiment, notes = take_sizes(experiment, workdir, evaluates)
    model = for_platform(make_model(experiment, experiment.model.num_classes or 2), jax.devices())
    if not evaluates:
        check_memory(experiment, model)
    check_evaluation_devices(experiment, jax.device_count())
    classes, names = (feed.num_classes, getattr(feed, "class_names", None)) if feed else data_classes(experiment)
    labels = check_classes(experiment, workdir, classes, names, evaluates)
    num_classes = experiment.model.num_classes or classes
    if num_classes < classes:
        raise ValueError(
            f"config.model.num_classes={num_classes}, but {experiment.data.name} has {classes} classes. "
            "Leave it None to take the data set's."
        )
    model = make_model(experiment, num_classes)
    experiment = resolved_experiment(experiment, num_classes)
    check_same_run(workdir, experiment, evaluates)
    pretrained, label = load(source, experiment, model) if source else (None, "")
    if source and (note := normalisation_note(experiment)):
        notes += (note,)
    return Run(experiment, workdir, feed or make_feed(experiment), model, pretrained, label, labels, notes)


def data_classes(experiment: Experiment) -> tuple[int, tuple[str, ...] | None]:
    """The number of classes of the experiment's data set and their names, if it has any; nothing is fetched."""
    from tnt_jax.data import sources

    return sources.classes(experiment.data)


def make_model(experiment: Experiment, num_classes: int) -> nn.Module:
    """The experiment's model; sizes that do not fit raise ValueError with the fix."""
    try:
        return create_model(**experiment.model.arguments() | {"num_classes": num_classes})
    except ValueError as error:
        key = "config.model" if experiment.model.name in VARIANTS else f"config.model.name={experiment.model.name}"
        raise ValueError(f"{key}: {error}") from error


def resolved(settings: ModelSettings, model: nn.Module) -> ModelSettings:
    """The settings with every None filled in from the model, as config.json keeps them.

    `tnt_blocks` becomes the list of the blocks, so that the file says which they are.
    """
    values = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(settings)
        if getattr(settings, field.name) is None
    }
    if values.get("tnt_blocks", ()) is None:
        values["tnt_blocks"] = tuple(range(1, model.depth + 1))
    return dataclasses.replace(settings, **values)


def resolved_experiment(experiment: Experiment, num_classes: int) -> Experiment:
    """The experiment with every None of its model filled in."""
    return dataclasses.replace(experiment, model=resolved(experiment.model, make_model(experiment, num_classes)))


def check_workdir(workdir: str | os.PathLike[str]) -> Path:
    """-> the path, absolute, if a run can write there; it may not exist yet."""
    if not str(workdir):
        raise ValueError("--workdir is empty: name a folder for the checkpoints and metrics, such as runs/digits.")
    if "://" in str(workdir):
        raise ValueError(
            f"--workdir={workdir}: must be a folder. Mount the bucket first, such as gs:// by gcsfuse and s3:// by "
            "mount-s3, and name the mount."
        )
    try:
        path = workdirs.folder_path(workdir)
    except ValueError as error:
        raise ValueError(f"--workdir={error}") from error
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"--workdir={workdir}: {existing} is a file, not a folder. Choose another name.")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # rights alone do not tell: of read-only mounts, of root
            file.write(bytes(4096))  # nor does an empty file tell of a full disk
    except OSError as error:
        raise PermissionError(
            f"--workdir={workdir}: {existing} is not writable ({error.strerror}). Choose another, or change its rights."
        ) from error
    return path


def check_same_run(workdir: Path, experiment: Experiment, evaluates: bool) -> None:
    """Raises ValueError where the workdir holds the checkpoints of another configuration, with the keys that differ.

    All keys have to agree but those of CHANGEABLE; for an evaluation the model's, but CHANGEABLE_IN_EVALUATION.
    """
    if not workdirs.checkpoint_steps(workdir):
        return
    before = read_run_config(workdir)
    if before is None:
        raise ValueError(
            f"{workdir} holds checkpoints, but no {workdirs.CONFIG_FILE} that says of what. Use another --workdir."
        )
    differing = [
        f"{key} ({old!r} there, {new!r} now)"
        for key, old, new in differences(_filled_in(before, workdir / workdirs.CONFIG_FILE), as_dict(experiment))
        if not evaluates or (key.startswith("model.") and key not in CHANGEABLE_IN_EVALUATION)
    ]
    if differing:
        longer = " Another length is another schedule of the learning rate, from the first step on."
        of_length = any(each.startswith(("epochs ", "cooldown_epochs ")) for each in differing)
        raise ValueError(
            f"{workdir} holds a run of another configuration: {'; '.join(differing)}.{longer * of_length} Use another "
            f"--workdir, or give the keys their old values to go on; --config.pretrained={workdir} starts a new run "
            "from its weights."
        )


def _filled_in(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """A run's configuration -> the same, with what it lacks of the model's sizes as `resolved` fills them in."""
    try:
        experiment = check_config(config)
        return as_dict(resolved_experiment(experiment, experiment.model.num_classes or 2))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Two plain configurations -> (dotted key, old value, new value) where they differ in what a run may not change."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if prefix + key in CHANGEABLE:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append((prefix + key, old, new))
    return found
