"""Distillation (config.distillation): the student also learns a teacher's outputs for the same augmented images.

The teacher is not part of the train state: checkpoints do not contain it, and every session loads it again. Its
parameters are on the devices, passed to a step with the batch.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax import workdir as workdirs
from tnt_jax.data.settings import DataSettings, EvalImages
from tnt_jax.models.config import Params
from tnt_jax.models.patches import grid_of
from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import update
from tnt_jax.pretrained.load import fit, read_published, read_source
from tnt_jax.pretrained.workdir import is_folder, split_step
from tnt_jax.training.config import Config
from tnt_jax.training.saved_config import read_run_config
from tnt_jax.training.starting_point import label_map, published_images


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model and how its images are normalised. `params` are float32, on the host."""

    model: TNT
    params: Params
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: np.ndarray | None  # int32 [K], its class for each of the student's; None: the same
    label: str  # describes the weights

    def logits(self, params: Params, images: jax.Array, data: DataSettings) -> jax.Array:
        """params on the device, images [b, H, W, C] as the student sees them -> [b, K] float32, without a gradient."""
        own, student = (
            [jnp.array(values, jnp.float32) for values in pair]
            for pair in ((self.mean, self.std), (data.mean, data.std))
        )
        images = (images * student[1] + student[0] - own[0]) / own[1]
        logits = jax.lax.stop_gradient(self.model.apply({"params": params}, images, train=False))
        return logits if self.classes is None else logits[:, self.classes]

    @functools.cached_property
    def digest(self) -> str:
        """Twelve hex digits that identify the weights."""
        return hashlib.sha256(repr(sorted(workdirs.checksums(self.params).items())).encode()).hexdigest()[:12]


def load_teacher(
    config: Config, num_classes: int, class_names: Sequence[str] | None, several_labels: bool = False
) -> Teacher | None:
    """Loads the config's teacher for a student with these classes; None if the config has none.

    Raises ValueError or FileNotFoundError with config.distillation.teacher, the cause and the fix.
    """
    source = config.distillation.teacher
    if not source:
        return None
    try:
        if several_labels:
            raise ValueError(
                f"its part of the loss is a softmax over the classes, for one label per image, but {config.data.name} "
                "has several. Leave it out."
            )
        return _load(config, source, num_classes, class_names)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"config.distillation.teacher={source}: {error}") from error


def _load(config: Config, source: str, num_classes: int, class_names: Sequence[str] | None) -> Teacher:
    names = None
    if is_folder(source):
        model, weights = read_source(source)
        workdir = split_step(source)[0]
        names = workdirs.read_class_names(workdir)
        data = read_run_config(workdir)["data"]
        images = EvalImages(**{name: tuple(data[name]) for name in ("mean", "std")})
    else:
        name, model, weights = read_published(source)
        images = published_images(name)
    model = update(model, dtype=config.model.dtype, scan=False, remat=False)
    if model.in_channels != config.model.in_channels:
        raise ValueError(
            f"it takes images of {model.in_channels} channels, but the student of {config.model.in_channels}."
        )
    try:
        grid_of(config.model.input_size, model.patch_size)
    except ValueError as error:
        raise ValueError(f"its patches do not divide the student's images: config.model.{error}.") from error
    classes = label_map(names, class_names, config.data.name)
    known = model.num_classes if classes is None else len(classes)
    if known != num_classes:
        raise ValueError(
            f"it knows {known} classes and the student {num_classes}, and they cannot be matched. "
            f"Use a teacher with the student's classes, or write its {workdirs.CLASSES_FILE}."
        )
    return Teacher(model, fit(weights, model), images.mean, images.std, classes, weights.label)
