"""NumPy arrays that the Python functions of a TensorFlow graph write into.

A graph hands images over as tensors, in memory that is new each time and copied into a batch at the end. Here the batch
exists first, and a graph gets its number, as a tensor can carry no array.
"""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np

_numbers = itertools.count()  # each process's own; next() is atomic
_lent: dict[int, np.ndarray] = {}


@contextlib.contextmanager
def lend(array: np.ndarray) -> Iterator[int]:
    """A number by which `borrowed` finds the array, while the context lasts."""
    number = next(_numbers)
    _lent[number] = array
    try:
        yield number
    finally:
        del _lent[number]


def borrowed(number: int) -> np.ndarray:
    """The array that is lent under the number. KeyError: it is not lent, or no longer."""
    return _lent[number]
