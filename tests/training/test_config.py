"""The typed configuration: the keys of configs/default.py, all of them read, and one clear error for anything else."""

import ast
import dataclasses
import functools
import inspect
import json
import math
import pathlib

import pytest

from configs import default
from tests.training.helpers import tiny_config
from tnt_jax.data.settings import DataSettings
from tnt_jax.models.tnt import Config as ModelConfig
from tnt_jax.models.variants import BACKEND
from tnt_jax.training import config as training_config
from tnt_jax.training.config import (
    KEYS,
    Config,
    DistributedSettings,
    MixingSettings,
    ModelSettings,
    as_dict,
    check_config,
    peak_learning_rate,
    unknown_key_message,
)


def flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_the_keys_are_those_of_default():
    assert sorted(KEYS) == sorted(flatten(default.get_config().to_dict()))


def test_every_number_but_the_data_packages_has_limits():
    """They refuse infinity and NaN, too."""
    numbers = {key for key in KEYS if any(word in annotation(key) for word in ("int", "float"))}
    assert all(
        not KEYS[key].admits(value)
        for key in numbers
        if not key.startswith("data.")
        for value in (math.inf, -math.inf, math.nan)
    )


def annotation(key):
    kind = Config
    for part in key.split("."):
        kind = {field.name: field.type for field in dataclasses.fields(kind)}[part]
    return str(kind)


def test_values_arrive_typed():
    config = check_config(default.get_config())
    assert config.epochs == 300.0 and config.batch_size == 1024
    assert isinstance(config.data, DataSettings)
    assert config.mixing.erase_area == (0.02, 1 / 3)
    assert config.model.arguments()["name"] == "tnt_s_patch16_224"
    assert "patch_size" not in config.model.arguments()  # None means the variant's value
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch_size = 3


@pytest.mark.parametrize(("value", "size"), [(16, (16, 16)), ((16, 8), (16, 8)), ([16, 8], (16, 8))])
def test_an_image_size_is_a_side_or_a_pair(value, size):
    config = check_config(tiny_config(model__image_size=value))
    assert config.model.input_size == size
    assert check_config(json.loads(json.dumps(as_dict(config)))) == config


@pytest.mark.parametrize("value", ["16", (16,), (16, 0), (16, 8, 3), 16.0, (16, 8.0), None, True])
def test_what_is_no_image_size(value):
    with pytest.raises(ValueError, match=r"^config\.model\.image_size="):
        check_config(tiny_config(model__image_size=value))


def test_an_image_size_as_tools_take_it_is_told_how_a_config_has_it():
    with pytest.raises(ValueError, match=r"image_size='96x160': must be a number, or a tuple such as \(96, 160\)"):
        check_config(tiny_config(model__image_size="96x160"))


def test_a_whole_number_serves_where_any_number_does():
    epochs = check_config(tiny_config(epochs=3)).epochs
    assert epochs == 3.0 and isinstance(epochs, float)


def test_config_json_gives_the_same_experiment():
    config = check_config(tiny_config(model__tnt_blocks=(1,)))
    assert check_config(json.loads(json.dumps(as_dict(config)))) == config


