"""Evaluation metrics, measured in the same way in the training loop, by --mode=evaluate and for a suite of data sets.

A step returns sums over a batch, which the host adds up: exact for any batches, devices and processes. The average
precision for several labels per image is not a sum; it is computed from the scores of all images, gathered on the host.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tnt_jax.models.config import Params
from tnt_jax.training.input_pipeline import Batch, prefetch
from tnt_jax.training.losses import binary_cross_entropy, multi_hot
from tnt_jax.training.state import Sums, unreplicate

CALIBRATION_BINS = 15  # as in Guo et al.
# accuracy, accuracy_top5 in 0..1; loss in nats; count; and, depending on what is measured, balanced_accuracy,
# expected_calibration_error, mean_average_precision, subset_accuracy in 0..1, and average_precision of each class.
Result = dict[str, Any]
GATHERED = ("scores", "present")  # results of a step with a row per image instead of sums; "counted" is their mask
EvalStep = Callable[[Params, Batch, np.ndarray], dict[str, jax.Array]]


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int = 1) -> jax.Array:
    """logits [b, K], labels [b] int or [b, K] bool -> [b] bool: whether a label is among the k largest logits.

    With fewer than k classes, all are among them. Equal logits rank by class number.
    """
    _, best = lax.top_k(logits, min(k, logits.shape[-1]))
    found = jnp.take_along_axis(labels, best, axis=-1) if labels.ndim == 2 else best == labels[:, None]
    return found.any(-1)


def batch_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, classes: jax.Array, calibration_bins: int = 0
) -> dict[str, jax.Array]:
    """logits [b, K], labels [b] int or [b, K] (1 for each of an image's labels), mask [b], classes [K] -> float32 sums.

    classes: 1 for the classes that the data set has. The others' logits are masked before the softmax, as by the
    authors of ImageNet-A and ImageNet-R.
    Returns count, accuracy, accuracy_top5 and loss [] (negative log-likelihood, nats); with one label per image also
    class_count and class_correct [K]; with calibration_bins also bin_confidence and bin_accuracy [bins], by the bin of
    the confidence. A prediction is right if it is among the labels, and the likelihood is the labels' summed
    probability. With one label this is the usual likelihood.
    """
    logits = jnp.where(classes > 0, logits.astype(jnp.float32), -jnp.inf)
    one_label = labels.ndim == 1
    labels = (multi_hot(labels, logits.shape[-1]) > 0) & (classes > 0)
    log_probabilities = jax.nn.log_softmax(logits)
    log_likelihood = jax.nn.logsumexp(jnp.where(labels, log_probabilities, -jnp.inf), axis=-1)
    correct = top_k_correct(logits, labels)
    sums = {
        "count": mask.sum(),
        "accuracy": (correct * mask).sum(),
        "accuracy_top5": (top_k_correct(logits, labels, 5) * mask).sum(),
        "loss": -jnp.where(mask > 0, log_likelihood, 0.0).sum(),  # where: that of padding may be infinite
    }
    if one_label:
        counted = labels * mask[:, None]
        sums |= {"class_count": counted.sum(0), "class_correct": (counted * correct[:, None]).sum(0)}
    if calibration_bins:
        confidence = jnp.exp(log_probabilities.max(-1))
        # The bins are (0, 1/n], (1/n, 2/n], ..., as in the paper. No matrix products: a TPU computes them in bfloat16.
        bins = jnp.clip(jnp.ceil(confidence * calibration_bins).astype(jnp.int32) - 1, 0, calibration_bins - 1)
        in_bin = jax.nn.one_hot(bins, calibration_bins) * mask[:, None]
        sums["bin_confidence"] = (confidence[:, None] * in_bin).sum(0)
        sums["bin_accuracy"] = (correct[:, None] * in_bin).sum(0)
    return sums


def sigmoid_sums(logits: jax.Array, labels: jax.Array, mask: jax.Array, sum_classes: bool) -> dict[str, jax.Array]:
    """logits [b, K], labels as in batch_sums, mask [b] -> float32 sums: loss [], which replaces that of batch_sums.

    It is the binary cross-entropy. With several labels per image also subset_accuracy [], the number of images whose
    classes with a probability above one half are exactly their labels.
    """
    logits, present = logits.astype(jnp.float32), multi_hot(labels, logits.shape[-1]).astype(jnp.float32)
    losses = binary_cross_entropy(logits, present, 1 - present, sum_classes)
    sums = {"loss": jnp.where(mask > 0, losses, 0.0).sum()}  # where: that of padding may be infinite
    if labels.ndim == 2:
        sums["subset_accuracy"] = (((logits > 0) == (present > 0)).all(-1) * mask).sum()
    return sums


def finish(sums: Mapping[str, np.ndarray]) -> Result:
    """The sums of all batches -> a Result. Raises ValueError if no image was counted.

    balanced_accuracy: the mean recall of the classes that have images.
    expected_calibration_error: |accuracy - mean confidence| of an image's bin, averaged over the images (Guo et al.
    2017, On Calibration of Modern Neural Networks, equation 3).
    """
    count = float(sums["count"])
    if count == 0:
        raise ValueError("No image was counted: none has a label.")
    means = ("loss", "accuracy", "accuracy_top5", "subset_accuracy")
    result = {name: float(sums[name]) / count for name in means if name in sums}
    if "class_count" in sums:
        there = sums["class_count"] > 0
        result["balanced_accuracy"] = float(np.mean(sums["class_correct"][there] / sums["class_count"][there]))
    if "bin_accuracy" in sums:
        gaps = np.abs(sums["bin_accuracy"] - sums["bin_confidence"])  # times the bin's number of images
        result["expected_calibration_error"] = float(gaps.sum()) / count
    return result | {"count": round(count)}


def average_precisions(scores: np.ndarray, present: np.ndarray) -> list[float | None]:
    """scores [n, K], present [n, K] (1 for each of an image's labels) -> the average precision of each class, 0..1.

    As in scikit-learn: the area under the stepwise precision-recall curve. None for a class that no image has. NaN
    scores rank last.
    """
    from sklearn.metrics import average_precision_score

    scores = np.nan_to_num(scores, nan=np.finfo(np.float32).min)
    return [
        float(average_precision_score(there, score)) if there.any() else None
        for there, score in zip(present.T > 0, scores.T, strict=True)
    ]


def finish_several(scores: np.ndarray, present: np.ndarray) -> Result:
    """As average_precisions -> the same and their mean. Raises ValueError if no image has a label."""
    found = average_precisions(scores, present)
    if all(each is None for each in found):
        raise ValueError("No image of the evaluation split has a label.")
    return {
        "mean_average_precision": float(np.mean([each for each in found if each is not None])),
        "average_precision": found,
    }


def with_class_names(result: Result, names: Sequence[str]) -> Result:
    """A Result whose average_precision is a list -> the same with a dict by class name; unnamed classes by number."""
    if "average_precision" not in result:
        return result
    found = result["average_precision"]
    names = [*names, *map(str, range(len(names), len(found)))]
    return result | {"average_precision": dict(zip(names, found, strict=True))}


def evaluate_weights(
    eval_step: EvalStep,
    weights: Mapping[str, Params],
    batches: Iterator[Batch],
    classes: np.ndarray,
    prefetch_batches: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Result] | None:
    """Replicated weights by name, batches [local devices, ...], classes [K] -> the Result of each.

    Returns None once `interrupted`, called before every batch, returns True. The batches are read once for all weights.
    Sums are kept in float64 on the host, one batch behind the devices.
    """
    totals: dict[str, dict[str, np.ndarray]] = {}
    gathered: dict[str, dict[str, list[np.ndarray]]] = {}  # name -> each of GATHERED, batch by batch

    def add(results: dict[str, dict[str, jax.Array]]) -> None:
        for name, sums in unreplicate(results).items():
            if "counted" in sums:
                counted = sums.pop("counted") > 0
                for key in GATHERED:
                    gathered.setdefault(name, {}).setdefault(key, []).append(sums.pop(key)[counted])
            sums = {key: np.asarray(value, np.float64) for key, value in sums.items()}
            totals[name] = {key: totals[name][key] + sums[key] for key in sums} if name in totals else sums

    waiting = None
    for batch in prefetch(batches, prefetch_batches):
        if interrupted():
            return None
        results = {name: eval_step(params, batch, classes) for name, params in weights.items()}
        if waiting is not None:
            add(waiting)
        waiting = results
    if waiting is None:
        raise ValueError("The evaluation split is empty. Check config.data.eval_split.")
    add(waiting)
    results = {name: finish(sums) for name, sums in totals.items()}
    for name, parts in gathered.items():
        results[name] |= finish_several(*(np.concatenate(parts[key]) for key in GATHERED))
    return results


def means(sums: Sums) -> dict[str, float]:
    """(sum, weight) pairs -> means; NaN for a weight of zero, as where every step since the last line was skipped."""
    return {name: float(s) / float(weight) if float(weight) else np.nan for name, (s, weight) in sums.items()}
