"""Turns a config and a workdir into a checked run. Writes nothing."""

import dataclasses
import functools
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from tnt_jax import workdir as workdirs
from tnt_jax.models.complexity import multiply_adds
from tnt_jax.models.config import Params
from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import VARIANTS, create_model, update
from tnt_jax.training.class_balance import check_threshold, make_class_weights
from tnt_jax.training.config import KEYS, Config, as_dict, check_config, nearest_multiples
from tnt_jax.training.distillation import Teacher, load_teacher
from tnt_jax.training.evaluation_suite import EvaluationSuite
from tnt_jax.training.freezing import check_freeze
from tnt_jax.training.input_pipeline import InputPipeline, make_input_pipeline
from tnt_jax.training.memory import check_memory
from tnt_jax.training.saved_config import differences, read_run_config, saved_config
from tnt_jax.training.starting_point import (
    check_classes,
    check_pretrained,
    load,
    normalisation_note,
    take_sizes,
    trained_classes,
)
from tnt_jax.training.state import initial_params
from tnt_jax.training.steps import for_platform

AnyConfig = ml_collections.ConfigDict | Mapping[str, Any] | Config


@dataclasses.dataclass(frozen=True)
class Plan:
    """Length and intervals of a run in optimizer steps; step s, from 1, is the s-th update."""

    steps_per_epoch: int
    total_steps: int
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int

    def logs(self, step: int) -> bool:
        """Whether the running sums are logged after this step."""
        return step % self.log_every_steps == 0 or step == self.total_steps

    def evaluates(self, step: int) -> bool:
        """Whether the evaluation split is evaluated after this step."""
        return step % self.eval_every_steps == 0 or step == self.total_steps

    def checkpoints(self, step: int) -> bool:
        """Whether the state is saved after this step, whatever the evaluation's result."""
        return step % self.checkpoint_every_steps == 0 or step == self.total_steps

    def pauses_after(self, step: int) -> int:
        """Number of remaining steps that are followed by an evaluation, a checkpoint or both."""
        evals, saves = self.eval_every_steps, self.checkpoint_every_steps

        def count(every: int) -> int:
            return (self.total_steps - 1) // every - step // every

        return count(evals) + count(saves) - count(math.lcm(evals, saves)) + 1 if step < self.total_steps else 0


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that training or an evaluation needs, built and checked."""

    config: Config  # with the model's sizes filled in
    workdir: Path
    pipeline: InputPipeline | EvaluationSuite
    model: TNT
    pretrained: Params | None  # weights of config.pretrained, to start from or to evaluate
    pretrained_label: str  # their source and set, for messages
    label_map: np.ndarray | None  # int32 [labels], data set label -> model class; None: the same
    notes: tuple[str, ...]  # to log: how the run was built from its config

    @functools.cached_property  # counting traces the model, which takes seconds
    def multiply_adds(self) -> int:
        """Multiply-adds of one image's forward pass."""
        return multiply_adds(self.model)

    @functools.cached_property
    def class_weights(self) -> np.ndarray | None:
        """float32 [K] from config.class_weights; None for "none". Raises ValueError for unknown class names."""
        return make_class_weights(self.config, self.pipeline, self.model.num_classes)

    @functools.cached_property
    def teacher(self) -> Teacher | None:
        """Loads config.distillation.teacher. Raises ValueError or FileNotFoundError if it cannot teach this model."""
        pipeline = self.pipeline
        return load_teacher(self.config, self.model.num_classes, pipeline.class_names, pipeline.several_labels)

    @functools.cached_property
    def plan(self) -> Plan:
        """The training plan. Raises ValueError if the training split is missing or too small."""
        return make_plan(self.config, self.pipeline.steps_per_epoch)


def prepare(config: AnyConfig, workdir: str | os.PathLike[str], pipeline: InputPipeline | None = None) -> Run:
    """A config and a workdir -> a run to train. `pipeline` replaces the config's data set.

    Raises ValueError, FileNotFoundError or PermissionError with cause, key or path, and fix; nothing is written.
    """
    config = with_absolute_folder(check_config(config))
    check_devices(config, "batch_size", jax.device_count(), config.accumulation_steps)
    run = _prepare(config, check_workdir(workdir), pipeline, evaluates=False)
    run.plan  # noqa: B018 raises now
    check_threshold(config, run.model.num_classes, run.pipeline.several_labels)
    run.class_weights, run.teacher  # noqa: B018
    return run


