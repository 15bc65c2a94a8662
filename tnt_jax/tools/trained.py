"""--source of a tool -> a model with its weights, the preprocessing of its images, and the names of its classes.

A source is
  runs/digits                                        a workdir (its newest checkpoint), or WORKDIR/checkpoints/STEP
  tnt_s_patch16_224:weights.safetensors              a model's name and weights for it (.pth too, with PyTorch)
  tnt_s_patch16_224:hf-hub:timm/tnt_s_patch16_224.in1k
  hf-hub:timm/tnt_s_patch16_224.in1k                 the name on the hub says which model
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from flax.typing import VariableDict

from tnt_jax import workdir as workdirs
from tnt_jax.analysis.predictions import whole_batch
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import update
from tnt_jax.pretrained.load import NUM_IMAGENET_CLASSES, fit, read_published, read_source
from tnt_jax.pretrained.sources import BEST
from tnt_jax.pretrained.workdir import is_folder, split_step
from tnt_jax.tools import command_line
from tnt_jax.training.config import Config, check_config
from tnt_jax.training.input_pipeline import evaluation_batches
from tnt_jax.training.starting_point import label_map, published_images, relabelled


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with weights. `variables` {"params": ...} fit `model`, whose input_size is the size of its images."""

    source: str
    name: str  # the model's, such as "tnt_s_patch16_224"
    model: TNT
    variables: VariableDict
    images: EvalImages
    class_names: tuple[str, ...]  # one per logit; the class number if there is no name
    weights: str  # such as "raw weights of step 200"
    config: Config | None  # of a run; None for published weights

    @property
    def workdir(self) -> Path | None:
        """The run's workdir; None for published weights."""
        return workdir_of(self.source)

    @property
    def per_class(self) -> bool:
        """Whether each class has a probability of its own (sigmoid); published weights use a softmax."""
        return self.config is not None and self.config.per_class


def add_weights_flag(parser: command_line.Parser) -> None:
    """Adds --weights, the same for every program that reads a run."""
    parser.reads_config = True
    words = "of a run; best (default): those that its last evaluation found better"
    parser.add_argument("--weights", choices=workdirs.WEIGHTS, default=BEST, help=words)


def add_source_flags(parser: command_line.Parser) -> None:
    """Adds --source and --weights."""
    words = "a workdir, WORKDIR/checkpoints/STEP, NAME:WEIGHTS or hf-hub:OWNER/NAME"
    parser.add_argument("--source", required=True, help=words)
    add_weights_flag(parser)


def open_trained(
    source: str, image_size: int | tuple[int, int] | None = None, *, weights: str = BEST, changes: Sequence[str] = ()
) -> Trained:
    """Opens a source. image_size: a side or (H, W) in pixels, with interpolated positions; None: the model's own.

    weights: "best", "raw" or "averaged", as in tnt_jax.load_pretrained. changes: --config.KEY=VALUE flags for a run's
    config. Raises ValueError or FileNotFoundError with the fix.
    """
    workdir = workdir_of(source)
    if workdir is not None:
        model, found = read_source(source, weights)
        config = check_run(workdir, changes)
        names = class_names(workdir, config, model.num_classes)
        fields = (field.name for field in dataclasses.fields(EvalImages))
        images = EvalImages(**{name: getattr(config.data, name) for name in fields})
        name = config.model.name
    else:
        from tnt_jax.data.class_names import imagenet_names

        if changes:
            raise ValueError(f"{changes[0]}: {source} is not a run, so there is no config to change. Leave it out.")
        (name, model, found), config = read_published(source, weights), None
        names = numbered(imagenet_names() if model.num_classes == NUM_IMAGENET_CLASSES else (), model.num_classes)
        images = published_images(name)
    if image_size is not None:
        model = update(model, image_size=image_size)
    variables = {"params": fit(found, model)}
    return Trained(str(source), name, model, variables, images, names, found.label, config)


def workdir_of(source: str) -> Path | None:
    """Returns the workdir of a source; None if the source is not a folder."""
    return split_step(source)[0] if is_folder(source) else None


def check_run(workdir: Path, changes: Sequence[str] = ()) -> Config:
    """A run's workdir and --config.KEY=VALUE flags -> its config, changed. Raises ValueError if it has none."""
    return check_config(command_line.run_config(workdir, changes))


def batches_of_run(trained: Trained, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches of a run's evaluation split, with labels in the model's order of classes.

    They are those of input_pipeline.evaluation_batches with the device axis flattened: [b, ...], where b is
    `batch_size` rounded up to a multiple of the number of devices. Raises the errors of the data package, and
    ValueError if the data set now has classes that the run does not know.
    """
    from tnt_jax.data import sources

    settings = trained.config.data
    labels = label_map(workdirs.read_class_names(trained.workdir), sources.classes(settings)[1], settings.name)
    size = whole_batch(batch_size)
    for batch in evaluation_batches(settings, trained.model, size, count_unlabelled=trained.per_class):
        yield {name: field.reshape(-1, *field.shape[2:]) for name, field in relabelled(batch, labels).items()}


def class_names(workdir: Path, config: Config, num_classes: int) -> tuple[str, ...]:
    """Returns the names of a run's classes: those in its workdir, else its data set's, else numbers."""
    from tnt_jax.data import sources
    from tnt_jax.data.class_names import readable

    names = workdirs.read_class_names(workdir)
    if names is None:
        try:
            names = sources.classes(config.data)[1]
        except (ValueError, FileNotFoundError) as error:
            file = workdirs.CLASSES_FILE
            logging.warning(
                f"{workdir} has no {file}, like older runs, and its data set is not here ({error}). Classes are "
                'numbered; to name them, write that file: a JSON list in the order of the labels, ["cat", "dog"].'
            )
    return numbered(readable(names or ()), num_classes)


def numbered(names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """Names of the first classes -> a name for each class; its number if it has none."""
    return (*names, *map(str, range(len(names), num_classes)))[:num_classes]
