"""Pixel loops compiled to machine code by Numba.

A compiled function works on NumPy arrays, lets other threads run meanwhile (it does not hold Python's lock), and is
kept on disk: the first process on a machine compiles for some seconds, later ones load.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numba


def compiled(function: Callable) -> Callable:
    """Decorator: a function in the part of Python and NumPy that Numba knows -> the compiled one.

    Compiled for its arguments' types at its first call, by one thread at a time.
    """
    return _compiled(function, nogil=True)


def quick(function: Callable) -> Callable:
    """As `compiled`, for what takes microseconds: keeps Python's lock, since waiting to get it back takes longer."""
    return _compiled(function, nogil=False)


def inlined(function: Callable) -> Callable:
    """Decorator: a function that becomes a part of the compiled functions that call it."""
    return numba.njit(nogil=True, error_model="numpy", inline="always")(function)


def _compiled(function: Callable, nogil: bool) -> Callable:
    # Numba names what it keeps by this, and compiles anew only where the function's own file has changed. But functions
    # take constants and functions of other files in: what is kept must go by the text of all of them.
    function.__qualname__ += f"-{_digest()}"
    try:
        return numba.njit(nogil=nogil, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written: compiled anew in each process
        return numba.njit(nogil=nogil, error_model="numpy")(function)


@functools.cache
def _digest() -> str:
    """Of the text of all files here that have compiled functions."""
    texts = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    compiled_ones = (text for text in texts if b"tnt_jax.data.compiled import" in text)
    return hashlib.sha256(b"".join(compiled_ones)).hexdigest()[:16]
