"""Whole runs, from the first step to the summary: their files, intervals and non-finite steps."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.training.helpers import (
    NUM_CLASSES,
    TinyModel,
    TinyPipeline,
    batch,
    lines,
    points,
    read_state,
    tiny_config,
)
from tests.training.runs import INTERVALS, DyingPipeline, Killed, make_run, tiny_parameters
from tnt_jax import workdir as workdirs
from tnt_jax.training import evaluate, loop, runtime, setup
from tnt_jax.training.runtime import RunError

pytestmark = pytest.mark.usefixtures("stand_in")


NAMES = "scanned", "unrolled"


def test_summary_has_its_keys_and_the_accuracy_is_learnt(finished):
    workdir, summary = finished
    assert set(summary) == {
        "parameters", "steps", "seconds", "images_per_second", "eval", "eval_ema", "best", "config", "versions"
    }  # fmt: skip
    assert summary == json.loads((workdir / "summary.json").read_text())
    for name in ("eval", "eval_ema"):
        assert set(summary[name]) == {"accuracy", "accuracy_top5", "balanced_accuracy", "loss", "count"}
        assert summary[name]["count"] == TinyPipeline.eval_examples
        assert summary[name]["accuracy_top5"] == 1.0  # four classes
    assert summary["steps"] == 20 and summary["images_per_second"] > 0
    assert summary[summary["best"]]["accuracy"] > 0.5  # of four classes
    assert summary["config"]["model"]["patch_size"] == 4 and summary["versions"]["jax"] == jax.__version__


def test_scanned_runs_have_checkpoints_block_by_block_and_go_on_unrolled_and_back(tmp_path, monkeypatch):
    """Blocks are stacked only on the devices."""
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
            loop.train(setup.prepare(config, tmp_path / name, TinyPipeline(config)))
    (state, _), (expected, _) = (read_state(tmp_path / name, 4) for name in NAMES)
    assert {"block_1", "block_2", "block_3"} < set(state["params"])
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()), state, expected)
    scanned, unrolled = trained[0], trained[4]  # with both moments, weights and average
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


def test_the_start_says_the_images_and_every_line_its_epoch_and_seconds(finished, tmp_path, capsys):
    with pytest.raises(Killed):
        loop.train(make_run(tmp_path, DyingPipeline(tiny_config(**INTERVALS), 6)))
    said = capsys.readouterr().out
    assert "80 images to train (train), 35 to evaluate (validation), 4 classes" in said
    assert "20 steps of 16 images (5 per epoch)" in said
    assert said.count("Compiling the training step once") == said.count("A training step needs ") == 1
    found = lines(finished[0])
    assert all(line["epoch"] == line["step"] / 5 for line in found)
    assert sorted(line["seconds"] for line in found) == [line["seconds"] for line in found] and found[0]["seconds"] > 0
    assert points(finished[0])["config", 0] == 1


def test_a_loss_that_is_not_a_number_stops_the_run_and_is_not_saved(tmp_path):
    config = tiny_config(**INTERVALS)
    with pytest.raises(RunError) as caught:
        loop.train(make_run(tmp_path, TinyPipeline(config, spoil_step=7)))
    assert "Step 8" in str(caught.value)
    assert f"--config.pretrained={tmp_path / 'checkpoints' / '4'} --workdir=" in str(caught.value)
    assert workdirs.checkpoint_steps(tmp_path) == [4]
    assert all(line["step"] < 8 for line in lines(tmp_path))
    assert loop.train(make_run(tmp_path))["steps"] == 20  # and it resumes from there


def test_the_batch_of_a_step_that_is_not_finite_is_named(tmp_path):
    config = tiny_config(**INTERVALS)
    with pytest.raises(RunError, match=r"nonfinite_8\.json"):
        loop.train(make_run(tmp_path, TinyPipeline(config, spoil_step=7)))
    saved = json.loads((tmp_path / "nonfinite_8.json").read_text())
    assert saved["indices"] == batch((1, 7))["index"].ravel().tolist()
    assert saved["step"] == 8 and saved["loss"] == "nan" and saved["split"] == "train"


def test_skipped_steps_leave_the_weights_and_are_counted(tmp_path, capsys):
    config = tiny_config(**INTERVALS)
    run = make_run(tmp_path, TinyPipeline(config, spoil_step=7), nonfinite="skip")
    summary = loop.train(run)
    assert summary["steps"] == 20 and summary["eval"]["accuracy"] > 0.5
    skipped = {line["step"]: line["train/skipped_steps"] for line in lines(tmp_path) if "train/loss" in line}
    assert skipped == {3: 0, 6: 0, 9: 1, 12: 0, 15: 0, 18: 0, 20: 0}
    assert all(np.isfinite(line["train/loss"]) for line in lines(tmp_path) if "train/loss" in line)
    assert "Step 8: " in capsys.readouterr().out and (tmp_path / "nonfinite_8.json").exists()


def test_too_many_skipped_steps_in_a_row_end_the_run_also_over_a_restart(tmp_path):
    class SpoiltPipeline(TinyPipeline):
        def train(self, start_step):
            for step, made in enumerate(super().train(start_step), start_step):
                yield made | {"mask": made["mask"] * (np.nan if step >= 6 else 1)}  # from the seventh step on

    changes = {"nonfinite": "skip", "nonfinite_limit": 6}
    config = tiny_config(**INTERVALS | changes)
    with pytest.raises(RunError, match="Step 12: .*the last of 6 in a row"):
        loop.train(make_run(tmp_path, SpoiltPipeline(config), **changes))
    assert workdirs.checkpoint_steps(tmp_path)[-1] == 10  # four of the six came before it
    with pytest.raises(RunError, match="Step 12: .*the last of 6 in a row"):
        loop.train(make_run(tmp_path, SpoiltPipeline(config), **changes))
    trained = [line for line in lines(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in trained] == [3, 6, 9]
    assert trained[-1]["train/loss"] is None and trained[-1]["train/skipped_steps"] == 3
    assert loop.train(make_run(tmp_path, **changes))["steps"] == 20  # with sound data it resumes


def test_a_bad_example_stops_the_run_with_its_message(tmp_path, monkeypatch):
    class BadPipeline(TinyPipeline):
        def train(self, start_step):
            yield from (made for made, _ in zip(super().train(start_step), range(8), strict=False))
            raise ValueError("example 3 of train cannot be read")

        def evaluation(self):
            raise FileNotFoundError("test.tfrecord is missing")
            yield

    config = tiny_config(**INTERVALS)
    with pytest.raises(RunError, match="example 3 of train cannot be read"):
        loop.train(make_run(tmp_path, BadPipeline(config)))
    monkeypatch.setattr(evaluate, "fit", tiny_parameters)
    run = setup.prepare_evaluation(None, tmp_path, BadPipeline(config))
    with pytest.raises(RunError, match=r"test\.tfrecord is missing"):
        evaluate.evaluate(dataclasses.replace(run, model=TinyModel()))


def test_a_ruined_update_is_not_saved(tmp_path):
    """The learning rate is huge: in step 1 the loss and the gradient are finite, only the updated weights are not."""
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

    report_step = loop.Trainer._report
    monkeypatch.setattr(loop.steps, "make_train_step", make)
    monkeypatch.setattr(loop.Trainer, "_report", lambda *args: (events.append(args[1]), report_step(*args)))
    loop.train(run)
    assert events == ["dispatch", "dispatch", 1, "dispatch", 2, "dispatch", 3, 4]


def test_weights_to_start_from_are_loaded(finished, tmp_path):
    """`pretrained` names a workdir: step 0 has its averaged weights, as load_pretrained returns them."""
    workdir, _ = finished
    weights, _ = workdirs.read_weights(workdir)
    run = make_run(tmp_path)
    run = dataclasses.replace(run, pretrained=weights["ema_params"], pretrained_label="averaged weights of a")
    with loop.enter_workdir(run) as lock:
        trainer = loop.Trainer(run, runtime.PreemptionGuard(), lock, started=0.0)
        trainer.close()
    state = trainer.state
    jax.tree.map(np.testing.assert_array_equal, state.params, weights["ema_params"])
    jax.tree.map(np.testing.assert_array_equal, state.ema_params, weights["ema_params"])
    assert int(state.step) == 0


def test_with_several_processes_a_full_disk_ends_this_one_with_its_message(tmp_path, monkeypatch, capsys):
    """At once, in place of a cleanup that would wait for the others."""

    def left(code):
        raise SystemExit(code)

    def full(trainer):
        monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
        raise OSError("No space left on device")

    monkeypatch.setattr(runtime, "leave", left)
    monkeypatch.setattr(loop.Trainer, "train", full)
    with pytest.raises(SystemExit) as ended:
        loop.train(make_run(tmp_path))
    said = capsys.readouterr().err
    assert ended.value.code == RunError.code and "can no longer be written: No space left" in said
    assert "another process" not in said and "Traceback" not in said
