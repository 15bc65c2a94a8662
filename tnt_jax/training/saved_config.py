"""The configuration that a run left in its workdir, also of a version with fewer keys, and what may differ from it."""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections.config_dict import placeholder

from tnt_jax.keys import ALWAYS, without_none
from tnt_jax.models.variants import KERNELS
from tnt_jax.training.config import KEYS, Config, check_config, unknown_key_message
from tnt_jax.workdir import CONFIG_FILE, read_config, warn_once

# Keys that the first version did not have -> the value that a run without them resumes with, whatever
# configs/default.py says today.
BEFORE = {name: key.before for name, key in KEYS.items() if key.before is not ALWAYS}
ALONE = {"enabled": False, "coordinator_address": "", "num_processes": 0, "process_id": -1} | {
    name.removeprefix("distributed."): value for name, value in BEFORE.items() if name.startswith("distributed.")
}


def saved_config(workdir: Path, evaluates: bool) -> ml_collections.ConfigDict:
    """WORKDIR/config.json -> the configuration that it was written from, of the same types.

    evaluates: on any machine, and by one process, what several processes or a TPU's kernel have trained. Raises
    ValueError that names the file where there is none, and where it holds what no configuration has.
    """
    values = read_run_config(workdir)
    if values is None:
        raise ValueError(f"{workdir} holds no {CONFIG_FILE}: it is not the workdir of a run.")
    try:
        check_config(values)
    except ValueError as error:
        raise ValueError(f"{workdir / CONFIG_FILE}: {error}") from error
    if evaluates:
        values["distributed"] |= ALONE
        for name, kernels in KERNELS.items():
            if values["model"][name] in kernels:
                values["model"][name] = "auto"
    return _config_dict(Config, values)


def read_run_config(workdir: Path) -> dict[str, Any] | None:
    """WORKDIR/config.json, as `check_config` takes it; None where there is none.

    A key that came after the run gets the value of `BEFORE`, which a warning says. Raises ValueError that names the
    file for keys that do not exist, and for missing ones that every run has written.
    """
    values = read_config(workdir)
    if values is None:
        return None
    path = workdir / CONFIG_FILE
    found = dict(leaves(values))
    unknown = [name for name in found if name not in KEYS]
    if unknown:
        raise ValueError(
            f"{path} is of another version of this project. {' '.join(map(unknown_key_message, unknown))} "
            "Rename or remove what is unknown in that file."
        )
    absent = [name for name in KEYS if name not in found]
    if lost := [name for name in absent if name not in BEFORE]:
        raise ValueError(
            f"{path} lacks {', '.join(lost)}, which every run has written. Write what the run had into that file."
        )
    for name in absent:
        *groups, leaf = name.split(".")
        functools.reduce(lambda group, each: group.setdefault(each, {}), groups, values)[leaf] = BEFORE[name]
    if absent:
        filled = ", ".join(f"{name}={BEFORE[name]!r}" for name in absent)
        warn_once(f"{path} lacks keys that came later, and resumes as it began: {filled}")
    return values


def _config_dict(kind: type, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Plain values -> a ConfigDict whose keys have the types that configs/default.py gives them."""
    config = ml_collections.ConfigDict()
    for field in dataclasses.fields(kind):
        value, wanted = values[field.name], without_none(field.type)
        plain = typing.get_origin(wanted) or wanted
        if isinstance(wanted, types.UnionType):  # a number or a tuple
            config[field.name] = ml_collections.FieldReference(value, field_type=object)
            continue
        if dataclasses.is_dataclass(wanted):
            config[field.name] = _config_dict(wanted, value)
        else:
            config[field.name] = placeholder(plain) if value is None else plain(value)
    return config


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested dicts -> (dotted key, value)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Two plain configurations -> (dotted key, old value, new value) where they differ in what a run may not change."""
    old, new = dict(leaves(before)), dict(leaves(now))
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not (name in KEYS and KEYS[name].resumable)
    ]
