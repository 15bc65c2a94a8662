"""Metrics as sums and weights: exact over ragged batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tnt_jax.training import metrics
from tnt_jax.training.state import replicate

LOGITS = jnp.array([[0.1, 0.9, 0.0, 0.5, 0.2, 0.3], [0.9, 0.1, 0.8, 0.7, 0.6, 0.5], [1.0, 0, 0, 0, 0, 0]])


def test_accuracy_counts_and_masks():
    assert metrics.accuracy(LOGITS, jnp.array([1, 2, 0]), jnp.ones(3)) == (2, 3)
    assert metrics.accuracy(LOGITS, jnp.array([1, 2, 0]), jnp.array([1.0, 1.0, 0.0])) == (1, 2)


def test_top5_looks_at_five():
    assert metrics.accuracy(LOGITS, jnp.array([2, 1, 0]), jnp.ones(3), top=5) == (1, 3)


def test_top5_of_fewer_classes_looks_at_all():
    assert metrics.accuracy(LOGITS[:, :3], jnp.array([2, 1, 0]), jnp.ones(3), top=5) == (3, 3)


def test_ten_examples_at_batch_four_count_ten():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(12, 3)), rng.integers(0, 3, 12)
    sums = metrics.zeros(["accuracy"])
    for first in (0, 4, 8):
        mask = jnp.array(np.arange(first, first + 4) < 10, jnp.float32)
        found = metrics.accuracy(jnp.array(logits[first : first + 4]), jnp.array(labels[first : first + 4]), mask)
        sums = jax.tree.map(jnp.add, sums, {"accuracy": found})
    assert sums["accuracy"][1] == 10
    assert metrics.averages(sums)["accuracy"] == pytest.approx((logits.argmax(-1) == labels)[:10].mean())


def test_no_example_has_no_mean():
    with pytest.raises(ValueError, match="accuracy"):
        metrics.averages(metrics.zeros(["accuracy"]))
    assert metrics.averages({"accuracy": (1.0, 4.0), "loss": (0.0, 0.0)}, nothing=-1.0) == {
        "accuracy": 0.25,
        "loss": -1,
    }


def test_to_host_takes_one_copy():
    tree = {"a": jnp.arange(3), "b": (jnp.float32(2), np.ones((2, 2), np.float32))}
    host = metrics.to_host(replicate(tree))
    np.testing.assert_array_equal(host["a"], [0, 1, 2])
    assert host["b"][0].shape == () and host["b"][1].shape == (2, 2)
    assert isinstance(host["a"], np.ndarray)
