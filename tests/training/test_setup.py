"""Impossible configs are refused before anything is written; run length; batch sizes that devices can divide."""

import json
import re
import shutil
import subprocess

import pytest

from tests.training.helpers import TinyPipeline, checked_config, tiny_config
from tnt_jax.training import setup
from tnt_jax.training.setup import check_devices, make_plan


def prepare(workdir, **changes):
    config = tiny_config(**changes)
    return setup.prepare(config, workdir, TinyPipeline(config))


def pretend_run(workdir, **changes):
    """Makes the workdir look as if a run had saved step 5."""
    run = prepare(workdir, **changes)
    (workdir / "checkpoints" / "5").mkdir(parents=True)
    (workdir / "config.json").write_text(json.dumps(setup.as_dict(run.config)))


def test_nothing_is_written(tmp_path):
    prepare(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model__name": "tnt_x_patch16_224"}, ValueError, ["tnt_x_patch16_224", "did you mean"]),
        ({"model__name": "tnt"}, ValueError, ["config.model.name=tnt", "there is no model"]),
        ({"batch_size": 24, "accumulation_steps": 2}, ValueError, ["config.accumulation_steps=2", "16 or 32"]),
        ({"model__outer_dim": 2**16, "model__depth": 1000}, ValueError, ["outer_dim=65536", "GiB on each device"]),
        ({"model__image_size": 2**14}, ValueError, ["image_size=16384", "GiB on each device"]),
        ({"pretrained": "x" * 5000}, FileNotFoundError, ["config.pretrained='xxx", "no such file"]),
        ({"model__image_size": 225}, ValueError, ["225", "patch_size=4", "224"]),
        ({"model__word_size": 3}, ValueError, ["word_size=3", "patch_size=4"]),
        ({"model__inner_num_heads": 3}, ValueError, ["inner_dim=2", "inner_num_heads=3"]),
        ({"model__tnt_blocks": (1, 13)}, ValueError, ["tnt_blocks", "13"]),
        ({"batch_size": 20}, ValueError, ["batch_size=20", "8 devices", "16 or 24"]),
        ({"eval_batch_size": 20}, ValueError, ["eval_batch_size=20", "8 devices"]),
        ({"model__num_classes": 3}, ValueError, ["num_classes=3", "4 classes"]),
        ({"pretrained": "nowhere.safetensors"}, FileNotFoundError, ["nowhere.safetensors", "hf-hub:"]),
    ],
)
def test_impossible_configurations(tmp_path, changes, kind, words):
    with pytest.raises(kind) as caught:
        prepare(tmp_path / "run", **changes)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_that_is_not_there(tmp_path):
    config = tiny_config(data__name="folder", data__directory=str(tmp_path / "nowhere"))
    with pytest.raises((FileNotFoundError, ValueError), match="nowhere"):
        setup.prepare(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("split", ["testt", "test[", "test[:0%]"])
@pytest.mark.parametrize("key", ["train_split", "eval_split"])
def test_a_split_that_is_not_there(tmp_path, key, split):
    config = tiny_config(data__name="synthetic", **{f"data__{key}": split})
    with pytest.raises(ValueError, match=f"config.data.{key}: .*{re.escape(split)}"):
        setup.prepare(config, tmp_path / "run")


def test_weights_that_cannot_be_read_name_the_key(tmp_path):
    (tmp_path / "empty.safetensors").write_text("")
    with pytest.raises(ValueError, match="config.pretrained=.*empty.safetensors: "):
        prepare(tmp_path / "run", pretrained=str(tmp_path / "empty.safetensors"))


@pytest.mark.parametrize("workdir", ["", "gs://bucket/run"])
def test_workdirs_that_are_no_folder(workdir):
    with pytest.raises(ValueError, match="--workdir"):
        setup.check_workdir(workdir)


@pytest.mark.parametrize(
    ("workdir", "words"),
    [
        ("runs/lr[3e-4]", r"a path with \[ or \] would be read as a pattern"),
        ("runs/a*", r"with \*"),
        ("runs/what?", r"with \?"),
        ("C:\\runs", r"with \\"),
        ("x" * 256, "here are 256 and"),
        ("漢" * 90, "here are 270 and"),
        ("/".join(["long"] * 800), "a path 3,584"),
        ("~nosuchuser/run", "no user of that name"),
        ("runs/\udcff", r"'\\udcff' cannot be in a path"),
        ("runs/two\nlines", r"'\\n' cannot be in a path"),
        ("runs/\x1b[31m", r"'\\x1b' cannot"),
    ],
)
def test_names_in_which_nothing_could_be_read_again(tmp_path, monkeypatch, workdir, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--workdir=.*{words}"):
        setup.check_workdir(workdir)
    assert list(tmp_path.iterdir()) == []


def test_links_that_lead_nowhere(tmp_path):
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "there").mkdir()
    (tmp_path / "good").symlink_to("there")
    for name in ("dangling", "dangling/run", "loop", "loop/run"):
        with pytest.raises(ValueError, match="is a link to (nowhere|loop), which is not there"):
            setup.check_workdir(tmp_path / name)
    assert setup.check_workdir(tmp_path / "good" / "run") == tmp_path / "good" / "run"


def test_a_file_in_place_of_the_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        setup.check_workdir(tmp_path / "file" / "run")


@pytest.mark.parametrize("options", ["ro", "size=8k"])
def test_a_read_only_and_a_full_workdir(tmp_path, options):
    """Root ignores file permissions, so this test mounts file systems."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tnt_jax_test", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root, on Linux")
    try:
        if options != "ro":
            (tmp_path / "other").write_bytes(bytes(8192))
        words = "Read-only file system" if options == "ro" else "No space left on device"
        with pytest.raises(PermissionError, match=f"{tmp_path} is not writable .{words}"):
            setup.check_workdir(tmp_path / "run")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("photos", "{here}/photos"), ("~/photos", "{home}/photos"), ("", ""), ("gs://bucket/data", "gs://bucket/data")],
)
def test_a_run_keeps_the_whole_path_of_its_data(tmp_path, monkeypatch, given, kept):
    """config.json may later be read from another working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    run = prepare(tmp_path / "run", data__directory=given)
    assert run.config.data.directory == kept.format(here=tmp_path, home="/home/somebody")


def test_an_unwritable_workdir():
    """Nobody can create files in /proc, not even root, whatever its permissions."""
    with pytest.raises(PermissionError, match="--workdir=/proc/run: /proc is not writable"):
        setup.check_workdir("/proc/run")


def test_another_model_in_the_workdir_is_refused_with_the_keys(tmp_path):
    pretend_run(tmp_path)
    with pytest.raises(ValueError) as caught:
        prepare(tmp_path, model__outer_dim=8, weight_decay=0.1)
    assert "model.outer_dim (4 there, 8 now)" in str(caught.value)
    assert "weight_decay (0.05 there, 0.1 now)" in str(caught.value)
    assert "--config.pretrained=" in str(caught.value)


def test_keys_that_change_no_result_may_change(tmp_path):
    pretend_run(tmp_path)
    prepare(tmp_path, steps=30, log_every_steps=1, eval_batch_size=8, model__scan=True, data__worker_processes=2)


def test_checkpoints_without_a_config_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"config\.json"):
        prepare(tmp_path)


