"""The configuration that a run left in its workdir, also of a version of this project with fewer keys.

It is a config file as well: --config=tnt_jax/training/recorded.py:WORKDIR, which the programs that take a run add by
themselves, is the run's configuration, and --config.KEY=VALUE changes it.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from absl import logging
from ml_collections.config_dict import placeholder

from tnt_jax.training.config import DistributedSettings, Experiment, accepted_keys, check_config, unknown_key_message
from tnt_jax.workdir import CONFIG_FILE, read_config

# Keys that the first version did not have -> the value that a run without them goes on with, whatever
# configs/default.py says today. A new key needs a line here (tests/training/test_recorded.py).
BEFORE: dict[str, Any] = {
    "ema_warmup": False,
    "pretrained_weights": "best",
    "nonfinite": "stop",
    "nonfinite_limit": 10,
    "slow_step_factor": 10.0,
    "cpu_devices": 0,
    "scan_tile_kib": -1,
    "report_card": [],
    "profile_steps": [],
    "model.inner_implementation": "auto",
    "model.remat_keeps": "inputs",
    "data.on_device": False,
    "data.exif_orientation": False,
    "data.worker_processes": -1,
    "data.max_faulty_images": 10,
    "data.allow_faulty_eval": False,
    "distributed.initialization_timeout_seconds": 300,
    "distributed.heartbeat_timeout_seconds": 100,
}

EVALUATE = "evaluate:"  # before the workdir: the configuration to evaluate by
ALONE = DistributedSettings(
    enabled=False,
    coordinator_address="",
    num_processes=0,
    process_id=-1,
    initialization_timeout_seconds=BEFORE["distributed.initialization_timeout_seconds"],
    heartbeat_timeout_seconds=BEFORE["distributed.heartbeat_timeout_seconds"],
)


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """What ml_collections calls for --config=recorded.py:WORKDIR, or recorded.py:evaluate:WORKDIR."""
    from tnt_jax.training import recorded  # for it loads this file under another name

    return recorded.saved_config(Path(workdir.removeprefix(EVALUATE)), evaluates=workdir.startswith(EVALUATE))


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
        values["distributed"] |= dataclasses.asdict(ALONE)
        if values["model"]["inner_implementation"] == "pallas":
            values["model"]["inner_implementation"] = "auto"
    return _typed(Experiment, values)


def read_run_config(workdir: Path) -> dict[str, Any] | None:
    """WORKDIR/config.json, as `check_config` takes it; None where there is none.

    A key that came after the run gets the value of `BEFORE`, which a warning says. Raises ValueError that names the
    file for keys that do not exist, and for missing ones that every run has written.
    """
    values = read_config(workdir)
    if values is None:
        return None
    path, accepted = workdir / CONFIG_FILE, accepted_keys()
    found = dict(leaves(values, ""))
    unknown = [key for key in found if key not in accepted]
    if unknown:
        raise ValueError(
            f"{path} is of another version of this project. {' '.join(map(unknown_key_message, unknown))} "
            "Rename or remove what is unknown in that file."
        )
    absent = tuple(key for key in accepted if key not in found)
    if absent:
        lost = [key for key in absent if key not in BEFORE]
        if lost:
            raise ValueError(
                f"{path} lacks {', '.join(lost)}, which every run has written. Write what the run had into that file."
            )
        filled = {key: BEFORE[key] for key in absent}
        for key, value in filled.items():
            *groups, leaf = key.split(".")
            functools.reduce(lambda group, name: group.setdefault(name, {}), groups, values)[leaf] = value
        _say_once(path, ", ".join(f"{key}={value!r}" for key, value in filled.items()))
    return values


@functools.cache  # a configuration is read several times on the way to an evaluation
def _say_once(path: Path, filled: str) -> None:
    logging.warning("%s lacks keys that came later, and goes on as it began: %s", path, filled)


def _typed(kind: type, values: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Plain values -> a ConfigDict whose keys have the types that configs/default.py gives them."""
    config = ml_collections.ConfigDict()
    for field in dataclasses.fields(kind):
        value, wanted = values[field.name], field.type
        if dataclasses.is_dataclass(wanted):
            config[field.name] = _typed(wanted, value)
            continue
        if isinstance(wanted, types.UnionType):
            wanted = next(each for each in typing.get_args(wanted) if each is not types.NoneType)
        plain = typing.get_origin(wanted) or wanted
        if value is None:
            config[field.name] = placeholder(plain)
        else:
            config[field.name] = plain(value)
    return config


def leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Nested dicts -> (dotted key, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
