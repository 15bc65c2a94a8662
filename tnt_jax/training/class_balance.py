"""Unbalanced classes: class weights in the loss, and a note if class sizes differ widely."""

import numpy as np

from tnt_jax.names import printable
from tnt_jax.training.config import Config, named_class_weights
from tnt_jax.training.input_pipeline import InputPipeline
from tnt_jax.training.starting_point import listed, normalised

MOST_NAMED = 10  # weights in a log line
UNBALANCED = 10  # a note is logged if the largest class is more than this many times the smallest


def class_labels(pipeline: InputPipeline) -> tuple[str, ...]:
    """Returns the names of the data set's classes, or their numbers if it has none."""
    return normalised(pipeline.class_names) or tuple(map(str, range(pipeline.num_classes)))


def make_class_weights(config: Config, pipeline: InputPipeline, num_classes: int) -> np.ndarray | None:
    """Returns float32 [num_classes], the weight of each of the model's classes; None for config.class_weights="none".

    "balanced" is scikit-learn's n / (K * n_k): n labels in the training split, n_k of them of class k, K classes
    present. An absent class has weight 1, which multiplies nothing. Raises ValueError for names that are not classes of
    the data set, and for classes without a number.
    """
    if config.class_weights == "none":
        return None
    weights = np.ones(num_classes, np.float32)
    if config.class_weights == "balanced":
        counts = pipeline.class_counts
        there = np.flatnonzero(counts)
        weights[there] = counts.sum() / (len(there) * counts[there])
        return weights
    names = class_labels(pipeline)
    given = dict(zip(normalised(tuple(named := named_class_weights(config))), named.values(), strict=True))
    if unknown := [name for name in given if name not in names]:
        raise ValueError(
            f"config.class_weights names {listed(unknown)}, but {config.data.name} has the classes {listed(names)}."
        )
    if missing := [name for name in names if name not in given]:
        raise ValueError(f"config.class_weights has no number for {listed(missing)}: it needs one for every class.")
    weights[: len(names)] = [given[name] for name in names]
    return weights


def check_threshold(config: Config, num_classes: int, several_labels: bool) -> None:
    """Raises ValueError if label_smoothing and bce_threshold make all targets of unmixed images 1, or all of them 0."""
    threshold, smoothing = config.bce_threshold, config.label_smoothing
    off = smoothing / (2 if several_labels else num_classes)
    on = 1 - smoothing + off
    if threshold is None or off <= threshold < on:
        return
    side, kind, all_of = ("below", "absent", 1) if threshold < off else ("not below", "present", 0)
    at = off if threshold < off else on
    raise ValueError(
        f"config.bce_threshold={threshold:g} is {side} {at:g}, the target that config.label_smoothing={smoothing:g} "
        f"gives a class that is {kind}: all would count as {all_of}. Set --config.label_smoothing=0."
    )


def balance_lines(config: Config, pipeline: InputPipeline, weights: np.ndarray | None) -> list[str]:
    """Returns log lines for the start of a run: the weights, or a note on unbalanced classes if sizes are at hand."""
    names = class_labels(pipeline)
    if weights is not None:
        words = [f"{printable(name)} {weight:.4g}" for name, weight in zip(names, weights, strict=False)]
        more = f" and {len(words) - MOST_NAMED} more" if len(words) > MOST_NAMED else ""
        return [f"Class weights: {', '.join(words[:MOST_NAMED])}{more}"]
    if not pipeline.labels_at_hand:
        return []
    counts = pipeline.class_counts
    there = np.flatnonzero(counts)
    if not there.size:  # a slice of a multi-label split in which no image has a label
        return []
    least, most = (int(there[arg(counts[there])]) for arg in (np.argmin, np.argmax))
    if counts[most] <= UNBALANCED * counts[least]:
        return []
    return [
        f"Note: classes are unbalanced by more than {UNBALANCED} to 1: {printable(names[most])} has {counts[most]:,} "
        f"training images, {printable(names[least])} {counts[least]:,}. --config.class_weights=balanced weights the "
        "loss; balanced accuracy, in every evaluation, counts all classes equally."
    ]
