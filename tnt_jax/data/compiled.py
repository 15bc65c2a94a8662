"""Pixel loops compiled to machine code by Numba.

A compiled function works on NumPy arrays, lets other threads run meanwhile (it does not hold Python's lock), and is
kept on disk: the first process on a machine compiles for some seconds, later ones load. Numba notices a changed source
file by that file alone, so a compiled function must not call one of another file.
"""

from collections.abc import Callable

import numba


def compiled(function: Callable) -> Callable:
    """Decorator: a function in the part of Python and NumPy that Numba knows -> the compiled one.

    Compiled for its arguments' types at its first call, by one thread at a time.
    """
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written: compiled anew in each process
        return numba.njit(nogil=True, error_model="numpy")(function)


def inlined(function: Callable) -> Callable:
    """Decorator: a function that becomes a part of the compiled functions that call it, in its own file."""
    return numba.njit(nogil=True, error_model="numpy", inline="always")(function)
