"""Class weights, the note about imbalanced classes, and limits of the BCE threshold."""

import json
import types

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from tests.training.helpers import TinyPipeline, checked_config
from tnt_jax.training.class_balance import balance_lines, check_threshold, make_class_weights


def pipeline(counts, names=("cat", "dog", "Zürich")):
    return types.SimpleNamespace(
        class_counts=np.array(counts), class_names=names, num_classes=len(counts), labels_at_hand=True
    )


def test_balanced_is_scikit_learns():
    labels = [0] * 7 + [1] * 2 + [2] * 40
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    found = make_class_weights(checked_config(class_weights="balanced"), pipeline([7, 2, 40]), 3)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_class_without_images_and_one_that_the_data_set_lacks_weigh_1():
    found = make_class_weights(checked_config(class_weights="balanced"), pipeline([30, 0, 10]), 4)
    np.testing.assert_allclose(found, [40 / 60, 1, 40 / 20, 1], rtol=1e-6)


def test_numbers_go_by_name_and_accents_in_any_form():
    config = checked_config(class_weights=json.dumps({"Zu\u0308rich": 3, "cat": 1, "dog": 0.5}, ensure_ascii=False))
    np.testing.assert_array_equal(make_class_weights(config, pipeline([1, 1, 1]), 3), np.float32([1, 0.5, 3]))
    assert make_class_weights(checked_config(), pipeline([1, 1, 1]), 3) is None
    numbers = checked_config(class_weights='{"0": 1, "1": 2}')
    np.testing.assert_array_equal(make_class_weights(numbers, pipeline([1, 1], None), 2), np.float32([1, 2]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cat": 1, "dog": 1, "cow": 1, "Zürich": 1}, "names 'cow', but .* has the classes 'cat', 'dog'"),
        ({"cat": 1}, "no number for 'dog'"),
    ],
)
def test_names_are_the_classes(given, words):
    with pytest.raises(ValueError, match=words):
        make_class_weights(checked_config(class_weights=json.dumps(given)), pipeline([1, 1, 1]), 3)


def test_classes_of_more_than_ten_to_one_are_named():
    config = checked_config()
    (note,) = balance_lines(config, pipeline([2101, 210, 3000]), None)
    assert "Zürich has 3,000" in note and "dog 210" in note and "class_weights=balanced" in note
    assert not balance_lines(config, pipeline([2100, 210, 0]), None)
    assert not balance_lines(config, TinyPipeline(config), None)
    assert not balance_lines(config, pipeline([0, 0, 0]), None)
    assert balance_lines(config, pipeline([1, 1, 1]), np.array([1, 0.5, 3])) == [
        "Class weights: cat 1, dog 0.5, Zürich 3"
    ]


def test_a_threshold_below_what_smoothing_gives_is_refused():
    check_threshold(checked_config(loss="sigmoid", bce_threshold=0.02), 5, several_labels=False)
    with pytest.raises(ValueError, match="label_smoothing=0"):
        check_threshold(checked_config(loss="sigmoid", bce_threshold=0.0), 5, several_labels=False)
    with pytest.raises(ValueError, match=r"is below 0.05, the target that config.label_smoothing=0.1"):
        check_threshold(checked_config(loss="sigmoid", bce_threshold=0.02), 5, several_labels=True)


def test_a_threshold_that_no_class_reaches_is_refused():
    config = checked_config(loss="sigmoid", bce_threshold=0.93, label_smoothing=0.1)
    check_threshold(config, 2, several_labels=True)  # the target is 0.95 where a class is present
    with pytest.raises(ValueError, match="is not below 0.92, .* a class that is present: all would count as 0"):
        check_threshold(config, 5, several_labels=False)
