"""Whole runs, from the first step to the summary: interrupted, continued, spoilt, evaluated."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time

import flax.traverse_util
import jax
import numpy as np
import pytest

from tests.training.helpers import (
    NUM_CLASSES,
    TinyFeed,
    TinyModel,
    assert_same_end,
    batch,
    lines,
    points,
    read_state,
    tiny_config,
    train_some,
)
from tnt_jax import workdir as workdirs
from tnt_jax.training import checkpoints, loop, preemption, setup
from tnt_jax.training.errors import CannotStart, RunError
from tnt_jax.training.state import unreplicate

NAMES = "scanned", "unrolled"
INTERVALS = {"log_every_steps": 3, "checkpoint_every_steps": 4, "eval_every_steps": 10, "keep_checkpoints": 2}


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    """The model here has no formula for its multiply-adds."""
    monkeypatch.setattr(setup, "multiply_adds", lambda model: 1000)


def make_run(workdir, feed=None, **changes):
    config = tiny_config(**INTERVALS | changes)
    run = setup.prepare(config, workdir, feed or TinyFeed(config))
    return dataclasses.replace(run, model=TinyModel())


def tiny_parameters(weights, model):
    """In place of pretrained.load.fit, for TinyModel."""
    assert isinstance(model, TinyModel)
    return flax.traverse_util.unflatten_dict(weights.arrays, sep="/")


class Killed(Exception):
    """The process ends here."""


class DyingFeed(TinyFeed):
    """Ends the process when it is asked for its n-th batch."""

    def __init__(self, config, batches):
        super().__init__(config)
        self.batches = batches

    def train(self, start_step):
        for count, made in enumerate(super().train(start_step)):
            if count == self.batches:
                raise Killed
            yield made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 20 steps that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "multiply_adds", lambda model: 1000)
        summary = loop.train(make_run(workdir))
    return workdir, summary


def test_summary_has_its_keys_and_the_accuracy_is_learnt(finished):
    workdir, summary = finished
    assert set(summary) == {
        "parameters", "steps", "seconds", "images_per_second", "eval", "eval_ema", "best", "config", "versions"
    }  # fmt: skip
    assert summary == json.loads((workdir / "summary.json").read_text())
    for name in ("eval", "eval_ema"):
        assert set(summary[name]) == {"accuracy", "accuracy_top5", "loss", "count"}
        assert summary[name]["count"] == TinyFeed.eval_examples
        assert summary[name]["accuracy_top5"] == 1.0  # four classes
    assert summary["steps"] == 20 and summary["images_per_second"] > 0
    assert summary[summary["best"]]["accuracy"] > 0.5  # of four classes
    assert summary["config"]["model"]["patch_size"] == 4 and summary["versions"]["jax"] == jax.__version__


def test_scanned_runs_have_checkpoints_block_by_block_and_go_on_unrolled_and_back(tmp_path, monkeypatch):
    """Blocks are stacked on the devices alone."""
    trained, make = [], loop.steps.make_train_step

    def spied(*args, **options):
        step = make(*args, **options)

        def noted(state, batch):
            trained.append(jax.tree.map(jax.typeof, state))
            return step(state, batch)

        noted.lower = step.lower
        return noted

    monkeypatch.setattr(loop.steps, "make_train_step", spied)
    for name, scans in zip(NAMES, ((True, False), (False, True)), strict=True):
        for scan, steps in zip(scans, (4, 8), strict=True):
            changes = {"model__depth": 3, "model__drop_path_rate": 0.2, "model__scan": scan, "steps": steps}
            config = tiny_config(**INTERVALS | changes)
            loop.train(setup.prepare(config, tmp_path / name, TinyFeed(config)))
    (state, _), (expected, _) = (read_state(tmp_path / name, 4) for name in NAMES)
    assert {"block_1", "block_2", "block_3"} < set(state["params"])
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()), state, expected)
    scanned, unrolled = trained[0], trained[4]  # both moments and both kinds of weights
    assert {leaf.shape[1] for leaf in jax.tree.leaves(scanned.params["blocks_1_3"])} == {3}
    assert "block_1" not in scanned.params and "block_1" in unrolled.params
    assert len(jax.tree.leaves(scanned)) < len(jax.tree.leaves(unrolled))
    assert set(scanned.ema_params) == set(scanned.params)
    ours, others = ({each["step"]: each.get("train/loss") for each in lines(tmp_path / name)} for name in NAMES)
    np.testing.assert_allclose(ours[6], others[6], rtol=1e-4)


def test_files_of_a_run(finished):
    workdir, _ = finished
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["num_classes"] == NUM_CLASSES  # what was None is filled in
    assert None not in config["model"].values()
    assert "kernel" in (workdir / "parameters.txt").read_text()
    assert list(workdir.glob("events.out.tfevents.*"))


def test_lines_and_checkpoints_come_at_their_own_intervals(finished):
    workdir, _ = finished
    trained = [line["step"] for line in lines(workdir) if "train/loss" in line]
    evaluated = [line["step"] for line in lines(workdir) if "eval/accuracy" in line]
    assert trained == [3, 6, 9, 12, 15, 18, 20]
    assert evaluated == [10, 20]
    assert set(lines(workdir)[1]) >= {
        "train/loss", "train/accuracy", "train/learning_rate", "train/gradient_norm", "train/images_per_second",
        "train/images_per_second_per_device", "train/input_wait_share", "train/host_memory_gb",
    }  # fmt: skip
    kept = workdirs.checkpoint_steps(workdir)
    assert kept[-2:] == [16, 20] and len(kept) <= 3


@pytest.mark.parametrize("batches", [2, 7, 14])
def test_a_run_that_was_stopped_ends_with_the_same_bits(finished, tmp_path, batches):
    workdir, summary = finished
    config = tiny_config(**INTERVALS)
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingFeed(config, batches)))
    feed = TinyFeed(config)
    again = loop.train(make_run(tmp_path, feed))
    assert feed.started == [max([0, *(step for step in (4, 8, 10, 12) if step < batches - 1)])]
    assert_same_end(tmp_path, workdir)
    assert again["eval"] == summary["eval"] and again["eval_ema"] == summary["eval_ema"]


class SignalledFeed(TinyFeed):
    """Sends this process a signal while the batch of a step, or a batch of the n-th evaluation, is made."""

    def __init__(self, config, number, step=None, evaluation=None):
        super().__init__(config)
        self.number, self.step, self.at_evaluation, self.evaluations = number, step, evaluation, 0

    def train(self, start_step):
        for step, made in enumerate(super().train(start_step), start_step + 1):
            if step == self.step:
                signal.raise_signal(self.number)
            yield made

    def evaluation(self):
        self.evaluations += 1
        for batch_number, made in enumerate(super().evaluation()):
            if self.evaluations == self.at_evaluation and batch_number == 2:
                signal.raise_signal(self.number)
            yield made


@pytest.mark.parametrize(
    ("at", "saved_step", "due"),
    [
        ({"step": 7}, 6, False),  # prefetched one batch ahead
        ({"step": 11}, 10, True),  # the step is saved before the evaluation that follows it
        ({"evaluation": 1}, 10, True),  # in the middle of one
        ({"step": 9}, 8, False),  # where a checkpoint is due anyway
        ({"evaluation": 2}, 20, True),  # the very last one
    ],
)
def test_a_signal_saves_the_step_under_way_and_the_same_command_goes_on(finished, tmp_path, at, saved_step, due):
    config = tiny_config(**INTERVALS)
    number = signal.SIGINT if at == {"step": 7} else signal.SIGTERM
    before = signal.getsignal(number)
    with pytest.raises(loop.Stopped) as caught:
        loop.train(make_run(tmp_path, SignalledFeed(config, number, **at)))
    assert caught.value.signal == number and signal.getsignal(number) == before
    assert f"after step {saved_step}, which is saved in {tmp_path / 'checkpoints' / str(saved_step)}" in str(
        caught.value
    )
    assert workdirs.checkpoint_steps(tmp_path)[-1] == saved_step
    assert read_state(tmp_path)[1]["evaluation_due"] == due
    feed = TinyFeed(config)
    loop.train(make_run(tmp_path, feed))
    assert feed.started == ([saved_step] if saved_step < 20 else [])
    assert_same_end(tmp_path, finished[0])


def test_an_evaluation_that_was_due_is_made_up_for_however_often_it_is_stopped(finished, tmp_path):
    config = tiny_config(**INTERVALS)
    for at in ({"evaluation": 1}, {"evaluation": 1}, {"step": 13}):
        with pytest.raises(loop.Stopped):
            loop.train(make_run(tmp_path, SignalledFeed(config, signal.SIGTERM, **at)))
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingFeed(config, 4)))
    loop.train(make_run(tmp_path))
    assert_same_end(tmp_path, finished[0])


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({}, None),
        ({"device_count": 4}, "Note: 4 x cpu in 1 process then, 8 x cpu in 1 process now. "),
        ({"process_count": 2}, "Note: 8 x cpu in 2 processes then, 8 x cpu in 1 process now. "),
        ({"device_kind": "TPU v4"}, "Note: 8 x TPU v4 in 1 process then, 8 x cpu in 1 process now. "),
        ({"train_examples": 1000}, "had 1,000 examples then and has 80 now"),
    ],
)
def test_going_on_elsewhere_is_allowed_and_said(tmp_path, capsys, there, words):
    config = tiny_config(**INTERVALS)
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingFeed(config, 6)))
    store = checkpoints.Checkpoints(tmp_path, keep=2)
    store.restore_newest(unreplicate(train_some(make_run(tmp_path).experiment, [])[0]))
    store.amend(4, there, None, scheduled=True)
    store.close()
    assert loop.train(make_run(tmp_path))["steps"] == 20
    said = capsys.readouterr().out
    assert "Going on from step 4" in said
    assert words in said if words else "Note" not in said
    assert ("not bit for bit" in said) == (
        not there.keys().isdisjoint(("device_count", "process_count", "device_kind"))
    )
    assert ("mixed with other images" in said) == ("process_count" in there)


def test_a_finished_run_is_not_trained_again(finished, capsys):
    """The same command after the end changes nothing: no file, no time, no byte."""
    workdir, summary = finished
    before = contents(workdir)
    config = tiny_config(**INTERVALS)
    feed = TinyFeed(config)
    assert loop.train(make_run(workdir, feed)) == summary
    assert feed.started == [] and contents(workdir) == before
    said = capsys.readouterr().out
    assert "All 20 steps are done." in said and "test accuracy" in said


def contents(workdir):
    files = (path for path in workdir.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("summary", ['{"steps": 20', None, "{}"])
def test_a_run_whose_summary_is_torn_or_absent_writes_it_at_the_next_start(finished, tmp_path, summary):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "summary.json"
    path.unlink() if summary is None else path.write_text(summary)
    again = loop.train(make_run(tmp_path / "run"))
    assert again["eval"] == finished[1]["eval"] == json.loads(path.read_text())["eval"]


def test_more_steps_than_a_finished_run_had_are_allowed_with_a_note(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "run")
    assert loop.train(make_run(tmp_path / "run", steps=22))["steps"] == 22
    said = capsys.readouterr().out
    assert "the run had ended there and goes on to step 22" in said and "stays that of 4 + 0 epochs" in said
    with pytest.raises(ValueError, match=r"epochs \(4.0 there, 6.0 now\).*another schedule.*--config.pretrained="):
        make_run(tmp_path / "run", epochs=6.0)


def test_a_second_run_in_the_same_workdir_is_refused_and_the_first_goes_on(finished, tmp_path):
    class SecondFeed(TinyFeed):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                if step == 9:
                    with pytest.raises(
                        CannotStart, match=rf"Process {os.getpid()} on .* trains in --workdir={tmp_path}"
                    ):
                        loop.train(make_run(tmp_path))
                yield made

    loop.train(make_run(tmp_path, SecondFeed(tiny_config(**INTERVALS))))
    assert_same_end(tmp_path, finished[0])
    assert CannotStart.code == 2


class RemovingFeed(TinyFeed):
    """Somebody removes a file, or a folder, while a batch is made."""

    def __init__(self, config, path):
        super().__init__(config)
        self.path = path

    def _remove(self):
        """Again where a checkpoint is being written into the folder meanwhile."""
        for _ in range(50):
            try:
                return shutil.rmtree(self.path) if self.path.is_dir() else self.path.unlink()
            except OSError:
                time.sleep(0.05)
        raise AssertionError(f"{self.path} could not be removed")

    def train(self, start_step):
        for step, made in enumerate(super().train(start_step), start_step):
            if step == 9:
                self._remove()
            yield made


@pytest.mark.parametrize("name", ["", "config.json", "metrics.jsonl"])
def test_what_is_removed_while_the_run_goes_on_is_said_and_the_run_can_be_read(
    finished, tmp_path, name, capsys, monkeypatch
):
    monkeypatch.setattr(loop, "fit", tiny_parameters)
    workdir = tmp_path / "run"
    try:
        loop.train(make_run(workdir, RemovingFeed(tiny_config(**INTERVALS), workdir / name)))
    except RunError as error:  # where a checkpoint was being written
        assert name == "" and "could not be written" in str(error)
        return
    said = capsys.readouterr().out
    assert (f"{workdir / 'config.json'} was gone" in said) == (name != "metrics.jsonl")
    assert (f"{workdir / 'metrics.jsonl'} was gone" in said) == (name != "config.json")
    assert json.loads((workdir / "config.json").read_text()) == json.loads((finished[0] / "config.json").read_text())
    assert json.loads((workdir / "classes.json").read_text()) == list(TinyFeed.class_names)
    run = setup.prepare_evaluation(None, workdir, TinyFeed(tiny_config(**INTERVALS)))
    assert loop.evaluate(dataclasses.replace(run, model=TinyModel()))["eval"] == finished[1]["eval"]
    assert lines(workdir)[-1]["step"] == 20


def test_evaluating_a_damaged_checkpoint_stops_with_a_message(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    for file in (tmp_path / "run" / "checkpoints" / "20" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    run = setup.prepare_evaluation(None, tmp_path / "run", TinyFeed(tiny_config(**INTERVALS)))
    with pytest.raises(RunError, match=r"checkpoints/20 is damaged: .* The one before it is .*checkpoints/16"):
        loop.evaluate(dataclasses.replace(run, model=TinyModel()))


def test_memory_that_does_not_suffice_in_evaluation_is_said(finished, monkeypatch):
    monkeypatch.setattr(loop, "fit", tiny_parameters)

    class LargeFeed(TinyFeed):
        def evaluation(self):
            raise MemoryError("Out of memory allocating 99 bytes")
            yield

    run = setup.prepare_evaluation(None, finished[0], LargeFeed(tiny_config(**INTERVALS)))
    with pytest.raises(RunError, match=r"Out of memory allocating 99 bytes.*config\.eval_batch_size"):
        loop.evaluate(dataclasses.replace(run, model=TinyModel()))


def test_the_start_says_the_images_and_every_line_its_epoch_and_seconds(finished, tmp_path, capsys):
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingFeed(tiny_config(**INTERVALS), 6)))
    said = capsys.readouterr().out
    assert "80 images to train (train), 35 to evaluate (validation), 4 classes" in said
    assert "20 steps of 16 images (5 an epoch)" in said
    found = lines(finished[0])
    assert all(line["epoch"] == line["step"] / 5 for line in found)
    assert sorted(line["seconds"] for line in found) == [line["seconds"] for line in found] and found[0]["seconds"] > 0
    assert points(finished[0])["config", 0] == 1


def test_a_loss_that_is_not_a_number_stops_the_run_and_is_not_saved(tmp_path):
    config = tiny_config(**INTERVALS)
    with pytest.raises(RunError) as caught:
        loop.train(make_run(tmp_path, TinyFeed(config, spoil_step=7)))
    assert "Step 8" in str(caught.value)
    assert f"--config.pretrained={tmp_path / 'checkpoints' / '4'} --workdir=" in str(caught.value)
    assert workdirs.checkpoint_steps(tmp_path) == [4]
    assert all(line["step"] < 8 for line in lines(tmp_path))
    assert loop.train(make_run(tmp_path))["steps"] == 20  # and it goes on from there


def test_the_batch_of_a_step_that_is_not_finite_is_named(tmp_path):
    config = tiny_config(**INTERVALS)
    with pytest.raises(RunError, match=r"nonfinite_8\.json"):
        loop.train(make_run(tmp_path, TinyFeed(config, spoil_step=7)))
    saved = json.loads((tmp_path / "nonfinite_8.json").read_text())
    assert saved["indices"] == batch((1, 7))["index"].ravel().tolist()
    assert saved["step"] == 8 and saved["loss"] == "nan" and saved["split"] == "train"


def test_skipped_steps_leave_the_weights_and_are_counted(tmp_path, capsys):
    config = tiny_config(**INTERVALS)
    run = make_run(tmp_path, TinyFeed(config, spoil_step=7), nonfinite="skip")
    summary = loop.train(run)
    assert summary["steps"] == 20 and summary["eval"]["accuracy"] > 0.5
    skipped = {line["step"]: line["train/skipped_steps"] for line in lines(tmp_path) if "train/loss" in line}
    assert skipped == {3: 0, 6: 0, 9: 1, 12: 0, 15: 0, 18: 0, 20: 0}
    assert all(np.isfinite(line["train/loss"]) for line in lines(tmp_path) if "train/loss" in line)
    assert "Step 8: " in capsys.readouterr().out and (tmp_path / "nonfinite_8.json").exists()


def test_too_many_skipped_steps_in_a_row_end_the_run_also_over_a_restart(tmp_path):
    class SpoiltFeed(TinyFeed):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                yield made | {"mask": made["mask"] * (np.nan if step >= 6 else 1)}  # from the seventh step on

    changes = {"nonfinite": "skip", "nonfinite_limit": 6}
    config = tiny_config(**INTERVALS | changes)
    with pytest.raises(RunError, match="Step 12: .*the last of 6 in a row"):
        loop.train(make_run(tmp_path, SpoiltFeed(config), **changes))
    assert workdirs.checkpoint_steps(tmp_path)[-1] == 10  # four of them were before it
    with pytest.raises(RunError, match="Step 12: .*the last of 6 in a row"):
        loop.train(make_run(tmp_path, SpoiltFeed(config), **changes))
    trained = [line for line in lines(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in trained] == [3, 6, 9]
    assert trained[-1]["train/loss"] is None and trained[-1]["train/skipped_steps"] == 3
    assert loop.train(make_run(tmp_path, **changes))["steps"] == 20  # with sound data it goes on


def test_a_bad_example_stops_the_run_with_its_message(tmp_path, monkeypatch):
    class BadFeed(TinyFeed):
        def train(self, start_step):
            yield from (made for made, _ in zip(super().train(start_step), range(8), strict=False))
            raise ValueError("example 3 of train cannot be read")

        def evaluation(self):
            raise FileNotFoundError("test.tfrecord is missing")
            yield

    config = tiny_config(**INTERVALS)
    with pytest.raises(RunError, match="example 3 of train cannot be read"):
        loop.train(make_run(tmp_path, BadFeed(config)))
    monkeypatch.setattr(loop, "fit", tiny_parameters)
    run = setup.prepare_evaluation(None, tmp_path, BadFeed(config))
    with pytest.raises(RunError, match=r"test\.tfrecord is missing"):
        loop.evaluate(dataclasses.replace(run, model=TinyModel()))


def test_a_ruined_update_is_not_saved(tmp_path):
    """The rate is so large that only the updated weights show it: at step 1 the loss and the gradient are sound."""
    run = make_run(tmp_path, learning_rate=1e30, schedule="constant", warmup_epochs=0.0, checkpoint_every_steps=1)
    with pytest.raises(RunError, match=r"Step 1: .*updated weights.*There is no checkpoint yet"):
        loop.train(run)
    assert workdirs.checkpoint_steps(tmp_path) == []


def test_a_step_is_under_way_while_the_last_one_is_read(tmp_path, monkeypatch):
    events = []
    run = make_run(tmp_path, checkpoint_every_steps=100, eval_every_steps=100, steps=4)
    original = loop.steps.make_train_step

    def make(*args, **options):
        step = original(*args, **options)

        def recorded(state, batch):
            events.append("dispatch")
            return step(state, batch)

        recorded.lower = step.lower
        return recorded

    report_step = loop._report
    monkeypatch.setattr(loop.steps, "make_train_step", make)
    monkeypatch.setattr(loop, "_report", lambda *args: (events.append(args[1]), report_step(*args)))
    loop.train(run)
    assert events == ["dispatch", "dispatch", 1, "dispatch", 2, "dispatch", 3, 4]


def test_evaluating_a_workdir_gives_what_training_saw(finished, capsys, monkeypatch):
    workdir, summary = finished
    monkeypatch.setattr(loop, "fit", tiny_parameters)
    run = setup.prepare_evaluation(None, workdir, TinyFeed(tiny_config(**INTERVALS)))
    outcome = loop.evaluate(dataclasses.replace(run, model=TinyModel()))
    assert outcome["eval"] == summary["eval"] and outcome["eval_ema"] == summary["eval_ema"] and outcome["step"] == 20
    assert json.loads((workdir / "evaluation.json").read_text()) == outcome and outcome["best"] == summary["best"]
    assert "35 images" in capsys.readouterr().out


def test_evaluating_a_model_that_is_not_the_checkpoints_ends_the_run_with_the_difference(finished):
    """Here config.json's TNT against TinyModel's parameters."""
    run = setup.prepare_evaluation(None, finished[0], TinyFeed(tiny_config(**INTERVALS)))
    with pytest.raises(
        RunError, match=r"(?s)raw weights of step 20 does not fit.*unused .*config\.json .* was it edited"
    ):
        loop.evaluate(run)


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    config = tiny_config(**INTERVALS)
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingFeed(config, 10)))
    newest = workdirs.checkpoint_steps(tmp_path)[-1]
    assert newest == 8
    for file in (tmp_path / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    feed = TinyFeed(config)
    assert loop.train(make_run(tmp_path, feed))["steps"] == 20
    assert feed.started == [4]
    assert (tmp_path / "damaged_checkpoints" / "8-1").is_dir()


FULL = ("the disk is full", "No space left")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tnt_jax_test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root, on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(finished, small_disk):
    workdir, config = small_disk / "run", tiny_config(**INTERVALS)

    class FillingFeed(TinyFeed):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                if step == 9:
                    with contextlib.suppress(OSError):
                        (small_disk / "other").write_bytes(bytes(10**6))
                yield made

    with pytest.raises(RunError) as caught:
        loop.train(make_run(workdir, FillingFeed(config)))
    assert any(words in str(caught.value) for words in FULL), str(caught.value)
    kept = workdirs.checkpoint_steps(workdir)
    assert kept and kept[-1] in (4, 8)
    with pytest.raises(PermissionError, match="not writable .No space left"):  # the next start does not get far
        loop.train(make_run(workdir))
    assert workdirs.checkpoint_steps(workdir) == kept
    (small_disk / "other").unlink()
    loop.train(make_run(workdir))
    assert_same_end(workdir, finished[0])


def test_a_workdir_that_is_taken_away_ends_the_run_with_a_message(small_disk):
    workdir, config = small_disk / "run", tiny_config(**INTERVALS)

    class LosingFeed(TinyFeed):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                if step == 9:
                    subprocess.run(["umount", "--lazy", str(small_disk)], check=True)
                    small_disk.rename(small_disk.with_name("gone"))
                    small_disk.write_text("a file where the folder was")
                yield made

    with pytest.raises(RunError, match="could not be written|cannot be written any more"):
        loop.train(make_run(workdir, LosingFeed(config)))
    small_disk.unlink()
    small_disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tnt_jax_test", str(small_disk)], check=True)  # for the fixture to unmount


def test_weights_to_start_from_are_loaded(finished, tmp_path):
    """`pretrained` names a workdir: its averaged weights, as load_pretrained gives them, are those of step 0."""
    workdir, _ = finished
    weights, _ = workdirs.read_weights(workdir)
    run = make_run(tmp_path)
    run = dataclasses.replace(run, pretrained=weights["ema_params"], pretrained_label="averaged weights of a")
    with loop._enter_workdir(run) as held:
        state, session = loop._start(run, preemption.Notice(), held, 0.0)
    session.store.close()
    jax.tree.map(np.testing.assert_array_equal, state.params, weights["ema_params"])
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, weights["ema_params"])
    assert int(state.step) == 0
