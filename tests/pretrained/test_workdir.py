import json
import shutil

import jax
import numpy as np
import pytest

from tests.pretrained import published
from tnt_jax import workdir as workdirs
from tnt_jax.pretrained import load_model, load_pretrained, save_pretrained
from tnt_jax.pretrained.load import read_source
from tnt_jax.pretrained.sources import read_weights
from tnt_jax.training import checkpoints
from tnt_jax.training.state import TrainState

STEPS = (3, 7)


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def state_of(step, params, ema_params):
    """Returns a train state of that step, without a real optimizer state."""
    return TrainState(
        step=np.int32(step),
        params=params,
        opt_state={"count": np.int32(step)},
        ema_params=ema_params,
        key=np.zeros(2, np.uint32),
        metrics={"loss": (np.float32(0), np.float32(0))},
    )


def save(workdir, keep, states, **metadata):
    """Saves states as checkpoints of a workdir."""
    keeper = checkpoints.Checkpoints(workdir, keep=keep)
    for state in states:
        keeper.save(state, {"step": int(state.step)} | metadata)
    keeper.wait()
    keeper.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns (workdir, raw weights, averaged weights by step) of a run with two checkpoints."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    workdir.mkdir()
    name, settings = published.MODELS["deit_tiny_depth2"]
    settings = settings | {"name": name, "tnt_blocks": [], "inner_dim": None, "dtype": "bfloat16"}
    (workdir / workdirs.CONFIG_FILE).write_text(json.dumps({"seed": 1, "model": settings}))
    model = published.model("deit_tiny_depth2")
    raw = jax.device_get(load_pretrained(published.weights_file("deit_tiny_depth2"), model)["params"])
    averaged = {step: jax.tree.map(lambda leaf, step=step: leaf + np.float32(step), raw) for step in STEPS}
    save(workdir, 5, [state_of(step, raw, averaged[step]) for step in STEPS])
    return workdir, raw, averaged


@pytest.fixture
def evaluated(run, tmp_path):
    """Copies that run, with evaluations that found raw weights better at step 2 and averaged ones at step 6."""
    workdir = tmp_path / "evaluated"
    shutil.copytree(run[0], workdir)
    found = [(2, 0.9, 0.4), (6, 0.6, 0.8), (9, 0.9, 0.1)]  # the last step was not saved
    lines = [{"step": step, "eval/accuracy": raw, "eval/loss": 1.0, "eval_ema/accuracy": averaged, "eval_ema/loss": 1.0}
             for step, raw, averaged in found]  # fmt: skip
    lines.insert(1, {"step": 5, "train/loss": 1.0})
    (workdir / workdirs.METRICS_FILE).write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 7, "ev')
    return workdir


def test_a_workdir_knows_its_model_and_gives_the_weights_that_its_last_evaluation_found_better(run, evaluated):
    _, raw, averaged = run
    model, variables = load_model(evaluated)
    assert model == published.model("deit_tiny_depth2", dtype="bfloat16")
    assert_equal_trees(variables, {"params": averaged[7]})
    assert_equal_trees(load_pretrained(str(evaluated), None), variables)
    assert_equal_trees(load_pretrained(evaluated / "checkpoints/3", None), {"params": raw})
    for folder, step in ((evaluated, 7), (evaluated / "checkpoints/3", 3)):
        assert_equal_trees(load_pretrained(folder, None, weights="raw"), {"params": raw})
        assert_equal_trees(load_model(folder, weights="averaged")[1], {"params": averaged[step]})


def test_what_was_taken_is_said(evaluated, caplog):
    caplog.set_level("INFO", logger="absl")  # another test may have set its level
    _, weights = read_source(evaluated)
    assert weights.source == f"{evaluated}, averaged weights of step 7"
    assert weights.label == "averaged weights of step 7"
    assert "at step 6: raw weights 0.6; averaged weights 0.8. The averaged weights are better" in caplog.text
    assert f"Using {weights.source}" in caplog.text


@pytest.mark.parametrize("content", [None, "", '{"step": 9, "eval/accuracy": 1.0, "eval_ema/accuracy": 0.0}\n{"st'])
def test_without_an_evaluation_up_to_the_step_raw_weights_are_taken_with_a_warning(run, tmp_path, caplog, content):
    """The average of a short run is still near its start; the raw weights are always the trained ones."""
    workdir = tmp_path / "run"
    shutil.copytree(run[0], workdir)
    if content is not None:
        (workdir / workdirs.METRICS_FILE).write_text(content)
    assert_equal_trees(load_pretrained(workdir, None), {"params": run[1]})
    assert "no evaluation up to step 7" in caplog.text and "Using the raw ones" in caplog.text


def test_the_better_one():
    raw, average = {"accuracy": 0.5, "loss": 2.0}, {"accuracy": 0.5, "loss": 1.0}
    best = workdirs.select_best
    assert best({"eval": raw, "eval_ema": average}) == "eval_ema"
    assert best({"eval": raw | {"accuracy": 0.6}, "eval_ema": average}) == "eval"
    assert best({"eval": raw}) == "eval"
    for nothing in (None, float("nan")):  # weights that diverged
        assert best({"eval": raw, "eval_ema": raw | {"loss": nothing}}) == "eval"
        assert best({"eval": raw | {"loss": nothing}, "eval_ema": raw}) == "eval_ema"


