"""A config with a few keys changed either trains a step or is refused by the program's own message before that."""

import dataclasses
import functools
import pathlib
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.fuzz.values import Changes
from tests.training.helpers import tiny_config
from tnt_jax.training import loop, setup

ROOT = pathlib.Path(__file__).parents[2]
REFUSALS = (ValueError, FileNotFoundError, PermissionError)  # what main.py reports without a traceback
NOT_FINITE = "not finite"  # part of the message of monitor.describe_nonfinite


@contextmanager
def place() -> Iterator[pathlib.Path]:
    """Makes a working directory with what the values name: "folder" (JPEGs), "digits", odd weights, an empty folder."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tnt_jax_fuzz_"))
    draw = np.random.default_rng(0)
    for split, count in {"train": 12, "test": 4}.items():
        for name in ("cats", "dogs"):
            (folder / "folder" / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (*draw.integers(1, 40, 2), 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "folder" / split / name / f"{number}.jpg")
    for name in ("digits", "empty"):
        (folder / name).mkdir()
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "broken.pth").write_bytes(b"broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # for the indices over TFRecord files
        patch.chdir(folder)
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


def changed(base: str, changes: Changes) -> dict[str, Any]:
    """Returns one of values.BASES with keys changed, as plain dicts: a ConfigDict would refuse some values itself."""
    config = tiny_config(batch_size=8, eval_batch_size=8).to_dict()
    config["data"] |= {"repeated_augmentation": 1, "synthetic_examples": 32, "eval_split": "test[:12]"}
    config["data"] |= {"randaugment": ""}  # tracing RandAugment takes 10 s; as a changed key it is drawn now and then
    config["data"] |= {"name": base, "directory": base, "train_split": "train[:32]"}
    if base == "folder":
        config["data"] |= {"train_split": "train", "eval_split": "test", "repeated_augmentation": 2}
    if base == "device":
        config["data"] |= {"name": "digits", "directory": "digits", "on_device": True}
        config["data"]["color_jitter"] = 0.0
    for key, value in changes.items():
        *groups, leaf = key.split(".")
        functools.reduce(dict.__getitem__, groups, config)[leaf] = value
    return config


def writes_elsewhere(config: dict[str, Any]) -> bool:
    """Returns whether a data set would be prepared outside the working directory."""
    data = config["data"]
    names = [data[key] if isinstance(data[key], str) else None for key in ("name", "directory")]
    return names == ["digits", ""]


def prepare(base: str, changes: Changes, workdir: pathlib.Path) -> setup.Run | None:
    """Returns the run, or None if it is refused as it should be. Raises AssertionError for any other exception."""
    config = changed(base, changes)
    try:
        return setup.prepare(config, workdir)
    except REFUSALS as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{base}, {changes}: {type(error).__name__} in {last.filename}:{last.lineno}: {str(error)[:500]}"
        inside = pathlib.Path(last.filename).is_relative_to(ROOT) and ".venv" not in last.filename
        assert inside, f"not the program's own message: {told}"
        named = not isinstance(error, ValueError) or any(_named(key, str(error)) for key in changes)
        assert named, f"none of the changed keys is named: {told}"  # other errors name the path
        assert not workdir.exists(), f"something was written before the refusal: {told}"
        return None
    except Exception as error:
        raise AssertionError(f"{base}, {changes}: {type(error).__name__}: {str(error)[:500]}") from error


def _named(key: str, message: str) -> bool:
    """Returns whether a message names the key; plain words such as "name" or "mean" need their group or a "="."""
    leaf = key.rpartition(".")[2]
    return key in message or ("_" in leaf and leaf in message) or f"{leaf}=" in message


def train(run: setup.Run, told: str) -> dict[str, Any] | None:
    """Trains one step, evaluates and saves -> the summary; None if the step was reported as not finite."""
    vars(run)["plan"] = dataclasses.replace(run.plan, total_steps=1)  # replaces its functools.cached_property
    try:
        return loop.train(run)
    except loop.RunError as error:
        assert NOT_FINITE in str(error), f"{told}: {error}"
        return None
    except Exception as error:
        raise AssertionError(f"{told}: {type(error).__name__}: {str(error)[:500]}") from error
    finally:
        shutil.rmtree(run.workdir, ignore_errors=True)
