"""What a report card says of a data set: top-1, top-5, negative log-likelihood and expected calibration error.

One pmapped step gives sums over a batch, which add up on the host; so the measures are exact whatever the batches, the
devices and the processes.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tnt_jax.training import metrics
from tnt_jax.training.config import Experiment
from tnt_jax.training.feed import Batch, prefetch
from tnt_jax.training.steps import AXIS, for_platform, normalize, over_devices

CALIBRATION_BINS = 15  # as Guo et al. report it
Measures = dict[str, float]


def sums_of_batch(
    logits: jax.Array, labels: jax.Array, mask: jax.Array, classes: jax.Array, bins: int = CALIBRATION_BINS
) -> dict[str, jax.Array]:
    """logits [b, K], labels [b] int or [b, K] (1 for each of an image's labels), mask [b], classes [K] -> float32 sums.

    classes: 1 for the classes that the data set has. The logits of the others are left out before the softmax, as the
    authors of ImageNet-A and ImageNet-R do.
    -> count, accuracy, accuracy_top5 and negative_log_likelihood [] (nats), and for each bin [bins] of the confidence:
    bin_count, bin_confidence, bin_accuracy. A prediction is right if it is among the labels, and the likelihood is the
    labels' summed probability: that the class is one of them. With one label this is the usual one.
    """
    logits = jnp.where(classes > 0, logits.astype(jnp.float32), -jnp.inf)
    hits = labels if labels.ndim == 2 else jax.nn.one_hot(labels, logits.shape[-1])
    hits = (hits > 0) & (classes > 0)
    log_probabilities = jax.nn.log_softmax(logits)
    _, best = lax.top_k(logits, min(5, logits.shape[-1]))
    right = jnp.take_along_axis(hits, best, axis=-1)
    likelihood = jax.nn.logsumexp(jnp.where(hits, log_probabilities, -jnp.inf), axis=-1)
    confidence = jnp.exp(log_probabilities.max(-1))
    # The bins are (0, 1/n], (1/n, 2/n], ..., as in the paper.
    number = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    in_bin = jax.nn.one_hot(number, bins) * mask[:, None]
    return {
        "count": mask.sum(),
        "accuracy": (right[:, 0] * mask).sum(),
        "accuracy_top5": (right.any(-1) * mask).sum(),
        "negative_log_likelihood": -jnp.where(mask > 0, likelihood, 0.0).sum(),  # padding's may be infinite
        "bin_count": in_bin.sum(0),
        # Not as matrix products, which a TPU would take in bfloat16.
        "bin_confidence": (confidence[:, None] * in_bin).sum(0),
        "bin_accuracy": (right[:, :1] * in_bin).sum(0),
    }


def finish(sums: Mapping[str, np.ndarray]) -> Measures:
    """The sums of all batches -> count (images), accuracy, accuracy_top5, negative_log_likelihood (nats, a mean) and
    expected_calibration_error.

    The last is the mean over the images of |accuracy - mean confidence| of the image's bin (Guo et al. 2017, On
    Calibration of Modern Neural Networks, equation 3), in 0..1. Raises ValueError where no image was counted.
    """
    count = float(sums["count"])
    if not count > 0:
        raise ValueError("No image was counted: none has a label.")
    gaps = np.abs(sums["bin_accuracy"] - sums["bin_confidence"])  # each times the bin's share of the images
    means = ("accuracy", "accuracy_top5", "negative_log_likelihood")
    return {name: float(sums[name]) / count for name in means} | {
        "expected_calibration_error": float(gaps.sum()) / count,
        "count": round(count),
    }


def measure_step(
    params: Any,
    batch: Batch,
    classes: jax.Array,
    *,
    model: nn.Module,
    experiment: Experiment,
    axis_name: str = AXIS,
) -> dict[str, jax.Array]:
    """A device's share of a batch, classes [K] -> `sums_of_batch` of the whole batch, equal on all devices."""
    logits = model.apply({"params": params}, normalize(batch["image"], experiment), train=False)
    labels = batch["labels"] if "labels" in batch else batch["label"]
    return lax.psum(sums_of_batch(logits, labels, batch["mask"], classes), axis_name)


def make_measure_step(
    experiment: Experiment, model: nn.Module, *, devices: Sequence[jax.Device] | None = None
) -> Callable[[Any, Batch, np.ndarray], dict[str, jax.Array]]:
    """`measure_step` over the devices (all of them unless given); params and batch have a leading axis [devices]."""
    model = for_platform(model, devices or jax.devices())
    step = functools.partial(measure_step, model=model, experiment=experiment)
    return over_devices(step, devices=devices, in_axes=(0, 0, None))


def measure(
    step: Callable[[Any, Batch, np.ndarray], dict[str, jax.Array]],
    weights: Mapping[str, Any],
    batches: Iterable[Batch],
    classes: np.ndarray,
    prefetch_batches: int,
) -> dict[str, Measures]:
    """Replicated weights by name, batches [local devices, ...], classes [K] -> by name what `finish` gives.

    The batches are read once for all weights; sums are kept in float64, one batch behind the devices.
    """
    totals: dict[str, dict[str, Any]] = {}
    for results in _one_behind(
        {name: step(params, batch, classes) for name, params in weights.items()}
        for batch in prefetch(iter(batches), prefetch_batches)
    ):
        for name, sums in metrics.to_host(results).items():
            sums = {key: np.asarray(value, np.float64) for key, value in sums.items()}
            before = totals.get(name)
            totals[name] = sums if before is None else {key: before[key] + sums[key] for key in sums}
    if not totals:
        raise ValueError("There is no batch to evaluate.")
    return {name: finish(sums) for name, sums in totals.items()}


def _one_behind(results: Iterator[Any]) -> Iterator[Any]:
    """The same, each after the next was dispatched."""
    waiting = None
    for result in results:
        if waiting is not None:
            yield waiting
        waiting = result
    if waiting is not None:
        yield waiting
