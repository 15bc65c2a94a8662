import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs.default import get_config
from tnt_jax.data.settings import DataSettings


def test_the_fields_are_the_keys_of_config_data():
    assert {field.name for field in dataclasses.fields(DataSettings)} == set(get_config().data.keys())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", ""),
        ("name", "a\0b"),
        ("directory", "\ud800"),
        ("eval_interpolation", np.arange(2)),
        ("color_jitter", np.arange(2)),
        ("mean", (1e300, 0.0, 0.0)),
        ("mean", (10**400, 0, 0)),
        ("std", (1e-300, 1.0, 1.0)),
        ("crop_aspect", (1e-300, 1e300)),
        ("crop_area", (10**400, 1)),
        ("eval_crop_fraction", 1e-300),
        ("flip_probability", 10**400),
        ("worker_processes", 2**63),
        ("synthetic_examples", 10**400),
        ("train_split", 3),
        ("crop_area", (0.5, 0.2)),
        ("crop_area", (0.1, 1.5)),
        ("crop_aspect", (0.0, 1.0)),
        ("std", (0.5, 0.5, 0.0)),
        ("mean", ()),
        ("pixel_bits", 12),
        ("mean", "grey"),
        ("repeated_augmentation", 0),
        ("worker_processes", -2),
        ("worker_processes", 1.5),
        ("flip_probability", 1.1),
        ("flip_probability", float("nan")),
        ("eval_crop_fraction", 0.0),
        ("train_interpolation", "nearest"),
        ("eval_interpolation", "random"),
        ("randaugment", "rand-x9"),
    ],
)
def test_a_wrong_value_is_refused_with_the_keys_name(key, value):
    with pytest.raises(ValueError, match=rf"data\.{key}="):
        DataSettings(**{**get_config().data, key: value})


def test_the_package_and_its_settings_import_without_tensorflow():
    check = "import sys, tnt_jax.data.settings, tnt_jax.data.order; sys.exit('tensorflow' in sys.modules)"
    root = pathlib.Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", check], cwd=root, check=False).returncode == 0