def test_a_resumed_run_does_without_what_it_started_from(tmp_path):
    weights = tmp_path / "weights.safetensors"
    config = tiny_config(pretrained=str(weights))
    weights.write_text("")
    (tmp_path / "run" / "checkpoints" / "5").mkdir(parents=True)
    resolved = setup.as_dict(prepare(tmp_path / "other").config) | {"pretrained": str(weights)}
    (tmp_path / "run" / "config.json").write_text(json.dumps(resolved))
    weights.unlink()
    assert setup.prepare(config, tmp_path / "run", TinyPipeline(config)).pretrained is None


def test_evaluation_needs_a_run_or_weights(tmp_path):
    with pytest.raises(ValueError, match="--config.pretrained"):
        setup.prepare_evaluation(None, tmp_path)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        setup.prepare_evaluation(tiny_config(), tmp_path)
    pretend_run(tmp_path)
    with pytest.raises(ValueError, match=r"model\.outer_dim"):
        config = tiny_config(model__outer_dim=8)
        setup.prepare_evaluation(config, tmp_path, TinyPipeline(config))
    config = tiny_config(label_smoothing=0.2)  # does not concern the model
    assert setup.prepare_evaluation(config, tmp_path, TinyPipeline(config)).pretrained is None


def test_how_the_same_weights_are_computed_with_may_differ_in_evaluation(tmp_path):
    pretend_run(tmp_path)
    changes = {"dtype": "bfloat16", "remat": True, "scan": True, "inner_implementation": "xla", "drop_path_rate": 0.2}
    changes |= {"head_dropout": 0.5, "initialization": "scaled", "zero_init_head": True}
    changes |= {"drop_path_schedule": "constant"}
    config = tiny_config(**{f"model__{key}": value for key, value in changes.items()})
    assert setup.prepare_evaluation(config, tmp_path, TinyPipeline(config)).config.model.dtype == "bfloat16"
    with pytest.raises(
        ValueError, match=r"model\.dtype .* model\.drop_path_rate|model\.drop_path_rate .* model\.dtype"
    ):
        setup.prepare(config, tmp_path, TinyPipeline(config))


