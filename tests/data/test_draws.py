"""Random numbers for augmentation: their distributions, and independence between seeds, purposes and positions."""

import math

import numpy as np
import pytest

from tnt_jax.data import draws, order

COUNT = 20_000


@pytest.fixture(scope="module")
def seeds():
    return order.augmentation_seeds(3, 1, np.arange(COUNT)[:, None], np.arange(2))


def test_uniform_numbers_fill_their_range_evenly(seeds):
    found = draws.uniform(seeds, draws.CROP, 5)
    assert found.shape == (COUNT, 2, 5) and found.dtype == np.float64 and 0 <= found.min() and found.max() < 1
    counts = np.histogram(found, 100, (0, 1))[0]
    expected = found.size / 100
    assert ((counts - expected) ** 2 / expected).sum() < 99 + 5 * math.sqrt(2 * 99)  # chi-squared, five deviations


def test_normal_numbers_have_the_moments_of_one(seeds):
    found = draws.normal(seeds, draws.POLICY_NORMAL, 3)
    assert found.shape == (COUNT, 2, 3) and np.isfinite(found).all()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((found**power).mean() - moment) < 5 * math.sqrt(variance / found.size)


def test_seeds_purposes_copies_and_places_have_nothing_in_common(seeds):
    columns = [draws.uniform(seeds, purpose, 3).reshape(COUNT, -1) for purpose in (draws.CROP, draws.JITTER)]
    other = order.augmentation_seeds(3, 2, np.arange(COUNT), np.zeros(COUNT, np.int64))  # of the next epoch
    table = np.concatenate([*columns, draws.uniform(other, draws.CROP, 3)], axis=1)
    assert len(np.unique(table)) == table.size
    correlations = np.corrcoef(table, rowvar=False) - np.eye(table.shape[1])
    assert np.abs(correlations).max() < 5 / math.sqrt(COUNT)
    lagged = [np.corrcoef(table[:-1, column], table[1:, column])[0, 1] for column in range(table.shape[1])]
    assert np.abs(lagged).max() < 5 / math.sqrt(COUNT)


def test_numbers_depend_on_their_seed_alone(seeds):
    together, alone = draws.uniform(seeds, 1, 4), draws.uniform(seeds[7, 1], 1, 4)
    np.testing.assert_array_equal(together[7, 1], alone)
    assert not np.array_equal(draws.uniform(seeds[7, 1, ::-1], 1, 4), alone)
    np.testing.assert_array_equal(draws.uniform(seeds[7, 1], 1, 2, 2), alone.reshape(2, 2))
    # Exact values: a resumed run must draw the same numbers after any upgrade.
    known = draws.uniform(np.array([1, -2]), draws.CROP, 2)
    np.testing.assert_array_equal(known, [0.8103250836513639, 0.7476983121015951])
