"""Processes and sessions of a run must agree: all processes name what differs. The key-value store is a stand-in."""

import concurrent.futures
import dataclasses
import json
import threading
import types

import jax
import numpy as np
import pytest

from tests.training.helpers import TinyPipeline, lines, tiny_config
from tnt_jax.training import agreement, loop, setup
from tnt_jax.training.config import as_dict
from tnt_jax.training.runtime import CannotStart, RunError


class Store:
    """Stands in for the key-value store of jax's coordination service, with threads as processes."""

    def __init__(self):
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self.changed:
            assert value and key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self.values[key]


@pytest.fixture
def together(monkeypatch):
    """Runs a function in three threads posing as processes -> the result of each: None, or the error message."""
    index = threading.local()
    monkeypatch.setattr(agreement, "_key", lambda topic: f"tnt_jax/{topic}")

    def run(function):
        def one(number):
            index.number = number
            try:
                return function(number)
            except CannotStart as error:
                return str(error)

        with pytest.MonkeyPatch.context() as patch, concurrent.futures.ThreadPoolExecutor(3) as pool:
            patch.setattr(agreement.distributed, "global_state", types.SimpleNamespace(client=Store()))
            patch.setattr(jax, "process_count", lambda: 3)
            patch.setattr(jax, "process_index", lambda: index.number)
            return list(pool.map(one, range(3)))

    return run


def prepared(workdir, pipeline=TinyPipeline, **changes):
    config = tiny_config(distributed__initialization_timeout_seconds=2, **changes)
    return setup.prepare(config, workdir, pipeline(config))


class OtherPipeline(TinyPipeline):
    train_examples = 81
    class_names = ("red", "green", "blue", "gray")


class OtherFiles(TinyPipeline):
    """As many images of the same classes, from other files."""

    identity = "other files"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 5}, "process 2 differs in config.seed (5 there, 0 in process 0)"),
        ({"batch_size": 32}, "process 2 differs in config.batch_size (32 there, 16 in process 0)"),
        ({"model__depth": 2}, "config.model.depth (2 there, 1 in process 0)"),
        ({"pipeline": OtherPipeline}, "training examples (81 there, 80 in process 0)"),
        ({"pipeline": OtherPipeline}, "classes (('red', 'green', 'blue', 'gray') there"),
        ({"pipeline": OtherFiles}, "data set ('other files' there, 'tiny' in process 0)"),
    ],
)
def test_what_differs_is_named_in_all_processes(tmp_path, together, changes, words):
    runs = [prepared(tmp_path / "run") for _ in range(2)] + [prepared(tmp_path / "run", **changes)]
    said = together(lambda number: agreement.check_same_start(runs[number]))
    assert len(set(said)) == 1 and words in said[0] and "process 1" not in said[0]


def test_other_weights_under_the_same_path_are_named(tmp_path, together):
    run = prepared(tmp_path / "run")
    starts = [dataclasses.replace(run, pretrained={"head": np.full(3, value, np.float32)}) for value in (1, 1, 2)]
    (said,) = set(together(lambda number: agreement.check_same_start(starts[number])))
    assert "process 2 differs in weights at the start ('" in said and "process 1 differs" not in said
    assert together(lambda number: agreement.check_same_start(starts[0])) == [None] * 3


def test_a_checkpoint_of_another_model_is_refused_though_every_array_fits(tmp_path):
    """config.json was edited: the number of heads shows in no array shape."""
    run = prepared(tmp_path / "run", model__outer_dim=8, model__outer_num_heads=2)
    model = as_dict(run.config)["model"]
    agreement.check_same_model(run, {"step": 5, "model": model})
    agreement.check_same_model(run, {"step": 5})  # saved by an earlier version
    agreement.check_same_model(run, {"step": 5, "model": model | {"scan": True}})  # same weights, computed another way
    with pytest.raises(RunError, match=r"step 5 .* than config.json says: model.outer_num_heads \(4 there, 2 now\)"):
        agreement.check_same_model(run, {"step": 5, "model": model | {"outer_num_heads": 4}})


def test_another_number_of_devices_is_named(tmp_path, together, monkeypatch):
    run = prepared(tmp_path / "run")
    monkeypatch.setattr(jax, "local_device_count", lambda: 2 if jax.process_index() == 1 else 4)
    (said,) = set(together(lambda number: agreement.check_same_start(run)))
    assert "process 1 differs in number of devices ('2 x cpu' there, '4 x cpu' in process 0)" in said


