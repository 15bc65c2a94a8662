"""`synthetic`: images made from their number alone, at the network's size, to measure training without its input."""

import functools

import numpy as np

from tnt_jax.data import order

NUM_CLASSES = 1000
_WINDOWS = 1 << 16  # different images


class SyntheticSource:
    """Examples by number; unlike those of other sources they come at the network's size, as `examples` makes them."""

    def __init__(self, name: str, num_examples: int):
        self.name, self._num_examples = name, num_examples

    def __len__(self) -> int:
        return self._num_examples

    def labels(self) -> np.ndarray:
        """int64 [n], those of `examples`."""
        return np.arange(self._num_examples) % NUM_CLASSES


def examples(index: np.ndarray, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """index int [n] -> images uint8 [n, H, W, 3] of uniform noise, labels int64 [n] in 0..999, evenly spread.

    An image depends on its number and the size alone: it is a window of one block of noise, so that it costs a copy.
    """
    height, width = image_size
    noise = _noise(height * width * 3 + _WINDOWS)
    images = np.empty((len(index), height * width * 3), np.uint8)
    for image, start in zip(images, order.mix64(index) % np.uint64(_WINDOWS), strict=True):
        image[:] = noise[int(start) : int(start) + len(image)]
    return images.reshape(-1, height, width, 3), index % NUM_CLASSES


@functools.lru_cache(maxsize=2)
def _noise(length: int) -> np.ndarray:
    return order.mix64(np.arange(length // 8 + 1)).view(np.uint8)[:length]
