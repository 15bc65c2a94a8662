"""config.json of older runs: every later version reads it as it was meant; the command line can change it."""

import functools
import json
import logging
import pathlib
import shutil

import pytest

from configs import default, digits
from tests.training.helpers import resolved
from tnt_jax import workdir as workdirs
from tnt_jax.tools import command_line
from tnt_jax.training import saved_config, setup
from tnt_jax.training.config import KEYS, as_dict, check_config
from tnt_jax.training.saved_config import BEFORE, read_run_config

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
    """tnt_jax.workdir renames or drops two keys."""
    first = keys(json.loads(FIRST.read_text())) - {
        "model.inner_attention",
        "data.reader_threads",
    }
    assert set(KEYS) == first | set(BEFORE) and not first & set(BEFORE)


def test_the_first_versions_file_is_a_config_of_today(workdir, caplog):
    with caplog.at_level(logging.WARNING):
        config = check_config(read_run_config(workdir))
    assert config.data.on_device is False and config.model.inner_implementation == "auto"
    assert config.epochs == 60 and config.model.image_size == 8
    assert f"{workdir / 'config.json'} lacks keys" in caplog.text and "data.on_device=False" in caplog.text


@pytest.mark.parametrize("key", ["seed", "batch_size"])
def test_a_key_that_every_run_has_written_is_never_made_up(workdir, key):
    values = json.loads(FIRST.read_text())
    del values[key]
    (workdir / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=f"config.json lacks {key}, which every run has written"):
        read_run_config(workdir)


SAVED = (
    pathlib.Path(__file__).parents[1] / "fixtures" / "run_config.json"
)  # from a run of configs/folder.py in November 2026


@pytest.fixture
def run(tmp_path):
    shutil.copy(SAVED, tmp_path / "config.json")
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    return tmp_path


def take(values, key):
    return functools.reduce(lambda group, name: group[name], key.split("."), values)


def remove(values, key):
    *groups, leaf = key.split(".")
    del functools.reduce(lambda group, name: group[name], groups, values)[leaf]


def test_a_run_of_before_keeps_its_values_and_resumes(run):
    saved = json.loads(SAVED.read_text())
    del saved["data"]["reader_threads"], saved["model"]["remat_keeps"]  # dropped and renamed by tnt_jax.workdir
    now = as_dict(check_config(saved_config.saved_config(run, evaluates=False)))
    assert {key: take(now, key) for key in flat(saved)} == flat(saved)
    setup.check_same_run(run, check_config(saved_config.saved_config(run, evaluates=False)), evaluates=False)


@pytest.mark.parametrize(
    ("old", "new"), [("inputs", "nothing_saveable"), ("products", "dots_with_no_batch_dims_saveable")]
)
def test_a_renamed_key_is_read_and_logged(run, caplog, old, new):
    """Also in the metadata of a checkpoint."""
    (run / "config.json").write_text(SAVED.read_text().replace('"remat_keeps": "inputs"', f'"remat_keeps": "{old}"'))
    with caplog.at_level(logging.WARNING):
        assert saved_config.read_run_config(run)["model"]["remat_policy"] == new
    assert f"{run / 'config.json'}: model.remat_keeps={old} is model.remat_policy={new} now" in caplog.text
    metadata = {"model": {"remat_keeps": old}}
    assert workdirs.with_current_keys(metadata)[0]["model"] == {"remat_policy": new}


def flat(values, prefix=""):
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_a_key_that_a_run_lacks_never_blocks_it(tmp_path, monkeypatch):
    """Removes each later key in turn, and one that stands for a new key and that the model fills in."""
    monkeypatch.setitem(BEFORE, "model.squeeze_excitation", None)
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    for key, value in BEFORE.items():
        settings = default.get_config()
        settings.update_from_flattened_dict({key: tuple(value) if isinstance(value, list) else value})
        config = resolved(check_config(settings), 4)
        saved = as_dict(config)
        remove(saved, key)
        (tmp_path / "config.json").write_text(json.dumps(saved))
        for evaluates in (False, True):
            setup.check_same_run(tmp_path, config, evaluates)


