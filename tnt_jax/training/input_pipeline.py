"""Reads a config's batches from the data package and puts them on the devices while steps run."""

import collections
import functools
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from tnt_jax.data.faulty import FaultyImages
from tnt_jax.data.settings import DataSettings
from tnt_jax.models.tnt import TNT
from tnt_jax.training.config import Config, ModelSettings
from tnt_jax.training.state import per_device_sharding, replicate

Batch = dict[str, np.ndarray | jax.Array]  # arrays [local devices, ...], in NumPy or on the devices


class InputPipeline:
    """The data set of a config. The constructor raises if it is missing."""

    def __init__(self, config: Config):
        from tnt_jax.data import batches, sources  # imports that take seconds; a wrong flag fails before

        self._config = config
        self.faulty = FaultyImages()
        self._batches = batches
        self._dataset = dataset = sources.open_dataset(config.data)
        # Raises now, not after the first epoch.
        dataset.num_examples(config.data.eval_split, "config.data.eval_split")
        batches.check_channels(config.data, config.model.in_channels)
        self.num_classes: int = dataset.num_classes
        self.class_names: tuple[str, ...] | None = dataset.class_names
        self.found: tuple[str, ...] = dataset.found  # log lines about what is there
        self.several_labels: bool = dataset.several_labels
        self.labels_at_hand: bool = dataset.labels_at_hand

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Training examples // batch size.

        Raises if the training split is missing or smaller than a batch, or if its images have several labels and the
        loss is for one.
        """
        if self.several_labels and not self._config.per_class:
            raise ValueError(
                f"{self._dataset.name} has several labels per image, but config.loss={self._config.loss} is for one: "
                "set --config.loss=sigmoid."
            )
        return self._batches.steps_per_epoch(self._config.data, self._config.batch_size)

    @functools.cached_property
    def identity(self) -> str:
        """Identifies the data set's content, wherever it is stored; takes a second for a million files."""
        return self._dataset.identity()

    @functools.cached_property
    def train_examples(self) -> int:
        """Number of examples in the training split; repeated copies do not count."""
        return self._dataset.num_examples(self._config.data.train_split, "config.data.train_split")

    @functools.cached_property
    def eval_examples(self) -> int:
        """Number of examples in the evaluation split."""
        return self._dataset.num_examples(self._config.data.eval_split, "config.data.eval_split")

    @functools.cached_property
    def class_counts(self) -> np.ndarray:
        """int64 [classes], labels per class in the training split. Reads every record unless labels_at_hand."""
        if not self.labels_at_hand:
            logging.warning("Counting the labels of %d training examples, record by record", self.train_examples)
        return self._dataset.class_counts(self._config.data.train_split)

    def train(self, start_step: int) -> Iterator[Batch]:
        """This process's shard of the training batches, without end, from update `start_step` (counted from 0)."""
        config = self._config
        return self._batches.train_batches(
            config.data,
            batch_size=config.batch_size,
            image_size=config.model.input_size,
            channels=config.model.in_channels,
            seed=config.seed,
            start_step=start_step,
            faulty=self.faulty,
            **_devices(),
        )

    def evaluation(self) -> Iterator[Batch]:
        """This process's shard of the evaluation split: every example once, the last batch padded and masked."""
        config = self._config
        return evaluation_batches(
            config.data, config.model, config.eval_batch_size, faulty=self.faulty, count_unlabelled=config.per_class
        )


class ResidentPipeline(InputPipeline):
    """InputPipeline for config.data.on_device: sends the examples to every device once; batches then only index them.

    Each example is decoded once, before the first step or at the first evaluation.
    """

    def train(self, start_step: int) -> Iterator[Batch]:
        """As `InputPipeline.train`, with "examples" [d, n, h, w, C] (on the devices) and "seed" instead of "image"."""
        from tnt_jax.data import resident

        config, (examples, labels) = self._config, self._resident
        batches = resident.train_batches(
            labels,
            copies=config.data.repeated_augmentation,
            batch_size=config.batch_size,
            seed=config.seed,
            start_step=start_step,
            **_devices(),
        )
        return (batch | {"examples": examples} for batch in batches)

    def evaluation(self) -> Iterator[Batch]:
        """As `InputPipeline.evaluation`; the batches stay on the devices after the first call."""
        return iter(self._evaluation)

    @functools.cached_property
    def _resident(self) -> tuple[jax.Array, np.ndarray]:
        from tnt_jax.data import resident

        model = self._config.model
        images, labels = resident.load(self._config.data, model.input_size, model.in_channels, self.faulty)
        return replicate(images), labels

    @functools.cached_property
    def _evaluation(self) -> list[Batch]:
        return list(prefetch(super().evaluation(), self._config.prefetch_batches))


def make_input_pipeline(config: Config) -> InputPipeline:
    """Returns the input pipeline that config.data.on_device selects."""
    return ResidentPipeline(config) if config.data.on_device else InputPipeline(config)


def evaluation_batches(
    settings: DataSettings,
    model: ModelSettings | TNT,
    batch_size: int,
    *,
    faulty: FaultyImages | None = None,
    count_unlabelled: bool = False,
) -> Iterator[Batch]:
    """This process's shard of `settings.eval_split` at the model's image size: see data.batches.eval_batches.

    batch_size counts the images of all processes. All evaluations, and tools that read a split, use these batches.
    """
    from tnt_jax.data.batches import eval_batches

    return eval_batches(
        settings,
        batch_size=batch_size,
        image_size=model.input_size,
        channels=model.in_channels,
        faulty=faulty,
        count_unlabelled=count_unlabelled,
        **_devices(),
    )


def _devices() -> dict[str, int]:
    """Returns the devices that batches are split over, as arguments of the data package's functions."""
    return {
        "local_devices": jax.local_device_count(),
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }


def prefetch(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Batches of NumPy arrays [local devices, ...] -> the same on the devices, `size` of them in advance.

    The copy to the devices is asynchronous: it overlaps the step that the caller has just dispatched.
    """
    sharding = per_device_sharding()
    queue = collections.deque(jax.device_put(batch, sharding) for batch in itertools.islice(batches, size))
    while queue:
        yield queue.popleft()
        queue.extend(jax.device_put(batch, sharding) for batch in itertools.islice(batches, 1))
