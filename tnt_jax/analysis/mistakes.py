"""Where a classifier is wrong: the confusion matrix of a split, its classes, the worst mistakes with their images."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Mistake(NamedTuple):
    """A wrong prediction."""

    index: int  # the example's number in the split
    pixels: np.ndarray  # uint8 [H, W, 3], as the model got it
    label: int
    predicted: int
    label_probability: float  # 0..1
    predicted_probability: float  # 0..1


class Evaluated(NamedTuple):
    """A model on a split."""

    confusion: np.ndarray  # int64 [K, K]: examples of class row that were taken for class column
    worst: list[Mistake]  # the least probable label first

    @property
    def count(self) -> int:
        """Examples."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """0..1."""
        return float(np.trace(self.confusion) / max(self.count, 1))


class Confusion(NamedTuple):
    """How often one class is taken for another."""

    label: int
    predicted: int
    count: int
    fraction: float  # of the class's examples, 0..1


def evaluate(
    probabilities_of: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[Mapping[str, np.ndarray]],
    num_classes: int,
    keep: int = 24,
) -> Evaluated:
    """Batches of an evaluation (data.batches.eval_batches) -> where the model is wrong.

    probabilities_of: uint8 [b, H, W, 3] -> [b, K]. keep: how many mistakes to keep; a mistake is the worse, the less
    probable the model holds the label. Raises ValueError for a set with several labels an image.
    """
    confusion = np.zeros((num_classes, num_classes), np.int64)
    worst: list[tuple[float, int, Mistake]] = []
    for batch in batches:
        if "labels" in batch:
            raise ValueError("a set with several labels an image has no confusion matrix")
        fields = {name: batch[name].reshape(-1, *batch[name].shape[2:]) for name in ("image", "label", "mask", "index")}
        rows = probabilities_of(fields["image"])
        real = np.flatnonzero(fields["mask"] > 0)
        labels, predicted = fields["label"], rows.argmax(-1)
        np.add.at(confusion, (labels[real], predicted[real]), 1)
        for i in real[labels[real] != predicted[real]]:
            label, guess, index = int(labels[i]), int(predicted[i]), int(fields["index"][i])
            found = Mistake(index, fields["image"][i], label, guess, float(rows[i, label]), float(rows[i, guess]))
            entry = (-found.label_probability, -index, found)  # the heap's least is the mildest
            (heapq.heappush if len(worst) < keep else heapq.heappushpop)(worst, entry)
    return Evaluated(confusion, [entry[2] for entry in sorted(worst, reverse=True, key=lambda entry: entry[:2])])


def class_accuracies(confusion: np.ndarray) -> np.ndarray:
    """confusion [K, K] -> the fraction of each class's examples that are right [K]; nan where there are none."""
    counts = confusion.sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(counts > 0, np.diag(confusion) / counts, np.nan)


def most_confused(confusion: np.ndarray, count: int) -> list[Confusion]:
    """confusion [K, K] -> the `count` most frequent pairs of a class and what it is wrongly taken for."""
    wrong = confusion - np.diag(np.diag(confusion))
    found = []
    for place in np.argsort(-wrong, axis=None, kind="stable")[:count]:
        label, predicted = (int(i) for i in np.unravel_index(place, wrong.shape))
        if wrong[label, predicted]:
            times = int(wrong[label, predicted])
            found.append(Confusion(label, predicted, times, times / int(confusion[label].sum())))
    return found