def prepare_evaluation(
    config: AnyConfig | None, workdir: str | os.PathLike[str], pipeline: InputPipeline | None = None
) -> Run:
    """A workdir with a run, or a config with `pretrained` -> a run to evaluate. Raises as `prepare` does.

    If config.report_card names data sets, the pipeline is an EvaluationSuite of them, and the run's own set is not
    needed. config: None means the workdir's config.json; otherwise its model must be the same. If the workdir has
    checkpoints, config.pretrained is an error, unless the run itself started from it.
    """
    path = check_workdir(workdir)
    before = read_run_config(path)
    if config is None and before is None:
        raise ValueError(
            f"{path} holds no {workdirs.CONFIG_FILE}. Give the --workdir of a run, or --config and --config.pretrained."
        )
    config = check_config(saved_config(path, evaluates=True) if config is None else config)
    saved = workdirs.checkpoint_steps(path)
    if saved and config.pretrained not in ("", (before or {}).get("pretrained")):
        raise ValueError(
            f"{path} holds checkpoints, and config.pretrained={config.pretrained} names other weights: give only "
            "one of them. Leave --config.pretrained out to evaluate the run, or use another --workdir."
        )
    if not saved and not config.pretrained:
        raise ValueError(
            f"There is nothing to evaluate: {path / workdirs.FOLDER} holds no checkpoint and config.pretrained is "
            "empty. Give the --workdir of a run, or weights with --config.pretrained."
        )
    if config.report_card and pipeline is None:
        num_classes = config.model.num_classes or (before["model"]["num_classes"] if before else None)
        pipeline = EvaluationSuite(config, num_classes, trained_classes(config, path))
    return _prepare(config, path, pipeline, evaluates=True)


def _prepare(config: Config, workdir: Path, pipeline: InputPipeline | EvaluationSuite | None, evaluates: bool) -> Run:
    """The checks that training and evaluation share, cheap ones first; the data set, which may be fetched, last."""
    # A run with a checkpoint no longer needs the weights it started from.
    source = "" if workdirs.checkpoint_steps(workdir) else config.pretrained
    check_pretrained(source)
    config, notes = take_sizes(config, workdir, evaluates)
    model = make_model(config, config.model.num_classes or 2)
    for_platform(model, jax.devices())  # raises if the devices do not support its implementation
    if not evaluates:
        check_memory(config, model)
    check_devices(config, "eval_batch_size", jax.device_count())
    from tnt_jax.data import sources  # takes seconds; a wrong flag fails before

    classes, names = (pipeline.num_classes, pipeline.class_names) if pipeline else sources.classes(config.data)
    label_map = check_classes(config, workdir, classes, names, evaluates)
    num_classes = config.model.num_classes or classes
    if num_classes < classes:
        raise ValueError(
            f"config.model.num_classes={num_classes}, but {config.data.name} has {classes} classes. "
            "Leave it None to use the data set's."
        )
    model = update(model, num_classes=num_classes)
    config = fill_in(config, model)
    if config.freeze and not evaluates:
        check_freeze(config, jax.eval_shape(lambda: initial_params(config, model)))
    check_same_run(workdir, config, evaluates)
    pretrained, label = load(source, config, model) if source else (None, "")
    if source and (note := normalisation_note(config)):
        notes += (note,)
    pipeline = pipeline or make_input_pipeline(config)
    return Run(config, workdir, pipeline, model, pretrained, label, label_map, notes)


def make_plan(config: Config, steps_per_epoch: int) -> Plan:
    """Returns the plan: intervals of 0 mean an epoch; the length is `steps`, or else epochs + cooldown_epochs."""
    if steps_per_epoch < 1:
        raise ValueError(
            f"The training split {config.data.train_split!r} of {config.data.name} is smaller than one batch: "
            f"config.batch_size={config.batch_size}. Use a smaller batch."
        )
    total_steps = config.steps or max(1, math.ceil((config.epochs + config.cooldown_epochs) * steps_per_epoch))
    if config.profile_steps and config.profile_steps[0] > total_steps:
        raise ValueError(
            f"config.profile_steps={config.profile_steps} begins at step {config.profile_steps[0]:,} of a run "
            f"of {total_steps:,}. Begin earlier."
        )
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        log_every_steps=config.log_every_steps or steps_per_epoch,
        eval_every_steps=config.eval_every_steps or steps_per_epoch,
        checkpoint_every_steps=config.checkpoint_every_steps or steps_per_epoch,
    )


