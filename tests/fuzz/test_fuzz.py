"""The short version of `python -m tests.fuzz`: every key has values; refusals and training steps are checked."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import harness, properties, saved, values, weights


@pytest.fixture(scope="module", autouse=True)
def working_directory():
    with harness.place():
        yield


def test_every_key_of_the_default_config_has_values():
    assert len(values.keys()) == len(values.SOUND)


def test_what_cannot_work_is_refused_with_the_key():
    properties.check_refusals(examples=300)


@pytest.mark.parametrize("check", [saved.check_names, saved.check_configs])
def test_a_workdir_of_any_name_and_content_is_read_or_refused(tmp_path, check):
    found = check(tmp_path, examples=300)
    assert min(found["accepted"], found["refused"]) >= 5, found


def test_what_is_accepted_trains_a_step():
    properties.check_training(examples=6)


def test_damaged_weights_are_read_or_refused_by_name(tmp_path):
    found = weights.run(60, np.random.default_rng(0), tmp_path)
    assert found[".safetensors read"] and found[".safetensors refused"]


def test_damaged_images_are_decoded_or_refused(tmp_path):
    """Runs in its own process: a fault in a library would crash it, and its memory is measured."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.fuzz.images", "--files=600"]
    found = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, text=True, capture_output=True, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]
    kinds = re.findall(r"^(\w+): (\d+) decoded, (\d+) refused$", found.stdout, flags=re.MULTILINE)
    assert len(kinds) == 7 and all(int(decoded) and int(refused) for _, decoded, refused in kinds), found.stdout
