"""config.json of runs of before: read by every later version, as what it meant."""

import json
import logging
import pathlib

import pytest

from tnt_jax.training.config import accepted_keys, check_config
from tnt_jax.training.recorded import BEFORE, read_run_config

FIRST = pathlib.Path(__file__).parents[1] / "fixtures/config_first_version.json"


def keys(values, prefix=""):
    """Nested dicts -> the set of dotted keys."""
    found = set()
    for key, value in values.items():
        found |= keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


@pytest.fixture
def workdir(tmp_path):
    (tmp_path / "config.json").write_text(FIRST.read_text())
    return tmp_path


def test_a_key_is_of_the_first_version_or_says_what_runs_of_before_meant():
    first = keys(json.loads(FIRST.read_text())) - {"model.inner_attention"}  # renamed: tnt_jax.workdir
    assert set(accepted_keys()) == first | set(BEFORE) and not first & set(BEFORE)


def test_the_first_versions_file_is_a_config_of_today(workdir, caplog):
    with caplog.at_level(logging.WARNING):
        experiment = check_config(read_run_config(workdir))
    assert experiment.data.on_device is False and experiment.model.inner_implementation == "auto"
    assert experiment.epochs == 60 and experiment.model.image_size == 8
    assert f"{workdir / 'config.json'} lacks keys" in caplog.text and "data.on_device=False" in caplog.text


@pytest.mark.parametrize("key", ["seed", "batch_size"])
def test_a_key_that_every_run_has_written_is_never_made_up(workdir, key):
    values = json.loads(FIRST.read_text())
    del values[key]
    (workdir / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"config.json lacks {key}, which every run has written"):
        read_run_config(workdir)
