"""Features of frozen blocks, nearest neighbours and the linear probe."""

import jax
import numpy as np
import pytest

from tests.training.helpers import checked_config, random_variables
from tnt_jax.analysis import features, probe
from tnt_jax.analysis.features import Features
from tnt_jax.data import synthetic
from tnt_jax.models.variants import create_model

SETTINGS = checked_config(
    data__name="synthetic", data__synthetic_examples=35, model__depth=2, model__num_classes=3, model__outer_dim=6
)


@pytest.fixture(scope="module")
def tiny():
    """Returns a tiny TNT of two blocks, and its parameters."""
    model = create_model(**SETTINGS.model.arguments())
    return model, random_variables(model)["params"]


def normed(values, params):
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.sqrt(values.var(-1, keepdims=True) + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]


def test_every_image_of_a_split_once_over_all_devices(tiny):
    """35 images in batches of 16 over 8 devices equal one plain call; the last class token is the head's input."""
    model, params = tiny
    pixels, labels = synthetic.examples(np.arange(35), (8, 8))

    @jax.jit
    def plain(images):
        logits, seen = model.apply({"params": params}, images, return_features=("sentences",))
        return (
            logits,
            seen["sentences"],
            features.block_features(params, images, model=model, block=2, kind="class_token"),
        )

    logits, sentences, last = plain(((pixels / 255 - 0.5) / 0.5).astype(np.float32))
    np.testing.assert_allclose(last @ params["head"]["kernel"] + params["head"]["bias"], logits, rtol=1e-4, atol=1e-5)

    found = features.extract_features(model, params, SETTINGS, "test", block=1, kind="mean")
    assert found.values.shape == (35, 6) and found.values.dtype == np.float32
    expected = normed(np.asarray(sentences[0]), params)[:, 1:].mean(1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found.labels, labels)


@pytest.mark.parametrize(("block", "kind", "words"), [(3, "mean", "blocks 1 to 2"), (1, "max", "class_token, mean")])
def test_what_is_not_there_is_refused(tiny, block, kind, words):
    with pytest.raises(ValueError, match=words):
        features.extract_features(*tiny, SETTINGS, "test", block=block, kind=kind)


def clusters(count, seed, spread=0.5):
    """Draws four classes around the corners of a square, in the first two of five features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    values = rng.normal(0, spread, (count, 5))
    values[:, 0] += np.where(labels % 2, 2, -2)
    values[:, 1] += np.where(labels // 2, 2, -2)
    return Features(values.astype(np.float32), labels.astype(np.int32))


def test_nearest_neighbours_by_hand(monkeypatch):
    train, test = clusters(60, 0, spread=3), clusters(40, 1, spread=3)
    right = 0
    for value, label in zip(test.values.astype(np.float64), test.labels, strict=True):
        cosines = [each @ value / np.linalg.norm(each) / np.linalg.norm(value) for each in train.values]
        votes = np.zeros(4)
        for number in np.argsort(cosines)[-7:]:
            votes[train.labels[number]] += np.exp(cosines[number] / 0.07)
        right += votes.argmax() == label
    assert 0.3 < right / 40 < 1
    monkeypatch.setattr(probe, "NEIGHBOURS", 7)
    assert probe.nearest_neighbours(train, test) == pytest.approx(right / 40)


def test_the_nearest_of_two_classes_outweighs_more_that_are_far():
    train = Features(np.array([[1, 0], [0, 1], [0.1, 1]], np.float32), np.array([0, 1, 1]))
    assert probe.nearest_neighbours(train, Features(np.array([[5, 1]], np.float32), np.array([0]))) == 1


def test_linear_probe_finds_classes_whatever_the_scale():
    train, test = clusters(120, 2), clusters(80, 3)
    found = probe.linear_probe(train, test)
    assert found["accuracy"] > 0.95 and found["held_out_accuracy"] > 0.9 and found["converged"]
    scale, shift = np.array([1e3, 1e-3, 1, 10, 0.1], np.float32), np.float32(3)
    scaled = [Features(each.values * scale + shift * scale, each.labels) for each in (train, test)]
    assert probe.linear_probe(*scaled)["accuracy"] == pytest.approx(found["accuracy"], abs=0.02)


def test_the_test_split_chooses_nothing():
    train, test = clusters(120, 4, spread=2), clusters(80, 5, spread=2)
    wrong = Features(test.values, (test.labels + 1) % 4)
    found, others = probe.linear_probe(train, test), probe.linear_probe(train, wrong)
    assert found["accuracy"] > 0.5 > others["accuracy"]
    assert {**found, "accuracy": 0} == {**others, "accuracy": 0}


def test_strong_penalties_win_where_there_is_nothing_to_learn(monkeypatch):
    rng = np.random.default_rng(6)
    train, test = (Features(rng.normal(size=(100, 30)), rng.integers(0, 2, 100)) for _ in range(2))
    monkeypatch.setattr(probe, "INVERSE_PENALTIES", (1e-9, 1e-6))
    found = probe.linear_probe(train, test)
    assert found["inverse_penalty"] <= 1e-6 and 0.3 < found["accuracy"] < 0.7


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0] * 6 + [1] * 5 + [2], "a single image of fox, of which none can be held out"),
        ([1] * 9, "has images of dog alone"),
        ([0, 0, 1, 1, 2, 2], "6 images of 3 classes; 20% of them.* less than one image per class"),
    ],
)
def test_classes_that_cannot_be_held_out_are_named(labels, words):
    values = np.random.default_rng(0).normal(size=(len(labels), 3))
    found = Features(values, np.array(labels))
    with pytest.raises(ValueError, match=words):
        probe.linear_probe(found, found, class_names=("cat", "dog", "fox"))


def test_a_choice_at_the_end_of_the_grid_is_told_from_one_inside_it(monkeypatch):
    train, test = clusters(200, 0), clusters(100, 1)
    noise = np.random.default_rng(0).normal(0, 20, (200, 1))  # in both features, so their difference shows the class
    hidden = Features(np.hstack([train.labels[:, None] + noise, noise]), train.labels)
    monkeypatch.setattr(probe, "INVERSE_PENALTIES", (1e-6, 1e-4, 1e4))
    found = probe.linear_probe(hidden, hidden)
    assert found["inverse_penalty"] == 1e4 and found["at_end"]
    monkeypatch.setattr(probe, "INVERSE_PENALTIES", (10.0, 100.0))  # equally good
    assert not probe.linear_probe(train, test)["at_end"]