def test_what_is_of_the_machine_may_differ(tmp_path, together):
    others = {"data__directory": "/elsewhere", "distributed__process_id": 2, "prefetch_batches": 9}
    runs = [prepared(tmp_path / "run"), prepared(tmp_path / "run"), prepared(tmp_path / "run", **others)]
    assert together(lambda number: agreement.check_same_start(runs[number])) == [None] * 3


def test_another_version_of_the_code_is_named(tmp_path, together, monkeypatch):
    run = prepared(tmp_path / "run")
    statements = [agreement.statement(run) for _ in range(3)]
    statements[1] |= {"tnt_jax/training/loop.py": "0", "jax": "0.1"}
    made = iter(statements)
    by_number = {number: next(made) for number in range(3)}
    monkeypatch.setattr(agreement, "statement", lambda run: by_number[jax.process_index()])
    (said,) = set(together(lambda number: agreement.check_same_start(run)))
    assert "process 1 differs in jax (0.1" in said.replace("'", "") and "tnt_jax/training/loop.py" in said


def test_a_workdir_that_one_process_does_not_see_is_said_by_all(tmp_path, together, monkeypatch):
    """A resume detects it by the checkpoints, a first start by the token."""
    mine, other = prepared(tmp_path / "mine"), prepared(tmp_path / "other")
    monkeypatch.setattr(agreement, "SECONDS_TO_APPEAR", 0.3)
    tokens = {mine.workdir: {"token": "token of process 0"}, other.workdir: {}}
    monkeypatch.setattr(agreement, "lock_holder", tokens.get)
    runs = [mine, mine, other]
    (said,) = set(together(lambda number: agreement.check_same_workdir(runs[number], "token of process 0")))
    assert f"process 2 does not see what process 0 writes into --workdir={other.workdir}" in said
    assert "on a file system that all processes share" in said
    (mine.workdir / "checkpoints" / "5").mkdir(parents=True)
    (said,) = set(together(lambda number: agreement.check_same_start(runs[number])))
    assert "process 2 differs in newest checkpoint in --workdir (None there, 5 in process 0): the workdir" in said


def test_processes_that_would_resume_from_different_steps_are_named(tmp_path, together):
    run, restored = prepared(tmp_path / "run"), (10, 10, 5)
    assert together(lambda number: agreement.check_same_step(run, 10)) == [None] * 3
    (said,) = set(together(lambda number: agreement.check_same_step(run, restored[number])))
    assert "process 2 resumes from step 5, process 0 from step 10" in said


def test_a_process_that_never_says_anything_is_not_waited_for_without_end(tmp_path, together):
    run = prepared(tmp_path / "run")
    said = together(lambda number: agreement.check_same_start(run) if number < 2 else None)
    assert "did not all start within 2 s (distributed.initialization_timeout_seconds)" in said[0]
    assert said[1].startswith("The 3 processes did not all start") and said[2] is None


def test_a_process_alone_agrees_with_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "lock_holder", lambda workdir: pytest.fail("looked at"))
    run = prepared(tmp_path / "run")
    agreement.check_same_start(dataclasses.replace(run, pipeline=None))  # does not even read the data set
    agreement.check_same_workdir(run, "token")


@pytest.fixture
def folder_config(tmp_path):
    from tests.data.test_folder import fill

    fill(tmp_path / "images", {"train/cat": 8, "train/dog": 8, "test/cat": 4, "test/dog": 4})
    return tiny_config(
        data__name="folder", data__directory=str(tmp_path / "images"), data__eval_split="test", steps=2,
        data__repeated_augmentation=1, data__randaugment="", log_every_steps=1, checkpoint_every_steps=1,
    )  # fmt: skip


def test_a_run_begun_before_says_that_the_remaining_images_are_made_by_another_decoder(
    folder_config, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "DECODER", "Pillow 9.9.9")
        patch.setattr(agreement, "DECODER", "Pillow 9.9.9")
        loop.train_and_evaluate(folder_config, workdir)
    out = capsys.readouterr().out
    assert "16 images, test 8 images; 2 classes: cat 12, dog 12" in out and "Pillow" not in out
    saved = json.loads((workdir / "config.json").read_text())
    del saved["data"]["exif_orientation"], saved["data"]["worker_processes"]
    saved["data"]["reader_threads"] = 0
    (workdir / "config.json").write_text(json.dumps(saved))
    folder_config.steps = 3
    loop.train_and_evaluate(folder_config, workdir)
    out = capsys.readouterr().out
    assert out.count("Note: images were decoded by Pillow 9.9.9 then and are decoded by Pillow ") == 1
    assert [line["step"] for line in lines(workdir) if "train/loss" in line] == [1, 2, 3]
    folder_config.steps = 4
    loop.train_and_evaluate(folder_config, workdir)
    assert "images were decoded by" not in capsys.readouterr().out
