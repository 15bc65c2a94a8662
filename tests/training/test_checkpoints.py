"""Checkpoints: the same arrays come back, the newest and the best are kept, and missing ones are named."""

import json
import logging
import resource
import shutil

import jax
import numpy as np
import pytest

from tests.training.helpers import checked_config, read_state, train_some
from tnt_jax import workdir as workdirs
from tnt_jax.training import checkpoints, setup
from tnt_jax.training.runtime import RunError
from tnt_jax.training.state import unreplicate

METADATA = {"step": 0, "seconds": 1.5, "device_count": 8, "process_count": 1, "best_accuracy": None}


def first_state(**changes):
    return unreplicate(train_some(checked_config(**changes), [])[0])


def test_read_weights_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match="only none"):
        workdirs.read_weights(tmp_path)
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match="no checkpoint of step 6, only steps 5"):
        workdirs.read_weights(tmp_path, 6)


@pytest.mark.parametrize("content", ["{", '{"a":' * 100_000, ""])
def test_a_broken_config_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        workdirs.read_config(tmp_path)


def test_the_checkpoint_is_the_same_array_by_array(tmp_path):
    state = first_state()
    store = checkpoints.Checkpoints(tmp_path, keep=1)
    store.save(state, METADATA)
    store.wait()
    restored, found = store.restore_newest(state)
    store.close()
    assert METADATA.items() <= found.items()
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)


def test_memory_that_runs_out_is_not_taken_for_damage(tmp_path, monkeypatch):
    state = saved(tmp_path, 1)
    store = checkpoints.Checkpoints(tmp_path, keep=1)

    def full(*arguments):
        raise MemoryError

    monkeypatch.setattr(workdirs, "verify", full)
    with pytest.raises(MemoryError):
        store.restore_newest(state)
    store.close()
    assert workdirs.checkpoint_steps(tmp_path) == [1] and not (tmp_path / checkpoints.DAMAGED_FOLDER).exists()


def test_the_newest_and_the_best_are_kept(tmp_path):
    state = first_state()
    store = checkpoints.Checkpoints(tmp_path, keep=2)
    accuracies = [0.3, 0.9, None, 0.5, 0.9, 0.2, None, 0.7]
    for step, accuracy in enumerate(accuracies, start=1):
        store.save(state.replace(step=np.int32(step)), METADATA | {"step": step}, accuracy)
    store.wait()
    store.close()
    # Of two equally good checkpoints the later one is kept: it is further along.
    assert workdirs.checkpoint_steps(tmp_path) == [5, 7, 8]


def test_weights_are_read_without_knowing_the_model(tmp_path):
    for decay, names in ((0.9, {"params", "ema_params"}), (0.0, {"params"})):
        state = first_state(ema_decay=decay)
        store = checkpoints.Checkpoints(tmp_path / str(decay), keep=1)
        store.save(state, METADATA)
        store.close()
        weights, metadata = workdirs.read_weights(tmp_path / str(decay))
        assert set(weights) == names and METADATA.items() <= metadata.items()
        jax.tree.map(np.testing.assert_array_equal, weights["params"], state.params)


def test_every_name_that_a_workdir_may_have_can_be_read_again(tmp_path):
    """Uses all characters that check_workdir accepts, and as long a name as it accepts."""
    odd = "".join(chr(number) for number in range(32, 127) if chr(number) not in "/[]*?\\") + "é漢😀\u3000"
    workdir = setup.check_workdir(tmp_path / f"{odd:=<200}")
    state = saved(workdir, 1, 2)
    jax.tree.map(np.testing.assert_array_equal, workdirs.read_weights(workdir)[0]["params"], state.params)
    assert int(restore(workdir, state)[0].step) == 2


def test_a_checkpoint_that_is_removed_while_it_is_read_is_no_damaged_one(tmp_path, monkeypatch):
    """The run continues meanwhile, so the next checkpoint is read."""
    state = saved(tmp_path, 1, 2)
    read = workdirs._read_folder

    def removed_meanwhile(folder):
        if folder.name == "2":
            if not (tmp_path / "checkpoints" / "3").exists():
                saved(tmp_path, 3, keep=1)
            shutil.rmtree(folder)
        return read(folder)

    monkeypatch.setattr(workdirs, "_read_folder", removed_meanwhile)
    weights, metadata = workdirs.read_weights(tmp_path)
    assert metadata["step"] == 3
    jax.tree.map(np.testing.assert_array_equal, weights["params"], state.params)
    (tmp_path / "checkpoints" / "2").mkdir()
    with pytest.raises(ValueError, match="no checkpoint of step 2, only steps .*3"):
        workdirs.read_weights(tmp_path, 2)


@pytest.mark.parametrize("name", ["0100", "٣", "100 (copy)", "-5", "1e3", "100~"])
def test_a_folder_that_a_run_would_not_have_named_is_no_checkpoint(tmp_path, name):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert workdirs.checkpoint_steps(tmp_path) == []


def test_a_file_in_place_of_the_folder_ends_the_run_before_its_first_step(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match="could not be written into .*checkpoints: .*File exists"):
        checkpoints.Checkpoints(tmp_path, keep=1)


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


def saved(workdir, *steps, keep=5, **changes):
    """Saves checkpoints of these steps in the workdir -> the state of the last one."""
    state = first_state(**changes)
    store = checkpoints.Checkpoints(workdir, keep)
    for step in steps:
        state = state.replace(step=np.int32(step), metrics=jax.tree.map(lambda leaf, s=step: leaf + s, state.metrics))
        store.save(state, METADATA | {"step": step})
    store.close()
    return state


