"""From the data package to the devices: the batches of an experiment, put on the devices while steps run."""

import collections
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tnt_jax.data.faulty import FaultyImages
from tnt_jax.training.config import Experiment
from tnt_jax.training.state import replicate

Batch = dict[str, Any]


class Feed:
    """The data set of an experiment. Making one raises where the set is missing."""

    def __init__(self, experiment: Experiment):
        from tnt_jax.data import batches, sources  # seconds that a wrong flag need not wait for

        self._experiment = experiment
        self.faulty = FaultyImages()
        self._batches = batches
        self._dataset = dataset = sources.open_dataset(experiment.data)
        # Raises now, not after the first epoch.
        dataset.num_examples(experiment.data.eval_split, "config.data.eval_split")
        self.num_classes: int = dataset.num_classes
        self.class_names: tuple[str, ...] | None = dataset.class_names
        self.found: tuple[str, ...] = dataset.found  # lines that say what is there

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Training examples // batch size. Raises where the training split is missing or smaller than a batch."""
        return self._batches.steps_per_epoch(self._experiment.data, self._experiment.batch_size)

    @functools.cached_property
    def train_examples(self) -> int:
        """In the training split; repeated copies do not count."""
        return self._dataset.num_examples(self._experiment.data.train_split, "config.data.train_split")

    @functools.cached_property
    def eval_examples(self) -> int:
        """In the evaluation split."""
        return self._dataset.num_examples(self._experiment.data.eval_split, "config.data.eval_split")

    def train(self, start_step: int) -> Iterator[Batch]:
        """This process's part of the training batches from update number `start_step` (from 0) on, without end."""
        return self._batches.train_batches(
            self._experiment.data,
            batch_size=self._experiment.batch_size,
            seed=self._experiment.seed,
            start_step=start_step,
            faulty=self.faulty,
            **self._place(),
        )

    def evaluation(self) -> Iterator[Batch]:
        """This process's part of the evaluation split: every example once, the last batch filled up and masked."""
        return self._batches.eval_batches(
            self._experiment.data,
            batch_size=self._experiment.eval_batch_size,
            faulty=self.faulty,
            **self._place(),
        )

    def _place(self) -> dict[str, Any]:
        size = self._experiment.model.image_size
        return {
            "image_size": (size, size),
            "local_devices": jax.local_device_count(),
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


class ResidentFeed(Feed):
    """The same for config.data.on_device: the examples are sent to every device once, later batches are numbers.

    Each example is decoded one time, before the first step and at the first evaluation.
    """

    def train(self, start_step: int) -> Iterator[Batch]:
        """As `Feed.train`, with "examples" [d, n, h, w, 3] uint8 (on the devices already) and "seed" for "image"."""
        from tnt_jax.data import resident

        experiment, (examples, labels) = self._experiment, self._resident
        batches = resident.train_batches(
            labels,
            copies=experiment.data.repeated_augmentation,
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            start_step=start_step,
            **{name: value for name, value in self._place().items() if name != "image_size"},
        )
        return (batch | {"examples": examples} for batch in batches)

    def evaluation(self) -> Iterator[Batch]:
        """As `Feed.evaluation`; the batches stay on the devices after the first time."""
        return iter(self._evaluation)

    @functools.cached_property
    def _resident(self) -> tuple[jax.Array, Any]:
        from tnt_jax.data import resident

        images, labels = resident.load(self._experiment.data, self._place()["image_size"], self.faulty)
        return replicate(images), labels

    @functools.cached_property
    def _evaluation(self) -> list[Batch]:
        return list(prefetch(super().evaluation(), self._experiment.prefetch_batches))


def make_feed(experiment: Experiment) -> Feed:
    """The feed that config.data.on_device asks for."""
    return ResidentFeed(experiment) if experiment.data.on_device else Feed(experiment)


def prefetch(batches: Iterator[Batch], size: int) -> Iterator[Batch]:
    """Batches of numpy arrays [local devices, ...] -> the same on the devices; `size` of them wait there.

    The copy to the devices is asynchronous: it runs beside the step that the caller has just dispatched.
    """
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    queue = collections.deque(jax.device_put(batch, sharding) for batch in itertools.islice(batches, size))
    while queue:
        yield queue.popleft()
        queue.extend(jax.device_put(batch, sharding) for batch in itertools.islice(batches, 1))