def test_with_several_labels_the_better_one_has_the_higher_mean_average_precision(tmp_path):
    line = {"step": 3, "eval/accuracy": 0.9, "eval/mean_average_precision": 0.4, "eval/loss": 1.0}
    line |= {"eval_ema/accuracy": 0.8, "eval_ema/mean_average_precision": 0.5, "eval_ema/loss": 2.0}
    (tmp_path / workdirs.METRICS_FILE).write_text(json.dumps(line) + "\n")
    step, results = workdirs.last_evaluation(tmp_path, 5)
    assert step == 3 and workdirs.select_best(results) == "averaged"
    assert [workdirs.measure(result) for result in results.values()] == ["mean_average_precision"] * 2


def test_a_set_that_is_not_there_is_an_error(run, tmp_path):
    with pytest.raises(ValueError, match="weights='ema': must be one of best, raw, averaged"):
        load_pretrained(run[0], None, weights="ema")
    workdir, raw, _ = run
    (tmp_path / workdirs.CONFIG_FILE).write_text((workdir / workdirs.CONFIG_FILE).read_text())
    save(tmp_path, 1, [state_of(1, raw, None)])
    assert_equal_trees(load_pretrained(tmp_path, None), {"params": raw})
    assert_equal_trees(load_pretrained(tmp_path, None, weights="raw"), {"params": raw})
    with pytest.raises(ValueError, match="has no averaged weights at step 1: its config.ema_decay is 0"):
        load_pretrained(tmp_path, None, weights="averaged")


def test_another_checkpoint_by_its_folder(run):
    workdir, _, averaged = run
    _, variables = load_model(workdir / "checkpoints" / "3", weights="averaged")
    assert_equal_trees(variables, {"params": averaged[3]})
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_pretrained(workdir / "checkpoints" / "5", published.model("deit_tiny_depth2"))


def test_weights_of_a_run_start_another_one(run):
    """Fine-tuning from a workdir: more pixels, other classes."""
    workdir, raw, _ = run
    model = published.model("deit_tiny_depth2", num_classes=3, image_size=64)
    with pytest.raises(
        ValueError, match=r"raw weights of step 7 does not fit .*\nmisshapen \(2\):\n  head/.*\n  head/"
    ):
        load_pretrained(workdir, model)
    params = load_pretrained(workdir, model, new_head=True)["params"]
    assert params["head"]["kernel"].shape == (48, 3) and params["sentence_position"].shape == (65, 48)
    assert_equal_trees(params["block_1"], raw["block_1"])


@pytest.mark.parametrize("changes", [{"outer_num_heads": 6}, {"patch_size": 16, "image_size": 64}, {"depth": 1}])
def test_weights_of_a_run_are_refused_for_other_sizes_even_where_all_shapes_fit(run, changes):
    (key, value), *_ = changes.items()
    there = {"outer_num_heads": 3, "patch_size": 8, "depth": 2}[key]
    words = rf"raw weights of step 7 is of a model with {key}={there}.*; this one has {key}={value}"
    with pytest.raises(ValueError, match=words):
        load_pretrained(run[0], published.model("deit_tiny_depth2", **changes))


def test_a_config_that_was_edited_is_told_from_the_model_that_was_saved(run, tmp_path):
    """A checkpoint records its model; one of an earlier version does not, so its shapes are compared."""
    workdir, raw, _ = run
    config = json.loads((workdir / workdirs.CONFIG_FILE).read_text())
    says, edited = tmp_path / "says", config | {"model": config["model"] | {"outer_num_heads": 6}}
    says.mkdir()
    save(says, 1, [state_of(1, raw, None)], model=config["model"])
    (says / workdirs.CONFIG_FILE).write_text(json.dumps(edited))
    with pytest.raises(ValueError, match="is of a model with outer_num_heads=3; this one has outer_num_heads=6"):
        load_model(says)
    shutil.copytree(workdir, tmp_path / "old")
    edited = config | {"model": config["model"] | {"depth": 1}}
    (tmp_path / "old" / workdirs.CONFIG_FILE).write_text(json.dumps(edited))
    with pytest.raises(ValueError, match=r"unused \(\d+\):\n  block_2/"):
        load_model(tmp_path / "old")


def test_a_run_is_exported_for_timm(run, tmp_path):
    workdir, raw, _ = run
    save_pretrained(tmp_path / "run.safetensors", *load_model(workdir))
    again = load_pretrained(tmp_path / "run.safetensors", published.model("deit_tiny_depth2"))
    assert_equal_trees(again, {"params": raw})
    assert read_weights(tmp_path / "run.safetensors").label == "weights of the file"
    save_pretrained(tmp_path / "run.safetensors", *load_model(workdir), note="raw weights of step 7")
    assert read_weights(tmp_path / "run.safetensors").label == "weights of the file (raw weights of step 7)"


def test_folders_that_are_no_run_say_why(tmp_path):
    with pytest.raises(ValueError, match=r"is not a workdir of this project: it has no config\.json"):
        load_pretrained(tmp_path, None)
    config = tmp_path / workdirs.CONFIG_FILE
    config.write_text(json.dumps({"model": {"name": "tnt_s_patch16_224"}}))
    with pytest.raises(ValueError, match=r"config\.json does not say which model .* model\.num_classes"):
        load_model(tmp_path)
    config.write_text(json.dumps({"model": {"name": "tnt_s_patch16_224", "num_classes": 10, "depht": 3}}))
    with pytest.raises(ValueError, match=r"config\.json describes no model of this version: .*depht.*depth"):
        load_model(tmp_path)
    config.write_text(json.dumps({"model": {"name": "tnt_s_patch16_224", "num_classes": 10}}))
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_model(tmp_path)