def check_devices(config: Config, key: str, device_count: int, parts: int = 1) -> None:
    """Raises ValueError, with sizes that work, if the devices of all processes do not divide a batch size."""
    if (size := getattr(config, key)) % (device_count * parts):
        raise ValueError(
            f"config.{key}={size} is not a multiple of the {device_count} devices"
            f"{f' x config.accumulation_steps={parts}' if parts > 1 else ''}; "
            f"use {nearest_multiples(size, device_count * parts)}."
        )


def make_model(config: Config, num_classes: int) -> TNT:
    """Returns the config's model. Raises ValueError with the fix if its sizes do not fit."""
    try:
        return create_model(**config.model.arguments() | {"num_classes": num_classes})
    except ValueError as error:
        key = "config.model" if config.model.name in VARIANTS else f"config.model.name={config.model.name}"
        raise ValueError(f"{key}: {error}") from error


def fill_in(config: Config, model: TNT) -> Config:
    """Returns the config with every None of config.model filled in from the model, as in config.json.

    `tnt_blocks` becomes the explicit list of blocks.
    """
    given = dataclasses.asdict(config.model)
    values = {name: getattr(model, name) for name, value in given.items() if value is None}
    if values.get("tnt_blocks", ()) is None:
        values["tnt_blocks"] = tuple(range(1, model.depth + 1))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **values))


def with_absolute_folder(config: Config) -> Config:
    """Returns the config with an absolute data.directory, so that config.json works from any folder."""
    directory = config.data.directory
    if not directory or "://" in directory:  # tfds' default, or a bucket
        return config
    directory = str(Path(os.path.expanduser(directory)).absolute())
    return dataclasses.replace(config, data=dataclasses.replace(config.data, directory=directory))


def check_workdir(workdir: str | os.PathLike[str]) -> Path:
    """Returns the absolute path, which need not exist yet. Raises ValueError or PermissionError if it is unusable."""
    if not str(workdir):
        raise ValueError("--workdir is empty: name a folder for the checkpoints and metrics, such as runs/digits.")
    if "://" in str(workdir):
        raise ValueError(
            f"--workdir={workdir}: must be a folder. Mount the bucket first, such as gs:// with gcsfuse and s3:// "
            "with mount-s3, and give the mount's path."
        )
    try:
        path = workdirs.folder_path(workdir)
    except ValueError as error:
        raise ValueError(f"--workdir={error}") from error
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError(f"--workdir={workdir}: {existing} is a file, not a folder. Choose another name.")
    try:
        with tempfile.TemporaryFile(dir=existing) as file:  # permissions miss read-only mounts, and root
            file.write(bytes(4096))  # an empty file misses a full disk
    except OSError as error:
        raise PermissionError(
            f"--workdir={workdir}: {existing} is not writable ({error.strerror}). "
            "Choose another, or fix its permissions."
        ) from error
    return path


def check_same_run(workdir: Path, config: Config, evaluates: bool) -> None:
    """Raises ValueError, with the keys that differ, if the workdir's checkpoints are of a different configuration.

    All keys must agree, except those that a resumed run may change. For an evaluation only the model's must, except
    those that an evaluation may change (keys.Key).
    """
    if not workdirs.checkpoint_steps(workdir):
        return
    values = read_run_config(workdir)
    if values is None:
        raise ValueError(
            f"{workdir} holds checkpoints, but no {workdirs.CONFIG_FILE} to describe them. Use another --workdir."
        )
    try:
        before = check_config(values)
        if None in dataclasses.asdict(before.model).values():
            before = fill_in(before, make_model(before, before.model.num_classes or config.model.num_classes))
    except ValueError as error:
        raise ValueError(f"{workdir / workdirs.CONFIG_FILE}: {error}") from error
    differing = [
        f"{name} ({old!r} there, {new!r} now)"
        for name, old, new in differences(as_dict(before), as_dict(config))
        if not evaluates or (name.startswith("model.") and not KEYS[name].evaluates_otherwise)
    ]
    if differing:
        longer = " A different length changes the learning rate schedule from the first step on."
        of_length = any(each.startswith(("epochs ", "cooldown_epochs ")) for each in differing)
        raise ValueError(
            f"{workdir} holds a run of another configuration: {'; '.join(differing)}.{longer * of_length} Use another "
            f"--workdir, or give the keys their old values to resume; --config.pretrained={workdir} starts a new run "
            "from its weights."
        )
