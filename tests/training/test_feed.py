"""From the data wing to the devices."""

import itertools

import jax
import numpy as np
import pytest

from tests.training.helpers import batch, experiment
from tnt_jax.training.feed import Feed, prefetch


def test_prefetched_batches_are_the_same_and_lie_on_all_devices():
    made = [batch(seed, devices=8) for seed in range(5)]
    found = list(prefetch(iter(made), 2))
    assert len(found) == 5
    for one, other in zip(made, found, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert len(other["image"].sharding.device_set) == 8
    assert list(prefetch(iter([]), 2)) == []


@pytest.mark.parametrize("size", [1, 3])
def test_so_many_batches_wait(size):
    read = []

    def counting():
        for seed in itertools.count():
            read.append(seed)
            yield batch(seed, devices=8)

    batches = prefetch(counting(), size)
    next(batches)
    assert len(read) == size
    next(batches)
    assert len(read) == size + 1  # the next one is read while a step runs on this one


def test_the_data_wing_gives_what_the_step_takes():
    settings = experiment(
        data__name="synthetic", data__synthetic_examples=40, data__eval_split="test", data__repeated_augmentation=1
    )
    feed = Feed(settings)
    assert feed.steps_per_epoch == 2 and feed.num_classes > 1
    like = batch(0, devices=8)
    made = next(feed.train(0))
    assert {name: (x.shape, x.dtype) for name, x in made.items()} == {
        name: (x.shape, x.dtype) for name, x in like.items()
    }
    resumed = next(feed.train(3))
    for name, value in next(itertools.islice(feed.train(0), 3, None)).items():
        np.testing.assert_array_equal(resumed[name], value)
    masks = [made["mask"].sum() for made in feed.evaluation()]
    assert sum(masks) == 40 and len(masks) == 3
