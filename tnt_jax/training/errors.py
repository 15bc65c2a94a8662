"""What ends a run that has begun."""

from collections.abc import Callable, Iterator
from typing import Any


class RunError(RuntimeError):
    """A run that was possible cannot go on; the message says why and what remains."""


def readable(make_batches: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """What `make_batches` gives; a damaged file or image, or a wrong label (the data wing names it), is a RunError."""
    try:
        yield from make_batches()
    except (ValueError, OSError) as error:
        raise RunError(f"The data cannot be read any further. {error}") from error
