"""Checkpoints: the same arrays back, the newest and the best kept, and words for what is not there."""

import jax
import numpy as np
import pytest

from tests.training.helpers import experiment, train_some
from tnt_jax import workdir as workdirs
from tnt_jax.training import checkpoints
from tnt_jax.training.errors import RunError
from tnt_jax.training.state import unreplicate

METADATA = {"step": 0, "seconds": 1.5, "device_count": 8, "process_count": 1, "best_accuracy": None}


def first_state(**changes):
    return unreplicate(train_some(experiment(**changes), [])[0])


def test_read_weights_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="only none"):
        workdirs.read_weights(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match="no checkpoint of step 6, only steps 5"):
        workdirs.read_weights(tmp_path, 6)


def test_a_broken_config_file_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        workdirs.read_config(tmp_path)


def test_the_checkpoint_is_the_same_array_by_array(tmp_path):
    state = first_state()
    store = checkpoints.Checkpoints(tmp_path, keep=1)
    store.save(state, METADATA)
    store.wait()
    restored, found = store.restore_newest(state)
    store.close()
    assert found == METADATA
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = first_state()
    store = checkpoints.Checkpoints(tmp_path, keep=2)
    accuracies = [0.3, 0.9, None, 0.5, 0.9, 0.2, None, 0.7]
    for step, accuracy in enumerate(accuracies, start=1):
        store.save(state.replace(step=np.int32(step)), METADATA | {"step": step}, accuracy)
    store.wait()
    store.close()
    # Of the two best the later one: its weights are as good, and it is further.
    assert workdirs.checkpoint_steps(tmp_path) == [5, 7, 8]


def test_weights_are_read_without_knowing_the_model(tmp_path):
    for decay, names in ((0.9, {"params", "ema_params"}), (0.0, {"params"})):
        state = first_state(ema_decay=decay)
        store = checkpoints.Checkpoints(tmp_path / str(decay), keep=1)
        store.save(state, METADATA)
        store.close()
        weights, metadata = workdirs.read_weights(tmp_path / str(decay))
        assert set(weights) == names and metadata == METADATA
        jax.tree.map(np.testing.assert_array_equal, weights["params"], state.params)


def test_an_unfinished_write_is_no_checkpoint(tmp_path):
    folder = tmp_path / "checkpoints"
    (folder / "7.orbax-checkpoint-tmp").mkdir(parents=True)
    assert workdirs.checkpoint_steps(tmp_path) == []
    store = checkpoints.Checkpoints(tmp_path, keep=1)
    assert store.restore_newest(first_state()) is None
    store.close()


def test_when_none_can_be_read_the_run_stops(tmp_path):
    state = first_state()
    store = checkpoints.Checkpoints(tmp_path, keep=1)
    store.save(state, METADATA)
    store.wait()
    for file in (tmp_path / "checkpoints" / "0" / "state").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(RunError, match="None of the 1 checkpoints"):
        store.restore_newest(state)
    store.close()
