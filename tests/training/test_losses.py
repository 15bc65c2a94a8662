"""Losses against timm's and PyTorch's values, and what must not change them."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.helpers import batch, checked_config, train_some
from tnt_jax.training.config import KEYS, check_config
from tnt_jax.training.device_augment import reverse_batch
from tnt_jax.training.losses import LOSSES, batch_loss, smooth_labels

BCE = np.load(pathlib.Path(__file__).parents[1] / "fixtures/bce.npz")  # tests/fixtures/make_timm_fixture.py
PLAIN = checked_config(label_smoothing=0.0)


@pytest.mark.parametrize(
    ("name", "kind", "smoothing", "changes", "class_weights"),
    [
        ("labels", "label", 0.1, {}, None),
        ("sum", "label", 0.1, {"bce_sum_classes": True}, None),
        ("mixed", "label", 0.1, {}, None),
        ("threshold", "label", 0.1, {"bce_threshold": 0.2}, None),
        ("several", "several", 0.1, {}, None),
        ("pos_weight", "several", 0.0, {}, np.array([1.0, 2.0, 0.5, 4.0, 1.5])),
    ],
)
def test_sigmoid_is_timms_binary_cross_entropy(name, kind, smoothing, changes, class_weights):
    config = checked_config(loss="sigmoid", label_smoothing=smoothing, **changes)
    targets = smooth_labels(jnp.asarray(BCE[kind]), 5, smoothing)
    if name in ("mixed", "threshold"):
        targets = targets * 0.7 + reverse_batch(targets) * 0.3

    def loss(logits):
        total, weight = batch_loss(logits, targets, jnp.ones(len(targets)), config, class_weights)
        return total / weight

    value, gradient = jax.value_and_grad(loss)(BCE["logits"])
    np.testing.assert_allclose(value, BCE[f"{name}_loss"], rtol=1e-6)
    np.testing.assert_allclose(gradient, BCE[f"{name}_gradient"], rtol=1e-5, atol=1e-7)


def test_smoothing_has_the_recipes_values():
    targets = smooth_labels(jnp.array([2, 0]), 5, 0.1)
    np.testing.assert_allclose(targets, [[0.02, 0.02, 0.92, 0.02, 0.02], [0.92, 0.02, 0.02, 0.02, 0.02]], rtol=1e-6)
    np.testing.assert_array_equal(smooth_labels(jnp.array([1]), 3, 0.0), [[0, 1, 0]])


def test_a_head_of_more_classes_than_the_labels_has_targets_for_all():
    np.testing.assert_array_equal(smooth_labels(jnp.array([[1, 0, 1]], jnp.uint8), 5, 0.0), [[1, 0, 1, 0, 0]])


def test_cross_entropy_by_value():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]))
    targets = jnp.array([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]])
    total, weight = batch_loss(logits, targets, jnp.ones(2), PLAIN)
    assert total == pytest.approx(-np.log(0.5) - 0.5 * np.log(0.8) - 0.5 * np.log(0.1), rel=1e-6)
    assert weight == 2


def test_class_weights_of_softmax_are_pytorchs():
    """CrossEntropyLoss(weight=) divides by the sum of the weights; a mixed image has the mix of its labels' weights."""
    logits = jnp.array([[1.0, 2.0, 0.5], [0.3, 0.1, 0.2], [2.0, -1.0, 0.0]])
    log_probabilities, weights = jax.nn.log_softmax(logits), np.array([1.0, 3.0, 0.5])
    total, weight = batch_loss(logits, jnp.eye(3)[jnp.array([1, 2, 0])], jnp.ones(3), PLAIN, weights)
    by_hand = -(3 * log_probabilities[0, 1] + 0.5 * log_probabilities[1, 2] + log_probabilities[2, 0])
    np.testing.assert_allclose((total, weight), (by_hand, 4.5), rtol=1e-6)
    mixed = 0.25 * jnp.eye(3)[jnp.array([1])] + 0.75 * jnp.eye(3)[jnp.array([2])]
    np.testing.assert_allclose(batch_loss(logits[:1], mixed, jnp.ones(1), PLAIN, weights)[1], 0.25 * 3 + 0.75 * 0.5)
    smooth = smooth_labels(jnp.array([1, 2, 0]), 3, 0.3)
    smoothed = checked_config(label_smoothing=0.3)
    np.testing.assert_allclose(batch_loss(logits, smooth, jnp.ones(3), smoothed, weights)[1], 4.5, rtol=1e-6)