def test_one_source_of_weights_is_evaluated(tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_text("")
    pretend_run(tmp_path / "run")
    config = tiny_config(pretrained=str(other))
    with pytest.raises(ValueError, match=r"holds checkpoints, and config\.pretrained=.*other.* give only one"):
        setup.prepare_evaluation(config, tmp_path / "run", TinyPipeline(config))
    path = tmp_path / "run" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pretrained": str(other)}))
    other.unlink()  # the weights that the run started from are no second source
    for given in (config, None):
        assert setup.prepare_evaluation(given, tmp_path / "run", TinyPipeline(config)).pretrained is None


@pytest.mark.parametrize("prepare_one", [setup.prepare, setup.prepare_evaluation])
def test_an_older_run_resumes_as_it_began(tmp_path, caplog, prepare_one):
    pretend_run(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["cpu_devices"], saved["model"]["remat_policy"], saved["data"]["on_device"]
    path.write_text(json.dumps(saved))
    config = tiny_config() if prepare_one is setup.prepare else None
    config = prepare_one(config, tmp_path, TinyPipeline(tiny_config())).config
    assert (config.cpu_devices, config.model.remat_policy, config.data.on_device) == (0, "nothing_saveable", False)
    assert f"{path} lacks keys" in caplog.text and "cpu_devices=0, model.remat_policy='nothing_saveable'" in caplog.text


@pytest.mark.parametrize(("old", "new"), [("auto", "auto"), ("broadcast", "xla"), ("dot", "xla")])
def test_a_run_from_before_inner_implementation_is_read(tmp_path, old, new):
    pretend_run(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    del saved["model"]["inner_implementation"]
    saved["model"]["inner_attention"] = old
    path.write_text(json.dumps(saved))
    prepare(tmp_path)  # resuming with the new key is not another configuration
    config = setup.prepare_evaluation(None, tmp_path, TinyPipeline(tiny_config())).config
    assert config.model.inner_implementation == new


def test_the_kernel_is_refused_before_anything_is_written_where_there_is_no_tpu(tmp_path):
    words = "^config.model.inner_implementation='pallas' is not possible: .* use 'auto' or 'xla'"
    with pytest.raises(ValueError, match=words):
        prepare(tmp_path / "run", model__inner_implementation="pallas")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_had_the_kernel_is_evaluated_anywhere(tmp_path):
    pretend_run(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    saved["model"]["inner_implementation"] = "pallas"
    path.write_text(json.dumps(saved))
    found = setup.prepare_evaluation(None, tmp_path, TinyPipeline(tiny_config())).config
    assert found.model.inner_implementation == "auto"


def test_unknown_keys_of_a_run_name_its_file(tmp_path):
    pretend_run(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    saved["model"]["depht"] = 3
    path.write_text(json.dumps(saved))
    with pytest.raises(ValueError) as caught:
        setup.prepare_evaluation(None, tmp_path)
    assert str(path) in str(caught.value) and "Did you mean model.depth" in str(caught.value)


def test_the_data_set_is_opened_last(tmp_path, monkeypatch):
    """Opening may download it, so another run in the workdir and unusable weights are reported first."""
    monkeypatch.setattr(setup, "InputPipeline", lambda config: pytest.fail("the data set was opened"))
    synthetic = {"data__name": "synthetic", "data__eval_split": "test"}
    pretend_run(tmp_path, **synthetic)
    with pytest.raises(ValueError, match="another configuration"):
        setup.prepare(tiny_config(**synthetic, model__outer_dim=8), tmp_path)
    broken = tmp_path / "broken.safetensors"
    broken.write_text("")
    with pytest.raises(ValueError, match="broken"):
        setup.prepare(tiny_config(**synthetic, pretrained=str(broken)), tmp_path / "new")


def test_multiply_adds_are_counted_once(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(setup, "multiply_adds", lambda model: calls.append(model) or 7)
    run = prepare(tmp_path / "run")
    assert (run.multiply_adds, run.multiply_adds, len(calls)) == (7, 7, 1)


def test_the_recipes_length():
    settings = checked_config(epochs=300.0, cooldown_epochs=10.0)
    assert make_plan(settings, 1251).total_steps == 310 * 1251


def test_steps_take_precedence_and_parts_of_epochs_round_up():
    assert make_plan(checked_config(steps=7), 5).total_steps == 7
    assert make_plan(checked_config(epochs=1.5), 5).total_steps == 8
    assert make_plan(checked_config(epochs=0.01, warmup_epochs=0.0), 5).total_steps == 1


def test_intervals_of_0_are_an_epoch_and_the_end_is_always_due():
    plan = make_plan(checked_config(steps=12, log_every_steps=2, eval_every_steps=0, checkpoint_every_steps=7), 5)
    steps = range(1, 13)
    assert [step for step in steps if plan.logs(step)] == [2, 4, 6, 8, 10, 12]
    assert [step for step in steps if plan.evaluates(step)] == [5, 10, 12]
    assert [step for step in steps if plan.checkpoints(step)] == [7, 12]


def test_less_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match="smaller than one batch"):
        make_plan(checked_config(), 0)


def test_batches_that_devices_do_not_divide():
    check_devices(checked_config(batch_size=48), "batch_size", 8, 2)
    check_devices(checked_config(eval_batch_size=24), "eval_batch_size", 8)
    with pytest.raises(ValueError, match=r"batch_size=20 is not a multiple of the 8 devices; use 16 or 24"):
        check_devices(checked_config(batch_size=20), "batch_size", 8)
    with pytest.raises(ValueError, match=r"8 devices x config.accumulation_steps=3; use 24 or 48"):
        check_devices(checked_config(batch_size=36), "batch_size", 8, 3)
    with pytest.raises(ValueError, match=r"eval_batch_size=20 .* use 16 or 24"):
        check_devices(checked_config(eval_batch_size=20), "eval_batch_size", 8)


@pytest.mark.parametrize(("total", "evals", "saves"), [(30, 10, 4), (31, 10, 4), (7, 100, 3), (12, 6, 6), (1, 1, 1)])
def test_the_evaluations_and_checkpoints_to_come_are_counted(total, evals, saves):
    plan = setup.Plan(10, total, 5, eval_every_steps=evals, checkpoint_every_steps=saves)
    for step in range(total + 1):
        to_come = [each for each in range(step + 1, total + 1) if plan.evaluates(each) or plan.checkpoints(each)]
        assert plan.pauses_after(step) == len(to_come), step
