"""The configuration that a run left in its workdir, also of a version of this project with fewer keys."""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from tnt_jax.training.config import accepted_keys, unknown_key_message
from tnt_jax.workdir import CONFIG_FILE, read_config


def read_run_config(workdir: Path) -> dict[str, Any] | None:
    """WORKDIR/config.json, as `check_config` takes it; None where there is none.

    A key that came after the run gets the value of configs/default.py, which a warning says. Raises ValueError that
    names the file for keys that do not exist.
    """
    values = read_config(workdir)
    if values is None:
        return None
    path, found, accepted = workdir / CONFIG_FILE, dict(_leaves(values, "")), accepted_keys()
    unknown = [key for key in found if key not in accepted]
    if unknown:
        raise ValueError(
            f"{path} is of another version of this project. {' '.join(map(unknown_key_message, unknown))} "
            "Rename or remove what is unknown in that file."
        )
    absent = tuple(key for key in accepted if key not in found)
    if absent:
        from configs import default  # beside the package, and needed for old runs alone

        defaults = json.loads(json.dumps(default.get_config().to_dict()))  # tuples as lists, as in the file
        filled = {key: _take(defaults, key) for key in absent}
        for key, value in filled.items():
            *groups, leaf = key.split(".")
            functools.reduce(lambda group, name: group.setdefault(name, {}), groups, values)[leaf] = value
        _say_once(path, ", ".join(f"{key}={value!r}" for key, value in filled.items()))
    return values


@functools.cache  # a configuration is read several times on the way to an evaluation
def _say_once(path: Path, filled: str) -> None:
    logging.warning("%s lacks keys that came later; as in configs/default.py: %s", path, filled)


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Nested dicts -> (dotted key, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _take(values: Mapping[str, Any], key: str) -> Any:
    """The value under a dotted key."""
    return functools.reduce(lambda group, name: group[name], key.split("."), values)