def test_a_class_of_twice_the_weight_is_one_whose_images_are_there_twice():
    rng, label = np.random.default_rng(1), np.array([0, 2, 1, 2])
    logits, twice = rng.normal(0, 2, (4, 3)).astype(np.float32), np.array([0, 1, 1, 2, 3, 3])
    config = checked_config(label_smoothing=0.2)

    def mean(rows, weights):
        targets = smooth_labels(jnp.asarray(label[rows]), 3, 0.2)
        total, weight = batch_loss(jnp.asarray(logits[rows]), targets, jnp.ones(len(rows)), config, weights)
        return total / weight

    np.testing.assert_allclose(mean(np.arange(4), np.array([1.0, 1.0, 2.0])), mean(twice, None), rtol=1e-6)


def test_every_choice_of_the_key_has_its_function():
    assert set(KEYS["loss"].choices) == LOSSES.keys()


@pytest.mark.parametrize("loss", LOSSES)
def test_weights_of_1_are_none(loss):
    config = checked_config(loss=loss, mixing__mixup_alpha=0.8)
    targets = 0.7 * smooth_labels(jnp.array([0, 2, 1]), 4, 0.1) + 0.3 * smooth_labels(jnp.array([1, 2, 3]), 4, 0.1)
    logits, mask = jnp.asarray(np.random.default_rng(0).normal(0, 2, (3, 4))), jnp.array([1.0, 1.0, 0.0])
    for found, expected in zip(
        batch_loss(logits, targets, mask, config, np.ones(4)), batch_loss(logits, targets, mask, config), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_padding_counts_nothing_even_where_its_loss_is_infinite(loss):
    config = checked_config(loss=loss, label_smoothing=0.0)
    logits = jnp.array([[0.0, 0.0], [jnp.inf, 0.0]])
    targets = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    padded = batch_loss(logits, targets, jnp.array([1.0, 0.0]), config)
    assert padded == batch_loss(logits[:1], targets[:1], jnp.ones(1), config)
    assert np.isfinite(padded[0]) and padded[1] == 1


def test_bfloat16_logits_are_summed_up_in_float32():
    logits = jnp.array([[1.0, 2.0, 3.0]], jnp.bfloat16)
    total, _ = batch_loss(logits, jnp.array([[0.0, 0.0, 1.0]]), jnp.ones(1), PLAIN)
    assert total.dtype == jnp.float32 and total == pytest.approx(0.407606, rel=1e-5)


def test_several_labels_of_one_each_are_one_label():
    """With the sigmoid and no smoothing (which differs, as in timm), some mixed steps give the same weights."""
    config = checked_config(loss="sigmoid", label_smoothing=0.0, mixing__mixup_alpha=0.8)
    batches = [batch(seed) for seed in range(4)]
    several = [each | {"labels": np.eye(4, dtype=np.uint8)[each["label"]]} for each in batches]
    one_state, one = train_some(config, batches)
    many_state, many = train_some(config, several)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(one_state.params), jax.device_get(many_state.params))
    assert jax.device_get(one[-1]["sums"]) == jax.device_get(many[-1]["sums"])


def test_an_image_of_none_of_several_classes_is_never_right():
    config = checked_config(loss="sigmoid", label_smoothing=0.3, mixing__mixup_alpha=0.8)
    made = batch(0) | {"labels": np.zeros((1, 16, 4), np.uint8)}
    _, (results,) = train_some(config, [made])
    assert jax.device_get(results["sums"]["accuracy"]) == (0, 16)
    made["labels"][:, :, :] = 1
    _, (results,) = train_some(config, [made])
    assert jax.device_get(results["sums"]["accuracy"]) == (16, 16)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_weights": "{"}, "must be none, balanced, or numbers by class name"),
        ({"class_weights": "{}"}, "must be none, balanced"),
        ({"class_weights": "[1, 2]"}, "must be none, balanced"),
        ({"class_weights": '{"cat": 0}'}, "gives 'cat' the weight 0"),
        ({"class_weights": '{"cat": true}'}, "the weight True"),
        ({"class_weights": '{"cat": 1, "cat": 2}'}, "'cat' twice"),
        ({"bce_threshold": 0.2}, r"bce_threshold=0.2 needs config.loss=sigmoid"),
        ({"bce_sum_classes": True}, r"--config.loss=sigmoid"),
        ({"loss": "no_such_loss"}, "one of softmax, sigmoid"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        check_config(checked_config(**changes))
