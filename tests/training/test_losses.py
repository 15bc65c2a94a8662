"""Label smoothing and the loss, by value."""

import jax.numpy as jnp
import numpy as np
import pytest

from tnt_jax.training.losses import smooth_labels, softmax_cross_entropy


def test_smoothing_has_the_recipes_values():
    targets = smooth_labels(jnp.array([2, 0]), 5, 0.1)
    np.testing.assert_allclose(targets, [[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]], rtol=1e-6)
    np.testing.assert_array_equal(smooth_labels(jnp.array([1]), 3, 0.0), [[0, 1, 0]])


def test_cross_entropy_by_value():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    targets = jnp.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]])
    total, weight = softmax_cross_entropy(logits, targets, jnp.ones(2))
    assert total == pytest.approx(-np.log(0.5) - 0.5 * np.log(0.8) - 0.5 * np.log(0.1), rel=1e-6)
    assert weight == 2


def test_padding_counts_nothing_even_where_its_loss_is_infinite():
    logits = jnp.array([[0.0, 0.0], [jnp.inf, 0.0]])
    total, weight = softmax_cross_entropy(logits, jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([1.0, 0.0]))
    assert total == pytest.approx(np.log(2)) and weight == 1


def test_bfloat16_logits_are_summed_up_in_float32():
    logits = jnp.array([[1.0, 2.0, 3.0]], jnp.bfloat16)
    total, _ = softmax_cross_entropy(logits, jnp.array([[0.0, 0.0, 1.0]]), jnp.ones(1))
    assert total.dtype == jnp.float32 and total == pytest.approx(0.407606, rel=1e-5)
