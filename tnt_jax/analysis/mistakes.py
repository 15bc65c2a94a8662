"""Where a classifier is wrong on a split: confusion matrix or average precision by class, and the worst mistakes."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from tnt_jax.training.evaluation import average_precisions


class Mistake(NamedTuple):
    """A wrong prediction."""

    index: int  # the example's number in the split
    pixels: np.ndarray  # [H, W, C], as the model got it
    label: int
    predicted: int
    label_probability: float  # 0..1
    predicted_probability: float  # 0..1


class Evaluated(NamedTuple):
    """Results of a model on a split."""

    confusion: np.ndarray  # int64 [K, K]: examples of class row predicted as class column
    worst: list[Mistake]  # the least probable label first

    @property
    def count(self) -> int:
        """Number of examples."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Fraction of right predictions, 0..1."""
        return float(np.trace(self.confusion) / max(self.count, 1))


class MistakeOfSeveral(NamedTuple):
    """An image whose predicted classes (probability above one half) are not its labels."""

    index: int  # the example's number in the split
    pixels: np.ndarray  # [H, W, C], as the model got it
    labels: tuple[int, ...]
    predicted: tuple[int, ...]
    loss: float  # mean binary cross-entropy, nats


class EvaluatedSeveral(NamedTuple):
    """Results of a model on a split with several labels per image."""

    precisions: list[float | None]  # average precision of each class, 0..1; None: no image has it
    examples: list[int]  # per class
    count: int
    subset_accuracy: float  # fraction of images whose classes above one half are their labels
    worst: list[MistakeOfSeveral]  # the highest loss first

    @property
    def mean_average_precision(self) -> float:
        """Mean over the classes that have images, 0..1."""
        return float(np.mean([each for each in self.precisions if each is not None] or [np.nan]))


class Confusion(NamedTuple):
    """How often one class is taken for another."""

    label: int
    predicted: int
    count: int
    fraction: float  # of the class's examples, 0..1


def find_mistakes(
    logits_of: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[Mapping[str, np.ndarray]],
    num_classes: int,
    keep: int = 24,
) -> Evaluated:
    """Batches [b, ...] of an evaluation (image, label, mask, index) -> where the model is wrong.

    logits_of: [b, H, W, C] -> [b, K]. keep: how many mistakes to keep; the worst have the least (softmax) probability
    of the label. Raises ValueError for a set with several labels per image.
    """
    confusion = np.zeros((num_classes, num_classes), np.int64)
    worst: list[tuple[float, int, Mistake]] = []
    for batch in batches:
        if "labels" in batch:
            raise ValueError("a set with several labels per image has no confusion matrix")
        logits = logits_of(batch["image"])
        rows = np.asarray(jax.nn.softmax(logits))
        real = np.flatnonzero(batch["mask"])
        labels, predicted = batch["label"], logits.argmax(-1)
        np.add.at(confusion, (labels[real], predicted[real]), 1)
        for i in real[labels[real] != predicted[real]]:
            label, guess, index = int(labels[i]), int(predicted[i]), int(batch["index"][i])
            found = Mistake(index, batch["image"][i], label, guess, float(rows[i, label]), float(rows[i, guess]))
            worst.append((-found.label_probability, -index, found))
        worst = heapq.nlargest(keep, worst)
    return Evaluated(confusion, [found for *_, found in worst])


def find_mistakes_of_several(
    logits_of: Callable[[np.ndarray], np.ndarray],
    batches: Iterable[Mapping[str, np.ndarray]],
    keep: int = 24,
) -> EvaluatedSeveral:
    """Like `find_mistakes`, for several labels per image; uses order and sign of logits, as in training.evaluation."""
    scores, presents, worst = [], [], []
    for batch in batches:
        real = batch["mask"] > 0
        rows = logits_of(batch["image"])[real]
        fields = {name: batch[name][real] for name in ("image", "labels", "index")}
        present = np.pad(fields["labels"], ((0, 0), (0, rows.shape[1] - fields["labels"].shape[1]))) > 0
        losses = np.logaddexp(0, np.where(present, -rows, rows)).mean(-1)
        for i in np.flatnonzero(((rows > 0) != present).any(-1)):
            labels, predicted = (tuple(np.flatnonzero(row).tolist()) for row in (present[i], rows[i] > 0))
            found = MistakeOfSeveral(int(fields["index"][i]), fields["image"][i], labels, predicted, float(losses[i]))
            worst.append((found.loss, -found.index, found))
        worst = heapq.nlargest(keep, worst)
        scores.append(rows)
        presents.append(present)
    rows, present = np.concatenate(scores), np.concatenate(presents)
    return EvaluatedSeveral(
        average_precisions(rows, present),
        present.sum(0).tolist(),
        len(rows),
        float(((rows > 0) == present).all(-1).mean()),
        [found for *_, found in worst],
    )


def most_confused(confusion: np.ndarray, count: int) -> list[Confusion]:
    """confusion [K, K] -> the `count` most frequent pairs of a class and what it is wrongly taken for."""
    wrong = confusion - np.diag(np.diag(confusion))
    found = []
    for flat in np.argsort(-wrong, axis=None, kind="stable")[:count]:
        label, predicted = (int(i) for i in np.unravel_index(flat, wrong.shape))
        if times := int(wrong[label, predicted]):
            found.append(Confusion(label, predicted, times, times / int(confusion[label].sum())))
    return found
