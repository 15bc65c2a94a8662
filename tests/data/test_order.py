import numpy as np
import pytest

from tnt_jax.data import order

IMAGENET = 1_281_167


def make_order(**overrides) -> order.TrainOrder:
    fields = dict(num_examples=100, batch_size=24, copies=3, seed=5, process_index=0, process_count=1)
    return order.TrainOrder(**{**fields, **overrides})


def test_hashes_are_those_of_splitmix64():
    # The first outputs of the reference implementation with seed 1234567 (its state grows by the golden gamma).
    gamma = 0x9E3779B97F4A7C15
    outputs = [int(order.mix64(1234567 + i * gamma)) for i in range(3)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_hashes_take_any_seed_and_tell_the_places_of_their_parts_apart():
    assert order.mix64(-1, 2) == order.mix64(2**64 - 1, 2)
    assert order.mix64(1, 2) != order.mix64(2, 1)
    hashes = order.mix64(7, np.arange(1000)[:, None], np.arange(100))
    assert len(np.unique(hashes)) == 100_000


def test_an_epoch_visits_each_example_once_and_each_epoch_in_its_own_order():
    first, again, second = (order.epoch_permutation(0, epoch, 1000) for epoch in (0, 0, 1))
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    np.testing.assert_array_equal(first, again)
    assert (first == second).mean() < 0.01
    assert (first == order.epoch_permutation(1, 0, 1000)).mean() < 0.01


def test_the_shuffle_is_uniform():
    # Positions of 8 examples over 4,000 epochs: 500 expected per cell, standard deviation 21.
    places = np.stack([order.epoch_permutation(3, epoch, 8) for epoch in range(4000)])
    counts = np.stack([np.bincount(places[:, place], minlength=8) for place in range(8)])
    assert np.abs(counts - 500).max() < 5 * 21


def test_an_imagenet_epoch_has_the_recipes_numbers():
    steps = make_order(num_examples=IMAGENET, batch_size=1024)
    assert steps.steps_per_epoch == 1251
    shares = [steps.local_batch(step) for step in range(1251)]
    assert sum(len(share.sample) for share in shares) == 1_281_024
    assert len(np.unique(np.concatenate([share.index for share in shares]))) == 427_008


def used_seeds(share: order.LocalBatch) -> np.ndarray:
    """Returns the seed of each sample, int32 [n, 2]."""
    return share.seeds.reshape(-1, 2)[share.sample]


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
@pytest.mark.parametrize("process_count", [2, 3, 8])
def test_processes_share_each_batch_of_one_process(copies, process_count):
    one = make_order(copies=copies)
    for step in (0, 3, 4, 9):
        shares = [
            make_order(copies=copies, process_index=index, process_count=process_count).local_batch(step)
            for index in range(process_count)
        ]
        whole = one.local_batch(step)
        np.testing.assert_array_equal(np.concatenate([share.sample_index for share in shares]), whole.sample_index)
        assert all(len(np.unique(share.index)) == len(share.index) for share in shares)  # decoded once per process
        np.testing.assert_array_equal(np.concatenate([used_seeds(share) for share in shares]), used_seeds(whole))


def test_an_image_has_its_copies_with_a_seed_each_in_one_epoch():
    steps = make_order(num_examples=96)  # 4 steps of 24 samples: 32 images
    shares = [steps.local_batch(step) for step in range(4)]
    samples = np.concatenate([share.sample_index for share in shares])
    images, counts = np.unique(samples, return_counts=True)
    assert len(images) == 32 and (counts == 3).all()
    seeds = np.concatenate([used_seeds(share) for share in shares])
    later = np.concatenate([used_seeds(steps.local_batch(step)) for step in range(4, 8)])
    assert len(np.unique(np.concatenate([seeds, later]), axis=0)) == 2 * 96


def test_copies_cut_off_at_a_batchs_end_come_first_in_the_next():
    steps = make_order(num_examples=50, batch_size=10)
    first, second = steps.local_batch(0), steps.local_batch(1)
    assert first.sample.tolist() == list(range(10)) and second.sample.tolist() == list(range(1, 11))
    assert len(first.index) == len(second.index) == 4 and first.index[-1] == second.index[0]
    seeds = np.concatenate([used_seeds(first)[-1:], used_seeds(second)[:2]])
    expected = order.augmentation_seeds(5, 0, np.repeat(first.index[-1:], 3), np.arange(3))
    np.testing.assert_array_equal(seeds, expected)


@pytest.mark.parametrize("copies", [2, 3, 10])
def test_mixing_never_pairs_copies_of_one_image(copies):
    steps = make_order(num_examples=4000, batch_size=96, copies=copies)
    for step in range(30):
        arrangement = steps.arrangement(step)
        np.testing.assert_array_equal(np.sort(arrangement), np.arange(96))
        images = steps.local_batch(step).sample_index[arrangement]
        assert not (images == images[::-1]).any()


def test_copies_of_an_image_are_mixed_with_different_images():
    steps = make_order(num_examples=4000, batch_size=96)
    images = steps.local_batch(0).sample_index[steps.arrangement(0)]
    partners = {image: set(images[::-1][images == image]) for image in np.unique(images)}
    assert np.mean([len(others) == 3 for others in partners.values()]) > 0.8


def test_without_copies_the_order_is_the_permutation():
    steps = make_order(copies=1)
    np.testing.assert_array_equal(steps.arrangement(2), np.arange(24))
    np.testing.assert_array_equal(steps.local_batch(2).index, order.epoch_permutation(5, 0, 100)[48:72])
    assert steps.local_batch(4).epoch == 1


def test_more_copies_than_places_still_gives_full_shares():
    steps = make_order(num_examples=12, batch_size=4, copies=8, process_count=2)
    assert [len(steps.local_batch(step).index) for step in range(3)] == [1, 1, 1]
    assert [steps.local_batch(step).sample.tolist() for step in range(3)] == [[0, 1], [4, 5], [0, 1]]
    assert sorted(steps.arrangement(0)) == [0, 1]
