"""Repeated augmentation in the batches: how many different images an epoch has, on any number of hosts."""

import collections

import numpy as np
import pytest

from tnt_jax.data import batches

EXAMPLES, BATCH, STEPS = 1000, 64, 15  # an epoch has 15 whole batches


def images_of(settings, first_step: int, process_count: int) -> list[np.ndarray]:
    """Returns arrays [batch], one per step: the sorted image numbers of an epoch's global batches, from all hosts."""
    steps = [[] for _ in range(STEPS)]
    for process_index in range(process_count):
        out = batches.train_batches(
            settings,
            batch_size=BATCH,
            image_size=(2, 2),
            seed=4,
            start_step=first_step,
            local_devices=2,
            process_index=process_index,
            process_count=process_count,
        )
        for found in steps:
            found.append(next(out)["index"].ravel())
    return [np.sort(np.concatenate(found)) for found in steps]


@pytest.mark.parametrize("process_count", [1, 2, 8])
def test_an_epoch_has_a_third_of_the_images_three_times_on_any_number_of_hosts(settings_for, process_count):
    settings = settings_for("synthetic", synthetic_examples=EXAMPLES, repeated_augmentation=3)
    epoch = images_of(settings, 0, process_count)
    times = collections.Counter(np.concatenate(epoch).tolist())
    assert len(times) == STEPS * BATCH // 3 == 320 and set(times.values()) == {3}
    for whole, shared in zip(images_of(settings, 0, 1), epoch, strict=True):
        np.testing.assert_array_equal(shared, whole)
    later = set(np.concatenate(images_of(settings, STEPS, process_count)).tolist())
    # Drawn again: of the 320 of 1,000 images, 102 are expected to recur, with a standard deviation of 8.
    assert len(later) == 320 and 60 < len(later & set(times)) < 145


def test_without_repetition_an_epoch_has_every_image_once_but_the_last_ones(settings_for):
    settings = settings_for("synthetic", synthetic_examples=EXAMPLES, repeated_augmentation=1)
    found = np.concatenate(images_of(settings, 0, 2))
    assert len(np.unique(found)) == len(found) == STEPS * BATCH
