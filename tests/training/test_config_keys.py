"""Every key of configs/default.py is read somewhere, and nothing reads a key that it does not have."""

import ast
import dataclasses
import inspect
import pathlib

import pytest

from tnt_jax.data.settings import DataSettings
from tnt_jax.models.tnt import Config
from tnt_jax.models.variants import BACKEND
from tnt_jax.training.config import DistributedSettings, Experiment, MixingSettings, ModelSettings

ROOT = pathlib.Path(__file__).parents[2]
# Files, and how they write the group that they read keys of: `experiment.seed`, `run.experiment.seed`, ...
PLACES = {
    Experiment: [("tnt_jax/training/*.py", "experiment")],
    DataSettings: [("tnt_jax/data/*.py", "settings"), ("tnt_jax/training/*.py", "experiment.data")],
    MixingSettings: [("tnt_jax/training/mixing.py", "settings"), ("tnt_jax/training/*.py", "experiment.mixing")],
    DistributedSettings: [
        ("tnt_jax/training/devices.py", "settings"),
        ("tnt_jax/training/*.py", "experiment.distributed"),
    ],
    ModelSettings: [("tnt_jax/training/*.py", "experiment.model")],
}


def reads(kind):
    """(file and line, key) wherever the group's name is followed by a dot and a name."""
    for pattern, group in PLACES[kind]:
        for file in sorted(ROOT.glob(pattern)):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute):
                    words = ast.unparse(node.value).replace("_experiment", "experiment").split(".")
                    if words[-len(group.split(".")) :] == group.split("."):
                        yield f"{file}:{node.lineno}", node.attr


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", [Experiment, DataSettings, MixingSettings, DistributedSettings])
def test_every_key_is_read(kind):
    unread = fields(kind) - {key for _, key in reads(kind)}
    assert not unread, f"{kind.__name__}: nothing reads {sorted(unread)}"


def test_the_models_take_every_key_of_theirs():
    assert fields(ModelSettings) - {"name"} <= fields(Config) | set(BACKEND)


@pytest.mark.parametrize("kind", PLACES)
def test_nothing_reads_a_key_that_is_not_there(kind):
    found = list(reads(kind))
    assert found  # or the patterns above have gone stale
    there = fields(kind) | {name for name, _ in inspect.getmembers(kind)}
    for place, key in found:
        assert key in there, f"{place}: {kind.__name__} has no {key}"