def test_a_saved_configuration_has_the_types_of_default(run):
    found = saved_config.saved_config(run, evaluates=False)
    wanted = default.get_config()
    for group in ("model", "data", "mixing", "distributed"):
        for key in wanted[group]:
            assert found[group].get_type(key) is wanted[group].get_type(key), key
    assert {key for key in wanted if found.get_type(key) is not wanted.get_type(key)} == set()


@pytest.mark.parametrize(
    ("key", "kernel"),
    [("inner_implementation", "pallas"), ("inner_implementation", "cudnn"), ("outer_implementation", "flash")],
)
def test_evaluating_takes_neither_the_processes_nor_the_kernel_of_the_run(run, key, kernel):
    saved = json.loads(SAVED.read_text())
    saved["distributed"] |= {"enabled": True, "num_processes": 4, "coordinator_address": "a:1"}
    saved["model"][key] = kernel
    (run / "config.json").write_text(json.dumps(saved))
    found = saved_config.saved_config(run, evaluates=True)
    assert found.distributed.to_dict() == default.get_config().distributed.to_dict()
    assert found.model[key] == "auto"
    found = saved_config.saved_config(run, evaluates=False)
    assert found.distributed.num_processes == 4 and found.model[key] == kernel


def test_keys_of_a_saved_configuration_are_changed_as_those_of_a_file(run):
    changes = ["--config.data.directory=/else where/photos", "--config.data.mean=(0.1, 0.2, 0.3)"]
    found = command_line.run_config(run, [*changes, "--config.eval_batch_size=8"])
    assert found.data.directory == "/else where/photos" and found.data.mean == (0.1, 0.2, 0.3)
    assert found.eval_batch_size == 8 and found.model.depth == 1
    assert command_line.run_config(run).data.directory == "/data/photos"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--config.data.directroy=x", "Did you mean data.directory?"),
        ("--config.learning_rate=1", "config.learning_rate: of a run's configuration this program reads"),
        ("--config.model.depth=3", "config.model.depth: of a run's"),
        ("--config.eval_batch_size=many", "eval_batch_size"),
    ],
)
def test_what_a_tool_cannot_change_of_a_run_is_said(run, change, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        command_line.run_config(run, [change])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no configuration"),
        ("3", "holds no configuration"),
        ("null", "holds no configuration"),
        ('{"model": 3}', r"config\.model must be a group of keys, such as model\.name\."),
        ('{"seed": 1, "seed": 2}', "the key 'seed' is there twice"),
        (SAVED.read_text().replace('"batch_size": 16', '"batch_size": "16"'), r"config\.batch_size='16'"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, words):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config\.json.*{words}"):
        command_line.run_config(tmp_path)


def test_the_workdir_alone_is_enough_to_resume(run, tmp_path):
    """A workdir, or a checkpoint in it, names the run; --config takes precedence."""

    def read(folder, *flags, **settings):
        parser = command_line.Parser("test", "")
        parser.add_config()
        return command_line.read_config(parser.parse(flags), str(folder), **settings)

    trains = read(run, "--config.model.scan=True", evaluates=False, keys=("",))
    assert trains.model.scan and trains.batch_size == saved_config.saved_config(run, evaluates=False).batch_size
    assert read(f"{run}/checkpoints/6").to_dict() == saved_config.saved_config(run, evaluates=True).to_dict()
    assert read(run, "--config=configs/digits.py").batch_size == digits.get_config().batch_size
    assert read(run / "checkpoints") is None and read(tmp_path / "none") is None and read("") is None
    with pytest.raises(ValueError, match="--config.seed=1 changes a key of a config. Name its file too"):
        read(run / "checkpoints", "--config.seed=1")