def test_learning_rate_scales_with_the_batch_only_when_asked():
    assert peak_learning_rate(check_config(tiny_config(learning_rate=1e-3))) == 1e-3
    scaled = check_config(tiny_config(learning_rate=5e-4, batch_size=1024, learning_rate_batch_size=512))
    assert peak_learning_rate(scaled) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({key: 10**5000}, [f"config.{key}=2**16609", "at most"]) for key in ("epochs", "steps", "learning_rate")),
        ({"cooldown_epochs": 1.7e308}, ["config.cooldown_epochs=1.7e+308", "at most 1e+06"]),
        ({"epochs": 1e-300}, ["config.epochs=1e-300", "at least 1e-06"]),
        ({"adam_beta2": 1 - 2**-53}, ["config.adam_beta2", "at most 0.9999999"]),
        ({"adam_epsilon": 1e-300}, ["config.adam_epsilon", "at least 1e-30"]),
        ({"prefetch_batches": 10**30}, ["config.prefetch_batches", "at most 1000"]),
        ({"steps": 2**31}, ["config.steps=2147483648", "at most 2,147,483,647"]),
        ({"model__depth": 10**6}, ["config.model.depth=1000000", "at most 1000"]),
        ({"mixing__erase_aspect": (1e-30, 1.0)}, ["config.mixing.erase_aspect=1e-30", "at least 0.001"]),
        ({"pretrained": "a\0b"}, ["config.pretrained='a\\x00b'", "printable"]),
        ({"schedule": "x" * 5000}, ["config.schedule='xxx", "5002 characters", "cosine"]),
        ({"data__repeated_augmentation": 17}, ["config.data.repeated_augmentation=17", "config.batch_size=16"]),
        ({"distributed__coordinator_address": "a:1"}, ["distributed.coordinator_address='a:1'", "enabled"]),
        ({"lerning_rate": 1.0}, ["config.lerning_rate", "learning_rate"]),
        ({"model__drop_path": 1.0}, ["config.model.drop_path", "model.drop_path_rate"]),
        ({"batch_size": 2.5}, ["config.batch_size=2.5", "whole number"]),
        ({"batch_size": True}, ["config.batch_size=True", "whole number"]),
        ({"batch_size": 0}, ["config.batch_size=0", "at least 1"]),
        ({"learning_rate": 0.0}, ["config.learning_rate", "greater than 0"]),
        ({"learning_rate": float("nan")}, ["config.learning_rate=nan"]),
        ({"ema_decay": 1.0}, ["config.ema_decay", "less than 1"]),
        ({"epochs": "many"}, ["config.epochs='many'", "a number"]),
        ({"schedule": "stairs"}, ["config.schedule='stairs'", "cosine, constant"]),
        ({"model__dtype": "float16"}, ["config.model.dtype", "bfloat16"]),
        ({"model__tnt_blocks": 3}, ["config.model.tnt_blocks=3", "tuple"]),
        ({"mixing__erase_area": (0.5, 0.1)}, ["config.mixing.erase_area", "swap"]),
        ({"mixing__erase_aspect": (0.5,)}, ["config.mixing.erase_aspect", "2 numbers"]),
        ({"mixing": 3}, ["config.mixing=3", "group of keys"]),
        ({"data__mean": (0.5, 0.5)}, ["data.mean"]),
        ({"schedule": "constant", "cooldown_epochs": 5}, ["config.cooldown_epochs=5", "cosine"]),
        ({"min_learning_rate": 1.0}, ["config.min_learning_rate=1", "peak"]),
        ({"warmup_epochs": 5.0}, ["config.warmup_epochs=5", "4 epochs"]),
        ({"scan_tile_kib": 5}, ["config.scan_tile_kib=5", "0 for XLA's own limit, or a number such as 6144"]),
        ({"distributed__num_processes": 2}, ["distributed.enabled"]),
        ({"distributed__num_processes": 2**31 - 1}, ["distributed.num_processes=2147483647", "at most 65536"]),
        ({"distributed__coordinator_address": "nowhere"}, ["coordinator_address='nowhere'", "host:port"]),
        ({"distributed__coordinator_address": "localhost:abc"}, ["coordinator_address='localhost:abc'", "host:port"]),
        ({"distributed__coordinator_address": "localhost:0"}, ["coordinator_address='localhost:0'", "65535"]),
        ({"distributed__coordinator_address": "localhost:65536"}, ["localhost:65536", "65535"]),
        ({"distributed__coordinator_address": ":1234"}, ["coordinator_address=':1234'", "host:port"]),
        (
            {"distributed__enabled": True, "distributed__num_processes": 2, "distributed__process_id": 2},
            ["process_id=2"],
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_key_and_the_fix(changes, words):
    config = tiny_config().to_dict()  # a ConfigDict would refuse some of these itself
    for key, value in changes.items():
        *groups, leaf = key.split("__")
        functools.reduce(dict.__getitem__, groups, config)[leaf] = value
    with pytest.raises(ValueError) as caught:
        check_config(config)
    for word in words:
        assert word in str(caught.value)


def test_a_missing_key_is_named():
    config = tiny_config()
    with config.unlocked():
        del config.model["depth"]
        del config["seed"]
    with pytest.raises(ValueError, match="lacks seed"):
        check_config(config)
    config.seed = 0
    with pytest.raises(ValueError, match=r"lacks model\.depth"):
        check_config(config)


def test_unknown_keys_point_to_the_right_group():
    assert "model.dtype" in unknown_key_message("dtype")
    assert "data.mean" in unknown_key_message("data.maen")
    assert "configs/default.py" in unknown_key_message("xyzzy")


def test_nearest_multiples_has_no_zero():
    assert training_config.nearest_multiples(3, 8) == "8"
    assert training_config.nearest_multiples(20, 8) == "16 or 24"


ROOT = pathlib.Path(__file__).parents[2]
# Files, and the name under which they read keys of the group: `config.seed`, `run.config.seed`, ...
PLACES = {
    Config: [("tnt_jax/training/*.py", "config")],
    DataSettings: [
        ("tnt_jax/data/*.py", "settings"),
        ("tnt_jax/training/*.py", "config.data"),
        ("tnt_jax/training/device_augment.py", "data"),
    ],
    MixingSettings: [("tnt_jax/training/device_augment.py", "mixing"), ("tnt_jax/training/*.py", "config.mixing")],
    DistributedSettings: [
        ("tnt_jax/training/runtime.py", "settings"),
        ("tnt_jax/training/*.py", "config.distributed"),
    ],
    ModelSettings: [("tnt_jax/training/*.py", "config.model")],
}


def reads(kind):
    """Yields (file and line, key) wherever the group's name is followed by a dot and a name."""
    for pattern, group in PLACES[kind]:
        for file in sorted(ROOT.glob(pattern)):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute):
                    words = ast.unparse(node.value).replace("_config", "config").split(".")
                    if words[0] != "jax" and words[-len(group.split(".")) :] == group.split("."):
                        yield f"{file}:{node.lineno}", node.attr


def fields(kind):
    return {field.name for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("kind", [Config, DataSettings, MixingSettings, DistributedSettings])
def test_every_key_is_read(kind):
    unread = fields(kind) - {key for _, key in reads(kind)}
    assert not unread, f"{kind.__name__}: nothing reads {sorted(unread)}"


def test_the_models_take_every_key_of_theirs():
    assert fields(ModelSettings) - {"name"} <= fields(ModelConfig) | set(BACKEND)


@pytest.mark.parametrize("kind", PLACES)
def test_nothing_reads_a_key_that_is_not_there(kind):
    found = list(reads(kind))
    assert found  # otherwise the patterns above are stale
    there = fields(kind) | {name for name, _ in inspect.getmembers(kind)}
    for place, key in found:
        assert key in there, f"{place}: {kind.__name__} has no {key}"
