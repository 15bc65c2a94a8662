"""open_trained: a source -> model, weights, image settings and class names."""

import json

import flax.traverse_util
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.pretrained import published
from tests.training.helpers import checked_config, random_variables, tiny_config
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import load, save_pretrained
from tnt_jax.pretrained.sources import Weights
from tnt_jax.tools import trained


def test_names_and_weights_are_told_apart():
    split = load.split_source
    assert split("tnt_s_patch16_224:a/b.safetensors") == ("tnt_s_patch16_224", "a/b.safetensors")
    hub = "hf-hub:timm/tnt_b_patch16_224.in1k"
    assert split(hub) == ("tnt_b_patch16_224", hub) and split(f"{hub}@main") == ("tnt_b_patch16_224", f"{hub}@main")
    assert split(f"tnt_s_patch16_224:{hub}") == ("tnt_s_patch16_224", hub)
    with pytest.raises(ValueError, match="hf-hub:tnt_s_patch16_224: give hf-hub:OWNER/NAME"):
        split("hf-hub:tnt_s_patch16_224")
    for source in ("weights.safetensors", "tnt_x:weights.safetensors", "hf-hub:me/mine"):
        with pytest.raises(ValueError, match=f"such as tnt_s_patch16_224:{source}"):
            split(source)


def test_published_weights_bring_their_classes_and_the_images_of_their_kind(monkeypatch):
    monkeypatch.setattr(load, "create_model", lambda name, **changes: published.model("tnt_tiny", **changes))
    found = trained.open_trained(f"tnt_s_patch16_224:{published.weights_file('tnt_tiny')}")
    assert found.model.num_classes == 10 and found.class_names == tuple("0123456789")
    assert found.images == EvalImages((0.5,) * 3, (0.5,) * 3) and found.config is None
    larger = trained.open_trained(f"tnt_s_patch16_224:{published.weights_file('tnt_tiny')}", image_size=48)
    assert larger.model.input_size == (48, 48) and larger.variables["params"]["sentence_position"].shape == (37, 48)


def test_a_file_with_layer_scale_makes_a_model_with_it(monkeypatch, caplog):
    """DeiT III files have the names and sizes of a DeiT, plus LayerScale."""
    plain = {"layer_scale": 0.0}
    make = lambda name, **found: published.model("deit3_tiny_depth1", **plain | found)  # noqa: E731
    monkeypatch.setattr(load, "create_model", make)
    found = trained.open_trained(f"deit_tiny_patch16_224:{published.weights_file('deit3_tiny_depth1')}")
    gamma = load_file(published.weights_file("deit3_tiny_depth1"))["blocks.0.ls1.gamma"]
    np.testing.assert_array_equal(found.variables["params"]["block_1"]["outer"]["layer_scale1"]["gamma"], gamma)
    assert "has LayerScale: deit_tiny_patch16_224 is created with it" in caplog.text


def test_deit_has_imagenets_mean_and_thousand_classes_have_names(tmp_path):
    small = {"image_size": 224, "patch_size": 16, "outer_dim": 192, "depth": 12}
    model = create_model("deit_tiny_patch16_224", **small)
    weights = tmp_path / "deit.safetensors"
    save_pretrained(weights, model, random_variables(model, 224))
    found = trained.open_trained(f"deit_tiny_patch16_224:{weights}")
    assert found.images == EvalImages(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # crop 0.9, as in timm
    assert found.class_names[207] == "golden retriever"


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    settings = checked_config(model__num_classes=3)
    model = create_model(**settings.model.arguments())
    config = tiny_config(model__num_classes=3, data__eval_crop_fraction=0.5, data__mean=(0.1, 0.2, 0.3))
    (tmp_path / "run/checkpoints/7").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps(config.to_dict()))
    arrays = flax.traverse_util.flatten_dict(random_variables(model)["params"], sep="/")
    found = Weights(arrays, "own", "a", kind="raw", step=7)
    monkeypatch.setattr(trained, "read_source", lambda source, weights: (model, found))
    return tmp_path / "run"


def test_a_workdir_brings_its_own_names_and_images(workdir):
    (workdir / "classes.json").write_text('["cat", "n02099601"]')
    for source in (workdir, workdir / "checkpoints/7"):
        found = trained.open_trained(str(source))
        assert found.class_names == ("cat", "golden retriever", "2") and found.weights == "raw weights of step 7"
        assert found.images == EvalImages((0.1, 0.2, 0.3), (0.5, 0.5, 0.5), eval_crop_fraction=0.5)
        assert jax.tree.all(jax.tree.map(lambda leaf: np.isfinite(leaf).all(), found.variables))


def test_an_older_run_asks_its_data_set(workdir):
    assert trained.open_trained(str(workdir)).class_names == ("tench", "goldfish", "great white shark")


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1]"])
def test_damaged_names_are_an_error_that_names_the_file(workdir, content):
    (workdir / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=r"classes\.json.*Fix or remove"):
        trained.open_trained(str(workdir))


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(ValueError, match="is not a workdir of this project"):
        trained.open_trained(str(tmp_path))
