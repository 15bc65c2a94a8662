import json

import jax
import numpy as np
import pytest

from tests.pretrained import published
from tnt_jax import workdir as workdirs
from tnt_jax.pretrained import load_model, load_pretrained, save_pretrained
from tnt_jax.training import checkpoints
from tnt_jax.training.state import TrainState

STEPS = (3, 7)


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def state_of(step, params, ema_params):
    """A train state of that step without optimizer."""
    return TrainState(
        step=np.int32(step),
        params=params,
        opt_state={"count": np.int32(step)},
        ema_params=ema_params,
        key=np.zeros(2, np.uint32),
        metrics={"loss": (np.float32(0), np.float32(0))},
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(workdir, raw weights, averaged weights by step) of a run of two checkpoints."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    workdir.mkdir()
    name, settings = published.MODELS["deit_tiny_depth2"]
    settings = settings | {"name": name, "tnt_blocks": [], "inner_dim": None, "dtype": "bfloat16"}
    (workdir / workdirs.CONFIG_FILE).write_text(json.dumps({"seed": 1, "model": settings}))
    model = published.model("deit_tiny_depth2")
    raw = jax.device_get(load_pretrained(published.weights_file("deit_tiny_depth2"), model)["params"])
    averaged = {step: jax.tree.map(lambda leaf, step=step: leaf + np.float32(step), raw) for step in STEPS}
    keeper = checkpoints.Checkpoints(workdir, keep=5)
    for step in STEPS:
        keeper.save(state_of(step, raw, averaged[step]), {"step": step})
    keeper.wait()
    keeper.close()
    return workdir, raw, averaged


def test_a_workdir_knows_its_model_and_gives_its_newest_averaged_weights(run):
    workdir, raw, averaged = run
    model, variables = load_model(workdir)
    assert model == published.model("deit_tiny_depth2", dtype="bfloat16")
    assert_equal_trees(variables, {"params": averaged[7]})
    assert_equal_trees(load_pretrained(str(workdir), None), variables)
    assert_equal_trees(load_pretrained(workdir, None, ema=False), {"params": raw})


def test_another_checkpoint_by_its_folder(run):
    workdir, _, averaged = run
    _, variables = load_model(workdir / "checkpoints" / "3")
    assert_equal_trees(variables, {"params": averaged[3]})
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_pretrained(workdir / "checkpoints" / "5", published.model("deit_tiny_depth2"))


def test_weights_of_a_run_start_another_one(run):
    """Fine-tuning from a workdir: more pixels, other classes."""
    workdir, _, averaged = run
    model = published.model("deit_tiny_depth2", num_classes=3, image_size=64)
    with pytest.raises(ValueError, match=r"ema_params of step 7 does not fit .*\nmisshapen \(2\):\n  head/.*\n  head/"):
        load_pretrained(workdir, model)
    params = load_pretrained(workdir, model, new_head=True)["params"]
    assert params["head"]["kernel"].shape == (48, 3) and params["sentence_position"].shape == (65, 48)
    assert_equal_trees(params["block_1"], averaged[7]["block_1"])


def test_a_run_is_exported_for_timm(run, tmp_path):
    workdir, _, averaged = run
    save_pretrained(tmp_path / "run.safetensors", *load_model(workdir))
    again = load_pretrained(tmp_path / "run.safetensors", published.model("deit_tiny_depth2"))
    assert_equal_trees(again, {"params": averaged[7]})


def test_a_run_without_averages_gives_the_raw_weights(run, tmp_path):
    workdir, raw, _ = run
    (tmp_path / workdirs.CONFIG_FILE).write_text((workdir / workdirs.CONFIG_FILE).read_text())
    keeper = checkpoints.Checkpoints(tmp_path, keep=1)
    keeper.save(state_of(1, raw, None), {"step": 1})
    keeper.wait()
    keeper.close()
    assert_equal_trees(load_pretrained(tmp_path, None), {"params": raw})


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
