"""`synthetic`: images computed from their number, at the network's size, to measure training without input costs."""

import functools

import numpy as np

from tnt_jax.data import order
from tnt_jax.data.decoding import RGB, Channels

NUM_CLASSES = 1000
_WINDOWS = 1 << 16  # number of different images


class SyntheticSource:
    """A synthetic split; unlike other sources it has no records: `examples` makes images at the network's size."""

    def __init__(self, name: str, num_examples: int):
        self.name, self._num_examples = name, num_examples

    def __len__(self) -> int:
        return self._num_examples

    def labels(self) -> np.ndarray:
        """Returns the labels that `examples` gives, int64 [n]."""
        return np.arange(self._num_examples) % NUM_CLASSES


def examples(index: np.ndarray, image_size: tuple[int, int], channels: Channels = RGB) -> tuple[np.ndarray, np.ndarray]:
    """index int [n] -> images [n, H, W, C] of uniform noise, labels int64 [n] in 0..999, evenly spread.

    Images are uint8 or uint16. An image depends only on its number and size: it is a window of one block of noise, so
    it costs only a copy.
    """
    height, width = image_size
    size = height * width * channels.count
    noise = _noise(size + _WINDOWS, channels.dtype)
    images = np.empty((len(index), size), channels.dtype)
    for image, start in zip(images, order.mix64(index) % np.uint64(_WINDOWS), strict=True):
        image[:] = noise[int(start) : int(start) + len(image)]
    return images.reshape(-1, height, width, channels.count), index % NUM_CLASSES


@functools.lru_cache(maxsize=2)
def _noise(length: int, dtype: type) -> np.ndarray:
    return order.mix64(np.arange(length // 4 + 1)).view(dtype)[:length]