def restore(workdir, like, keep=5):
    store = checkpoints.Checkpoints(workdir, keep)
    try:
        return store.restore_newest(like)
    finally:
        store.close()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGES = {
    "flipped byte": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_happens_to_a_file_the_state_is_never_another_one(tmp_path, damage, caplog):
    """Damages each file in turn: the same bits come back, or the checkpoint is named and the one before it is used."""
    state = saved(tmp_path / "whole", 1, 2)
    files = [path for path in (tmp_path / "whole" / "checkpoints" / "2").rglob("*") if path.is_file()]
    passed_over = []
    for number, path in enumerate(sorted(files)):
        workdir = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", workdir)
        DAMAGES[damage](workdir / path.relative_to(tmp_path / "whole"))
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            restored, metadata = restore(workdir, state)
        assert metadata["step"] == int(restored.step)
        if metadata["step"] == 1:
            assert f"{workdir / 'checkpoints' / '2'} is damaged and is passed over" in caplog.text
            assert (workdir / "damaged_checkpoints" / "2-1").is_dir()
            assert workdirs.checkpoint_steps(workdir) == [1]
            passed_over.append(path.name)
        else:
            jax.tree.map(np.testing.assert_array_equal, restored, state)
            assert METADATA.items() <= (metadata | {"step": 0}).items()
    assert "metadata" in passed_over and len(passed_over) >= 3  # array files among them


def test_a_changed_array_is_noticed_whatever_the_files_say(tmp_path):
    """A byte changes where neither zstd nor tensorstore checks: the checksums cover the arrays themselves."""
    state = saved(tmp_path, 1)
    _, metadata = restore(tmp_path, state)
    workdirs.verify(state, metadata)
    state = jax.tree.map(np.copy, state)
    state.params["dense"]["kernel"].view(np.uint8)[0, 3] ^= 1
    with pytest.raises(ValueError, match="params/dense/kernel: not the bytes"):
        workdirs.verify(state, metadata)
    with pytest.raises(ValueError, match="metadata is not what was written"):
        workdirs.verify(state, metadata | {"seconds": 1.75})


def test_weights_of_a_damaged_checkpoint_are_an_error_that_names_the_one_before(tmp_path):
    saved(tmp_path, 3, 4)
    for path in (tmp_path / "checkpoints" / "4" / "state").rglob("d/*"):
        flip(path)
    with pytest.raises(ValueError, match=r"checkpoints/4 is damaged: .*The one before it is .*checkpoints/3"):
        workdirs.read_weights(tmp_path)
    assert workdirs.read_weights(tmp_path, 3)[1]["step"] == 3


def test_a_checkpoint_of_another_model_is_refused_with_the_arrays_that_differ(tmp_path):
    saved(tmp_path, 1)
    other = first_state(ema_decay=0.0)
    other = other.replace(params=other.params | {"dense": {"bias": np.zeros(8), "kernel": np.zeros((48, 9))}})
    with pytest.raises(RunError) as caught:
        restore(tmp_path, other)
    assert "ema_params/class_token ((8,) there, absent now)" in str(caught.value)
    assert workdirs.checkpoint_steps(tmp_path) == [1]  # and nothing was moved away


def test_what_was_about_to_be_removed_is_removed_at_the_next_start(tmp_path):
    """The process ended after the new checkpoint was complete and before the old one was removed."""
    state = saved(tmp_path, 1, 2, 3, keep=2)
    shutil.copytree(tmp_path / "checkpoints" / "2", tmp_path / "checkpoints" / "1")
    restore(tmp_path, state, keep=2)
    assert workdirs.checkpoint_steps(tmp_path) == [2, 3]


def test_checkpoints_of_an_earlier_version_are_read(tmp_path):
    state = saved(tmp_path, 1, 2)
    for step in (1, 2):  # they have no retention table and no checksums
        (tmp_path / "checkpoints" / str(step) / "metadata" / "metadata").write_text(
            json.dumps(METADATA | {"step": step})
        )
    restored, metadata = restore(tmp_path, state)
    assert metadata == METADATA | {"step": 2}
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert workdirs.checkpoint_steps(tmp_path) == [1, 2]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ([(None, True)] * 4, {3, 4}),
        ([(0.9, True), (None, True), (None, True), (0.8, True)], {1, 3, 4}),
        ([(0.9, True), (0.9, True), (None, True), (None, True)], {2, 3, 4}),  # of equally good ones the last
        ([(None, True), (None, True), (None, True), (None, False)], {2, 3, 4}),  # a run that was stopped
        ([(None, True), (None, False), (None, True)], {1, 3}),
        ([], set()),
    ],
)
def test_what_is_kept(kept, expected):
    table = {step: checkpoints.Retained(*entry) for step, entry in enumerate(kept, start=1)}
    assert checkpoints.steps_to_retain(table, newest=2) == expected


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_good_one(tmp_path):
    """Limits files to 200 bytes: like a full disk, this fails in the middle of a write."""
    state = saved(tmp_path, 1)
    store = checkpoints.Checkpoints(tmp_path, keep=1)
    assert store.restore_newest(state)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(RunError, match=r"could not be written[\s\S]*The last good one is .*checkpoints/1\."):
            store.save(state.replace(step=np.int32(2)), METADATA | {"step": 2})
            store.wait()
        store.close()  # does not raise it again
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert workdirs.checkpoint_steps(tmp_path) == [1]
    found, _ = read_state(tmp_path)
    np.testing.assert_array_equal(found["params"]["dense"]["kernel"], state.params["dense"]["kernel"])
    saved(tmp_path, 2, keep=1)  # works again once there is room
