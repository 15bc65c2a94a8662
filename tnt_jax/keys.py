"""Groups of configuration keys as dataclasses: one field per key, with type and limits, checked on construction."""

import dataclasses
import functools
import math
import operator
import types
import typing
from collections.abc import Iterator
from typing import Any, ClassVar

INT32 = 2**31 - 1  # largest integer on the devices
ALWAYS = object()  # the `before` of a key that every run has written


@dataclasses.dataclass(frozen=True)
class Key:
    """What a key accepts besides its type: limits of a number (or of each in a tuple), or choices of a string."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf  # the bound itself is excluded
    below: float = math.inf  # likewise
    choices: tuple[Any, ...] = ()
    # A resumed run may change it: the final weights do not depend on it (up to rounding, for keys of the model and the
    # devices), or it controls how to continue after a step that was not finite.
    resumable: bool = False
    # An evaluation of the run may use another value: it affects only training, or only the precision of computing.
    evaluates_otherwise: bool = False
    # The value with which an older run, which lacks the key, resumes; never changes. Every new key needs one.
    before: Any = ALWAYS

    def admits(self, value: float) -> bool:
        """Whether the number is within the limits. Every number has a `high` or `below`, so infinity never is."""
        return self.low <= value <= self.high and self.above < value < self.below

    def limits(self) -> str:
        """Returns the limits in words."""
        words = {"at least": self.low, "at most": self.high, "greater than": self.above, "less than": self.below}
        return " and ".join(
            f"{word} {bound:g}" if bound == float(f"{bound:g}") else f"{word} {bound:,}"
            for word, bound in words.items()
            if math.isfinite(bound)
        )


def key(low: float = -math.inf, high: float = math.inf, **more: Any) -> Any:
    """Returns a group's field with its `Key`."""
    return dataclasses.field(metadata={"key": Key(low, high, **more)})


@dataclasses.dataclass(frozen=True)
class Group:
    """Base class of the groups. Construction raises ValueError with the key, its value and what is accepted."""

    prefix: ClassVar[str] = ""  # of its keys' names, such as "model."

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not dataclasses.is_dataclass(field.type):
                value = _typed(self.prefix + field.name, getattr(self, field.name), field.type, key_of(field))
                object.__setattr__(self, field.name, value)


def key_of(field: dataclasses.Field) -> Key:
    """Returns the `Key` of a group's field."""
    return field.metadata.get("key", Key())


def keys_of(group: type[Group]) -> Iterator[tuple[str, Key]]:
    """Yields (dotted name, Key) for every key of a group and the groups in it."""
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(field.type):
            yield from keys_of(field.type)
        else:
            yield group.prefix + field.name, key_of(field)


def without_none(kind: Any) -> Any:
    """A field's type -> the same without "or None"."""
    if isinstance(kind, types.UnionType):
        return functools.reduce(operator.or_, (each for each in typing.get_args(kind) if each is not types.NoneType))
    return kind


def short_repr(value: object) -> str:
    """Returns a value's repr for an error message, shortened if long. Python refuses to print very long integers."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{'-' * (value < 0)}2**{value.bit_length() - 1} or more"
    text = repr(value)
    if isinstance(value, (tuple, list)):
        text = f"({', '.join(map(short_repr, value))}{',' * (len(value) == 1)})"
    return text if len(text) <= 200 else f"{text[:150]}... ({len(text)} characters)"


def _typed(name: str, value: Any, wanted: Any, key: Key) -> Any:
    """Returns the value as the annotated type. Raises ValueError outside the key's type, limits and choices."""
    if value is None and wanted != without_none(wanted):
        return None
    wanted = without_none(wanted)
    if isinstance(wanted, types.UnionType):  # one number, or a tuple of them
        single, several = typing.get_args(wanted)
        wanted = several if isinstance(value, (tuple, list)) else single
        if isinstance(value, str):
            raise ValueError(f"config.{name}={short_repr(value)}: must be a number, or a tuple such as (96, 160).")
    if typing.get_origin(wanted) is tuple:
        return _typed_tuple(name, value, typing.get_args(wanted), key)
    accepted = (int, float) if wanted is float else wanted  # an int is accepted as a float
    if not isinstance(value, accepted) or (wanted is not bool and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}[wanted]
        raise ValueError(f"config.{name}={short_repr(value)}: must be {words}.")
    if wanted is str and not value.isprintable():  # no path, address or name can hold these
        raise ValueError(f"config.{name}={short_repr(value)}: must contain only printable characters.")
    if wanted in (int, float) and not key.admits(value):
        raise ValueError(f"config.{name}={short_repr(value)}: must be {key.limits()}.")
    if key.choices and value not in key.choices:
        raise ValueError(f"config.{name}={short_repr(value)}: must be one of {', '.join(map(str, key.choices))}.")
    return float(value) if wanted is float else value


def _typed_tuple(name: str, value: Any, items: tuple[Any, ...], key: Key) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"config.{name}={short_repr(value)}: must be a tuple, such as (1, 2).")
    is_range = items == (float, float)
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(value) != len(items):
        raise ValueError(f"config.{name}={short_repr(value)}: must hold {len(items)} numbers.")
    found = tuple(_typed(name, item, kind, key) for item, kind in zip(value, items, strict=True))
    if is_range and found[0] > found[1]:
        raise ValueError(f"config.{name}={found}: the first number must be the smaller; swap them.")
    return found
