"""Runs that were stopped, killed, disturbed or moved, and resumed."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time

import pytest

from tests.training.helpers import (
    TinyModel,
    TinyPipeline,
    assert_same_end,
    lines,
    points,
    read_state,
    tiny_config,
    train_some,
)
from tests.training.runs import INTERVALS, DyingPipeline, Killed, make_run, tiny_parameters
from tnt_jax import workdir as workdirs
from tnt_jax.training import checkpoints, evaluate, logging, loop, runtime, setup
from tnt_jax.training.config import as_dict
from tnt_jax.training.runtime import CannotStart, RunError
from tnt_jax.training.state import unreplicate

pytestmark = pytest.mark.usefixtures("stand_in")


@pytest.mark.parametrize("batches", [2, 7, 14])
def test_a_run_that_was_stopped_ends_with_the_same_bits(finished, tmp_path, batches):
    workdir, summary = finished
    config = tiny_config(**INTERVALS)
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingPipeline(config, batches)))
    pipeline = TinyPipeline(config)
    again = loop.train(make_run(tmp_path, pipeline))
    assert pipeline.started == [max([0, *(step for step in (4, 8, 10, 12) if step < batches - 1)])]
    assert_same_end(tmp_path, workdir)
    assert again["eval"] == summary["eval"] and again["eval_ema"] == summary["eval_ema"]


class SignalledPipeline(TinyPipeline):
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
        ({"evaluation": 1}, 10, True),  # in the middle of an evaluation
        ({"step": 9}, 8, False),  # where a checkpoint is due anyway
        ({"evaluation": 2}, 20, True),  # the very last evaluation
    ],
)
def test_a_signal_saves_the_step_under_way_and_the_same_command_resumes(finished, tmp_path, at, saved_step, due):
    config = tiny_config(**INTERVALS)
    number = signal.SIGINT if at == {"step": 7} else signal.SIGTERM
    before = signal.getsignal(number)
    with pytest.raises(runtime.Stopped) as caught:
        loop.train(make_run(tmp_path, SignalledPipeline(config, number, **at)))
    assert caught.value.signal == number and signal.getsignal(number) == before
    assert f"after step {saved_step}, which is saved in {tmp_path / 'checkpoints' / str(saved_step)}" in str(
        caught.value
    )
    assert workdirs.checkpoint_steps(tmp_path)[-1] == saved_step
    assert read_state(tmp_path)[1]["evaluation_due"] == due
    pipeline = TinyPipeline(config)
    loop.train(make_run(tmp_path, pipeline))
    assert pipeline.started == ([saved_step] if saved_step < 20 else [])
    assert_same_end(tmp_path, finished[0])


def test_an_evaluation_that_was_due_is_made_up_for_however_often_it_is_stopped(finished, tmp_path):
    config = tiny_config(**INTERVALS)
    for at in ({"evaluation": 1}, {"evaluation": 1}, {"step": 13}):
        with pytest.raises(runtime.Stopped):
            loop.train(make_run(tmp_path, SignalledPipeline(config, signal.SIGTERM, **at)))
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingPipeline(config, 4)))
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
        ({"data_set": "small"}, "has changed (small then, tiny now)"),
    ],
)
def test_going_on_elsewhere_is_allowed_and_said(tmp_path, capsys, there, words):
    config = tiny_config(**INTERVALS)
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingPipeline(config, 6)))
    store = checkpoints.Checkpoints(tmp_path, keep=2)
    store.restore_newest(unreplicate(train_some(make_run(tmp_path).config, [])[0]))
    store.update_metadata(4, there, None, scheduled=True)
    store.close()
    assert loop.train(make_run(tmp_path))["steps"] == 20
    said = capsys.readouterr().out
    assert "Resuming from step 4" in said
    assert words in said if words else "Note" not in said
    assert ("not bit for bit" in said) == (
        not there.keys().isdisjoint(("device_count", "process_count", "device_kind"))
    )
    assert ("mixed with other images" in said) == ("process_count" in there)


def test_a_finished_run_is_not_trained_again(finished, capsys):
    """The same command after the end changes no file: no byte and no modification time."""
    workdir, summary = finished
    before = contents(workdir)
    config = tiny_config(**INTERVALS)
    pipeline = TinyPipeline(config)
    assert loop.train(make_run(workdir, pipeline)) == summary
    assert pipeline.started == [] and contents(workdir) == before
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
    assert "the run ended there and now resumes to step 22" in said and "is still that of 4 + 0 epochs" in said
    with pytest.raises(ValueError, match=r"epochs \(4.0 there, 6.0 now\).*rate schedule.*--config.pretrained="):
        make_run(tmp_path / "run", epochs=6.0)


def test_a_second_run_in_the_same_workdir_is_refused_and_the_first_goes_on(finished, tmp_path):
    class SecondPipeline(TinyPipeline):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                if step == 9:
                    with pytest.raises(
                        CannotStart, match=rf"Process {os.getpid()} on .* trains in --workdir={tmp_path}"
                    ):
                        loop.train(make_run(tmp_path))
                yield made

    loop.train(make_run(tmp_path, SecondPipeline(tiny_config(**INTERVALS))))
    assert_same_end(tmp_path, finished[0])
    assert CannotStart.code == 2


class RemovingPipeline(TinyPipeline):
    """Removes a file or a folder while a batch is made."""

    def __init__(self, config, path):
        super().__init__(config)
        self.path = path

    def _remove(self):
        """Retries while a checkpoint is being written into the folder."""
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
    monkeypatch.setattr(evaluate, "fit", tiny_parameters)
    workdir = tmp_path / "run"
    try:
        loop.train(make_run(workdir, RemovingPipeline(tiny_config(**INTERVALS), workdir / name)))
    except RunError as error:  # if a checkpoint was being written
        assert name == "" and "could not be written" in str(error)
        return
    said = capsys.readouterr().out
    assert (f"{workdir / 'config.json'} was gone" in said) == (name != "metrics.jsonl")
    assert (f"{workdir / 'metrics.jsonl'} was gone" in said) == (name != "config.json")
    assert json.loads((workdir / "config.json").read_text()) == json.loads((finished[0] / "config.json").read_text())
    assert json.loads((workdir / "classes.json").read_text()) == list(TinyPipeline.class_names)
    run = setup.prepare_evaluation(None, workdir, TinyPipeline(tiny_config(**INTERVALS)))
    assert evaluate.evaluate(dataclasses.replace(run, model=TinyModel()))["eval"] == finished[1]["eval"]
    assert lines(workdir)[-1]["step"] == 20


class EventsRemovingPipeline(RemovingPipeline):
    def _remove(self):
        for path in self.path.glob(logging.EVENT_FILES):
            path.unlink()


def test_events_that_are_removed_while_the_run_goes_on_are_said_and_begin_again(tmp_path, capsys):
    workdir = tmp_path / "run"
    loop.train(make_run(workdir, EventsRemovingPipeline(tiny_config(**INTERVALS), workdir)))
    assert f"{workdir / logging.EVENT_FILES} was gone. It starts again at step " in capsys.readouterr().out
    assert ("eval/accuracy", 20) in points(workdir) and len(list(workdir.glob(logging.EVENT_FILES))) == 1


class DamagingPipeline(RemovingPipeline):
    def _remove(self):
        self.path.write_text("{")


@pytest.mark.parametrize(
    ("kind", "name", "how"), [(DamagingPipeline, "config.json", "damaged"), (RemovingPipeline, "classes.json", "gone")]
)
def test_what_is_damaged_or_removed_alone_is_written_again(tmp_path, kind, name, how, capsys):
    path = tmp_path / "run" / name
    run = make_run(tmp_path / "run", kind(tiny_config(**INTERVALS), path))
    loop.train(run)
    assert f"Note: {path} was {how}. The files that describe the run are written again." in capsys.readouterr().out
    written = {"config.json": as_dict(run.config), "classes.json": list(TinyPipeline.class_names)}
    assert json.loads(path.read_text()) == written[name]


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    config = tiny_config(**INTERVALS)
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingPipeline(config, 10)))
    newest = workdirs.checkpoint_steps(tmp_path)[-1]
    assert newest == 8
    for file in (tmp_path / "checkpoints" / "8" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    pipeline = TinyPipeline(config)
    assert loop.train(make_run(tmp_path, pipeline))["steps"] == 20
    assert pipeline.started == [4]
    assert (tmp_path / "damaged_checkpoints" / "8-1").is_dir()


FULL = ("the disk is full", "No space left")


@pytest.fixture
def small_disk(tmp_path):
    """A separate file system of 400 kB: room for two checkpoints, or three by chance."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tnt_jax_test", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root, on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_good_checkpoint_and_says_so(finished, small_disk):
    workdir, config = small_disk / "run", tiny_config(**INTERVALS)

    class FillingPipeline(TinyPipeline):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                if step == 9:
                    with contextlib.suppress(OSError):
                        (small_disk / "other").write_bytes(bytes(10**6))
                yield made

    with pytest.raises(RunError) as caught:
        loop.train(make_run(workdir, FillingPipeline(config)))
    assert any(words in str(caught.value) for words in FULL), str(caught.value)
    kept = workdirs.checkpoint_steps(workdir)
    assert kept and kept[-1] in (4, 8)
    with pytest.raises(PermissionError, match="not writable .No space left"):  # the next start fails early
        loop.train(make_run(workdir))
    assert workdirs.checkpoint_steps(workdir) == kept
    (small_disk / "other").unlink()
    loop.train(make_run(workdir))
    assert_same_end(workdir, finished[0])


def test_a_workdir_that_is_taken_away_ends_the_run_with_a_message(tmp_path):
    place, config = tmp_path / "disk", tiny_config(**INTERVALS)
    (tmp_path / "away").mkdir()
    place.symlink_to(tmp_path / "away")

    class LosingPipeline(TinyPipeline):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                if step == 9:  # atomically: a thread that is writing recreates missing folders
                    (tmp_path / "file").write_text("a file where the folder was")
                    (tmp_path / "file").replace(place)
                yield made

    with pytest.raises(RunError, match="could not be written|can no longer be written"):
        loop.train(make_run(place / "run", LosingPipeline(config)))
    assert place.is_file()
