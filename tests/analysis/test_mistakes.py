import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tnt_jax.analysis import mistakes, page


def batches(labels, size):
    """Yields batches of images whose red value is the example's number; the last batch is padded."""
    for first in range(0, len(labels), size):
        real = labels[first : first + size]
        index = np.full(size, -1)
        index[: len(real)] = np.arange(first, first + len(real))
        image = np.zeros((size, 2, 2, 3), np.uint8)
        image[..., 0] = np.maximum(index, 0)[:, None, None]
        label = np.zeros(size, np.int32)
        label[: len(real)] = real
        yield {"image": image, "label": label, "index": index, "mask": (index >= 0).astype(np.float32)}


def found(rows, labels, keep=24):
    """Runs find_mistakes with the probabilities `rows` [examples, classes]."""
    with np.errstate(divide="ignore"):
        logits = np.log(rows)
    return mistakes.find_mistakes(lambda pixels: logits[pixels[:, 0, 0, 0]], batches(labels, 4), rows.shape[1], keep)


def test_every_example_counts_once_and_the_worst_come_first():
    rng = np.random.default_rng(0)
    rows = rng.dirichlet(np.ones(3), 13).astype(np.float32)
    labels = rng.integers(0, 3, 13)
    result = found(rows, labels)
    expected = np.zeros((3, 3), int)
    for label, row in zip(labels, rows, strict=True):
        expected[label, row.argmax()] += 1
    np.testing.assert_array_equal(result.confusion, expected)
    assert result.count == 13 and result.accuracy == np.trace(expected) / 13
    wrong = [i for i in range(13) if rows[i].argmax() != labels[i]]
    wrong.sort(key=lambda i: rows[i, labels[i]])
    assert [mistake.index for mistake in result.worst] == wrong
    first = result.worst[0]
    assert (first.label, first.predicted) == (labels[wrong[0]], rows[wrong[0]].argmax())
    assert first.label_probability == pytest.approx(rows[wrong[0], labels[wrong[0]]])
    assert first.pixels[0, 0, 0] == wrong[0]
    assert [mistake.index for mistake in found(rows, labels, keep=2).worst] == wrong[:2]


def test_equally_bad_mistakes_keep_the_splits_order():
    rows = np.tile(np.float32([1, 0]), (9, 1))
    assert [mistake.index for mistake in found(rows, np.ones(9, int), keep=5).worst] == [0, 1, 2, 3, 4]


def test_pairs_and_classes():
    confusion = np.array([[5, 3, 0], [0, 8, 2], [0, 0, 0]])
    pairs = mistakes.most_confused(confusion, 5)
    assert pairs == [mistakes.Confusion(0, 1, 3, 3 / 8), mistakes.Confusion(1, 2, 2, 0.2)]
    assert page.weakest_classes(confusion) == [(0, 5 / 8, 8), (1, 0.8, 10)]


def test_several_labels_an_image_are_refused():
    batch = next(batches(np.zeros(4, int), 4)) | {"labels": np.zeros((4, 3))}
    with pytest.raises(ValueError, match="several labels per image"):
        mistakes.find_mistakes(lambda pixels: None, [batch], 3)


def test_several_labels_have_precisions_and_the_worst_images_first():
    rng = np.random.default_rng(1)
    rows, present = rng.normal(0, 30, (13, 3)).astype(np.float32), (rng.random((13, 2)) < 0.5).astype(np.uint8)
    rows[3, 0], present[3, 0] = -1e4, 1  # probability 0; probabilities of 1 tie, but their logits do not
    given = list(batches(np.zeros(13, int), 4))
    for batch in given:
        batch["labels"] = present[np.maximum(batch["index"], 0)]
    result = mistakes.find_mistakes_of_several(lambda pixels: rows[pixels[:, 0, 0, 0]], given, keep=3)
    wanted = np.pad(present, ((0, 0), (0, 1)))
    expected = [average_precision_score(wanted[:, k], rows[:, k]) for k in range(2)]
    assert result.precisions == [*map(pytest.approx, expected), None]
    assert result.mean_average_precision == pytest.approx(np.mean(expected))
    assert result.count == 13 and result.examples == wanted.sum(0).tolist()
    assert result.subset_accuracy == ((rows > 0) == wanted).all(-1).mean()
    losses = np.log1p(np.exp(-np.abs(rows))) + np.maximum(np.where(wanted, -rows, rows), 0)
    losses = losses.mean(-1)
    assert [mistake.index for mistake in result.worst] == np.argsort(-losses)[:3].tolist()
    assert result.worst[0].index == 3 and 0 in result.worst[0].labels and 0 not in result.worst[0].predicted
