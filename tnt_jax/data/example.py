"""One example of a data set as it is, for whoever wants to look at it."""

import numpy as np
import tensorflow as tf

from tnt_jax.data import augment, sources
from tnt_jax.data.settings import DataSettings


def read_example(settings: DataSettings, split: str, index: int) -> np.ndarray:
    """A data set, a split (tfds notation) and a number from 0 -> the image [h, w, 3] uint8 at its own size.

    Raises ValueError for a number or a split that is not there, and what opening the data set raises.
    """
    source = sources.open_source(settings)
    count = source.num_examples(split)
    if not 0 <= index < count:
        raise ValueError(f"{source.name} has no image {index} in {split!r}; they are numbered from 0 to {count - 1}")
    if settings.name == "synthetic":
        raise ValueError("the synthetic data set is noise; give an image file")
    examples = source.open_split(split)
    (record,) = examples.read([index])
    image, _ = examples.parse(tf.constant(record), tf.constant(index, tf.int64))
    return augment.decode(image).numpy()
