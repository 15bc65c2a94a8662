"""What an evaluation measures, and the one way to measure it: in the loop, by --mode=evaluate and for a suite of sets.

A step gives sums over a batch, which add up on the host: exact whatever the batches, devices and processes.
"""

from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tnt_jax.training.input_pipeline import Batch, prefetch
from tnt_jax.training.state import Params, Sums, unreplicate

CALIBRATION_BINS = 15  # as Guo et al. report it
Result = dict[str, float]  # accuracy, accuracy_top5 in 0..1; loss in nats; count; expected_calibration_error in 0..1
EvalStep = Callable[[Params, Batch, np.ndarray], dict[str, jax.Array]]


def top_k_correct(logits: jax.Array, labels: jax.Array, k: int = 1) -> jax.Array:
    """logits [b, K], labels [b] int or [b, K] bool -> [b] bool: whether a label is among the k largest logits.

    With fewer classes than k, all of them are looked at. Equal logits rank by class number.
    """
    _, best = lax.top_k(logits, min(k, logits.shape[-1]))
    found = jnp.take_along_axis(labels, best, axis=-1) if labels.ndim == 2 else best == labels[:, None]
    return found.any(-1)


def batch_sums(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, classes: jax.Array, calibration_bins: int = 0
) -> dict[str, jax.Array]:
    """logits [b, K], labels [b] int or [b, K] (1 for each of an image's labels), mask [b], classes [K] -> float32 sums.

    classes: 1 for the classes that the data set has. The logits of the others are left out before the softmax, as the
    authors of ImageNet-A and ImageNet-R do.
    -> count, accuracy, accuracy_top5 and loss [] (negative log-likelihood, nats); with calibration_bins, for each bin
    [bins] of the confidence also bin_confidence and bin_accuracy. A prediction is right if it is among the labels, and
    the likelihood is the labels' summed probability. With one label this is the usual one.
    """
    logits = jnp.where(classes > 0, logits.astype(jnp.float32), -jnp.inf)
    labels = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1])
    labels = (labels > 0) & (classes > 0)
    log_probabilities = jax.nn.log_softmax(logits)
    log_likelihood = jax.nn.logsumexp(jnp.where(labels, log_probabilities, -jnp.inf), axis=-1)
    correct = top_k_correct(logits, labels)
    sums = {
        "count": mask.sum(),
        "accuracy": (correct * mask).sum(),
        "accuracy_top5": (top_k_correct(logits, labels, 5) * mask).sum(),
        "loss": -jnp.where(mask > 0, log_likelihood, 0.0).sum(),  # where: padding's may be infinite
    }
    if calibration_bins:
        confidence = jnp.exp(log_probabilities.max(-1))
        # The bins are (0, 1/n], (1/n, 2/n], ..., as in the paper. No matrix products: a TPU's would be in bfloat16.
        bins = jnp.clip(jnp.ceil(confidence * calibration_bins).astype(jnp.int32) - 1, 0, calibration_bins - 1)
        in_bin = jax.nn.one_hot(bins, calibration_bins) * mask[:, None]
        sums["bin_confidence"] = (confidence[:, None] * in_bin).sum(0)
        sums["bin_accuracy"] = (correct[:, None] * in_bin).sum(0)
    return sums


def finish(sums: Mapping[str, np.ndarray]) -> Result:
    """The sums of all batches -> a Result. Raises ValueError where no image was counted.

    expected_calibration_error: the mean over the images of |accuracy - mean confidence| of the image's bin (Guo et al.
    2017, On Calibration of Modern Neural Networks, equation 3).
    """
    count = float(sums["count"])
    if count == 0:
        raise ValueError("No image was counted: none has a label.")
    result = {name: float(sums[name]) / count for name in ("loss", "accuracy", "accuracy_top5")}
    if "bin_accuracy" in sums:
        gaps = np.abs(sums["bin_accuracy"] - sums["bin_confidence"])  # each times the bin's number of images
        result["expected_calibration_error"] = float(gaps.sum()) / count
    return result | {"count": round(count)}


def evaluate_weights(
    eval_step: EvalStep,
    weights: Mapping[str, Params],
    batches: Iterator[Batch],
    classes: np.ndarray,
    prefetch_batches: int,
    interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Result] | None:
    """Replicated weights by name, batches [local devices, ...], classes [K] -> the Result of each.

    None where `interrupted`, asked before every batch, says so. The batches are read once for all weights. Sums are
    kept in float64 on the host, one batch behind the devices.
    """
    totals: dict[str, dict[str, np.ndarray]] = {}

    def add(results: dict[str, dict[str, jax.Array]]) -> None:
        for name, sums in unreplicate(results).items():
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
    return {name: finish(sums) for name, sums in totals.items()}


def means(sums: Sums, empty: float | None = None) -> dict[str, float]:
    """(sum, weight) pairs -> means. Where nothing was summed the mean is `empty`, or, without it, a ValueError."""
    for name, (_, weight) in sums.items():
        if float(weight) == 0 and empty is None:
            raise ValueError(f"There is no mean of {name}: no example was counted.")
    return {name: float(s) / float(weight) if float(weight) else empty for name, (s, weight) in sums.items()}
