"""Workdirs as people change them: any name and any config.json works or is refused by the program's own message."""

import collections
import json
import pathlib
import shutil

import hypothesis.strategies as some
from hypothesis import HealthCheck, given, seed, settings

from tests.training.helpers import checked_config, resolved
from tnt_jax.tools import command_line
from tnt_jax.training import setup
from tnt_jax.training.config import as_dict, check_config

NAMES = some.one_of(
    some.text(max_size=300),
    some.text("ab/.~[]*?\\ \n\x1b\udcff漢", max_size=40),
    some.text("a漢", min_size=80, max_size=300),
)
VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


def check_names(folder: pathlib.Path, examples: int, number: int | None = None) -> collections.Counter[str]:
    """Checks that a workdir name is accepted and usable, or refused with nothing written -> how many of each."""
    found: collections.Counter[str] = collections.Counter()

    def works(name: str) -> None:
        inside = f"{folder}/{name.lstrip('~/')}" if not name.startswith("~") else name
        try:
            path = setup.check_workdir(inside)
        except (ValueError, PermissionError) as error:
            assert str(error).startswith("--workdir"), f"{name!r}: {error}"
            assert not any(folder.iterdir()), f"{name!r} was refused after something was written"
            found["refused"] += 1
            return
        if path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve():
            path.mkdir(parents=True, exist_ok=True)
            (path / "file").write_text("x")
            for left in folder.iterdir():
                shutil.rmtree(left)
        found["accepted"] += 1

    _given(works, NAMES, examples, number)
    return found


def check_configs(folder: pathlib.Path, examples: int, number: int | None = None) -> collections.Counter[str]:
    """Reads config.json with a key changed, removed or added, with bytes changed, or any JSON -> how many of each."""
    found: collections.Counter[str] = collections.Counter()
    whole = as_dict(resolved(checked_config(), 4))
    text = json.dumps(whole, indent=2).encode()
    keys = [key for key in whole if not isinstance(whole[key], dict)]
    keys += [f"{group}.{key}" for group in whole if isinstance(whole[group], dict) for key in (*whole[group], "new")]

    @some.composite
    def contents(draw) -> bytes:
        kind = draw(some.sampled_from(("value", "removed", "bytes", "any")))
        if kind == "any":
            return json.dumps(draw(VALUES)).encode()
        if kind == "bytes":
            damaged = bytearray(text)
            for place in draw(some.lists(some.integers(0, len(text) - 1), min_size=1, max_size=3)):
                damaged[place] = draw(some.integers(0, 255))
            return bytes(damaged[: draw(some.integers(1, len(text)))] if draw(some.booleans()) else damaged)
        config = json.loads(text)
        *groups, leaf = draw(some.sampled_from(keys + list(whole))).split(".")
        group = config[groups[0]] if groups else config
        group.pop(leaf, None)
        if kind == "value":
            group[leaf] = draw(VALUES)
        return json.dumps(config).encode()

    def is_read(content: bytes) -> None:
        path = folder / "config.json"
        path.write_bytes(content)
        try:
            check_config(command_line.run_config(folder))
            found["accepted"] += 1
        except ValueError as error:
            assert str(path) in str(error), f"{content[:200]!r}: {error}"
            found["refused"] += 1

    _given(is_read, contents(), examples, number)
    return found


def _given(check, strategy, examples: int, number: int | None) -> None:
    options = settings(
        max_examples=examples,
        derandomize=number is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    check = options(given(strategy)(check))
    (seed(number)(check) if number is not None else check)()
