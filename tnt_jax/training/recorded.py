"""The configuration that a run left in its workdir, also of a version of this project with fewer keys."""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from tnt_jax.training.config import accepted_keys, unknown_key_message
from tnt_jax.workdir import CONFIG_FILE, read_config

# Keys that the first version did not have -> the value that a run without them goes on with, whatever
# configs/default.py says today. A new key needs a line here (tests/training/test_recorded.py).
BEFORE: dict[str, Any] = {
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
    "data.max_faulty_images": 10,
    "data.allow_faulty_eval": False,
    "distributed.initialization_timeout_seconds": 300,
    "distributed.heartbeat_timeout_seconds": 100,
}


def read_run_config(workdir: Path) -> dict[str, Any] | None:
    """WORKDIR/config.json, as `check_config` takes it; None where there is none.

    A key that came after the run gets the value of `BEFORE`, which a warning says. Raises ValueError that names the
    file for keys that do not exist, and for missing ones that every run has written.
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


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Nested dicts -> (dotted key, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
