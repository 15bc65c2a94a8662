"""Reads the configuration that a run, even of an older version, left in its workdir, and compares configurations."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections.config_dict import placeholder

from tnt_jax.keys import ALWAYS, without_none
from tnt_jax.models.variants import KERNELS
from tnt_jax.training.config import KEYS, Config, check_config, unknown_key_message
from tnt_jax.workdir import CONFIG_FILE, read_config, warn_once

# Keys that the first version did not have -> the value with which a run without them resumes, whatever the default in
# configs/default.py is now.
BEFORE = {name: key.before for name, key in KEYS.items() if key.before is not ALWAYS}
ALONE = {"enabled": False, "coordinator_address": "", "num_processes": 0, "process_id": -1}


def saved_config(workdir: Path, evaluates: bool) -> ml_collections.ConfigDict:
    """WORKDIR/config.json -> the configuration that it was written from, with the same types.

    evaluates: makes it usable on any machine and in one process, even if several processes or a TPU kernel trained the
    run. Raises ValueError that names the file if it is missing or not a valid configuration.
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
    """Reads WORKDIR/config.json in the form that `check_config` takes; None if there is none.

    Keys added after the run get their values from `BEFORE`, with a warning. Raises ValueError that names the file for
    unknown keys, and for missing keys that every run has written.
    """
    values = read_config(workdir)
    if values is None:
        return None
    path = workdir / CONFIG_FILE
    found = flatten_dict(values, sep=".")
    unknown = [name for name in found if name not in KEYS]
    if unknown:
        raise ValueError(
            f"{path} was written by another version of this project. {' '.join(map(unknown_key_message, unknown))} "
            "Rename or remove the unknown keys in that file."
        )
    absent = [name for name in KEYS if name not in found]
    if lost := [name for name in absent if name not in BEFORE]:
        raise ValueError(
            f"{path} lacks {', '.join(lost)}, which every run has written. Add the run's values to that file."
        )
    if absent:
        filled = ", ".join(f"{name}={BEFORE[name]!r}" for name in absent)
        warn_once(f"{path} lacks keys that were added later; the run resumes with: {filled}")
    return unflatten_dict(found | {name: BEFORE[name] for name in absent}, sep=".")


def _config_dict(kind: type, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Plain values -> a ConfigDict whose keys have the types of configs/default.py."""
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


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Two plain configurations -> (dotted key, old, new value) of differing keys that a resumed run may not change."""
    old, new = flatten_dict(before, sep="."), flatten_dict(now, sep=".")
    return [
        (name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not (name in KEYS and KEYS[name].resumable)
    ]
