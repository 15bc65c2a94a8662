"""Readable class names: ImageNet's data sets name their classes by WordNet numbers."""

import functools
import re
from collections.abc import Sequence

_WORDNET = re.compile(r"n\d{8}")


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """-> ImageNet's 1,000 class names in the order of its labels, shortened to the first of several synonyms.

    They come from tfds' SI-Score data set. Where two classes would have the same name (crane, maillot, ...), both keep
    all their synonyms.
    """
    from tensorflow_datasets.datasets.siscore import labels

    full = [" ".join(name.split()) for name in labels.IMAGENET_LABELS_LIST]
    short = [name.split(",")[0] for name in full]
    return tuple(brief if short.count(brief) == 1 else name for brief, name in zip(short, full, strict=True))


@functools.cache
def imagenet_numbers() -> tuple[str, ...]:
    """-> ImageNet's 1,000 WordNet numbers ("n01440764", ...) in the order of tfds' imagenet2012 labels."""
    import tensorflow_datasets as tfds

    return tuple(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())


def readable(names: Sequence[str]) -> tuple[str, ...]:
    """Class names of a data set -> the same, with ImageNet's names in place of WordNet numbers."""
    if not any(_WORDNET.fullmatch(name) for name in names):
        return tuple(names)
    known = dict(zip(imagenet_numbers(), imagenet_names(), strict=True))
    return tuple(known.get(name, name) for name in names)
