"""From the data wing to the devices: the batches of an experiment, put on the devices while steps run."""

import collections
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tnt_jax.training.config import Experiment

Batch = dict[str, Any]


class Feed:
    """The data set of an experiment. Making one imports TensorFlow and raises where the set is missing."""

    def __init__(self, experiment: Experiment):
        from tnt_jax.data import pipeline, sources

        self._experiment = experiment
        self._pipeline = pipeline
        source = sources.open_source(experiment.data)
        source.num_examples(experiment.data.eval_split)  # raises now, not after the first epoch
        self.num_classes: int = source.num_classes

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Training examples // batch size. Raises where the training split is missing or smaller than a batch."""
        return self._pipeline.steps_per_epoch(self._experiment.data, self._experiment.batch_size)

    def train(self, start_step: int) -> Iterator[Batch]:
        """This process's share of the training batches from update number `start_step` (from 0) on, without end."""
        return self._pipeline.train_batches(
            self._experiment.data,
            batch_size=self._experiment.batch_size,
            seed=self._experiment.seed,
            start_step=start_step,
            **self._place(),
        )

    def evaluation(self) -> Iterator[Batch]:
        """This process's share of the evaluation split: every example once, the last batch filled up and masked."""
        return self._pipeline.eval_batches(
            self._experiment.data, batch_size=self._experiment.eval_batch_size, **self._place()
        )

    def _place(self) -> dict[str, Any]:
        size = self._experiment.model.image_size
        return {
            "image_size": (size, size),
            "local_devices": jax.local_device_count(),
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }


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
