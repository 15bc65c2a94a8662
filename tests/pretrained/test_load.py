import flax.traverse_util
import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.pretrained import published
from tnt_jax.models.complexity import parameter_shapes
from tnt_jax.models.resize import resize_sentence_positions
from tnt_jax.models.variants import update
from tnt_jax.pretrained import load_model, load_pretrained, save_pretrained


def flat(variables):
    return flax.traverse_util.flatten_dict(variables["params"], sep="/")


def assert_same_bits(one, other):
    assert set(one) == set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype == np.float32
        np.testing.assert_array_equal(np.asarray(one[name]).view(np.uint32), np.asarray(other[name]).view(np.uint32))


def changed(tmp_path, name, **arrays):
    """Writes the stored weights with some arrays replaced, or left out where None -> path. "__" stands for a dot."""
    content = load_file(published.weights_file(name))
    for key, array in arrays.items():
        content[key.replace("__", ".")] = array
    content = {key: array for key, array in content.items() if array is not None}
    save_file(content, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


@pytest.mark.parametrize("name", published.MODELS)
def test_outputs_agree_with_pytorch(name):
    """Compares logits and sentence embeddings after the first and the last block, float32, within 2e-5."""
    model, expected = published.model(name), published.outputs(name)
    variables = load_pretrained(published.weights_file(name), model)
    assert {key: array.shape for key, array in flat(variables).items()} == {
        "/".join(path): shape for path, shape in parameter_shapes(model).items()
    }
    apply = jax.jit(lambda variables, image: model.apply(variables, image, return_features=("sentences",)))
    logits, features = apply(variables, expected["image"])
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)
    blocks = [key for key in expected if key.startswith("block_")]
    assert len(blocks) == min(2, model.depth)
    for key in blocks:
        sentences = features["sentences"][int(key.removeprefix("block_"))]
        np.testing.assert_allclose(sentences, expected[key], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", published.MODELS)
def test_export_gives_the_same_arrays_and_import_the_same_bits(name, tmp_path):
    model = published.model(name)
    variables = load_pretrained(published.weights_file(name), model)
    path = tmp_path / "new folder" / "out.safetensors"
    save_pretrained(path, model, variables)
    assert_same_bits(flat(load_pretrained(path, model)), flat(variables))
    if name not in ("official_tiny", "deit3_tiny_depth1"):  # they get timm's names, and a class token position
        assert_same_bits(load_file(path), load_file(published.weights_file(name)))
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["sentence_grid"] == "x".join(map(str, model.grid))


@pytest.mark.parametrize(
    "name, settings",
    [("mean", {"pooling": "mean"}), ("channels_1", {"in_channels": 1}), ("channels_4", {"in_channels": 4})],
)
def test_options_agree_with_timm(name, settings, caplog):
    """Mean pooling, and stems adapted to other channels, give the logits of timm's TNT with the same weights."""
    expected, model = published.outputs("tnt_tiny_options"), published.model("tnt_tiny", **settings)
    variables = load_pretrained(published.weights_file("tnt_tiny"), model)
    logits = jax.jit(model.apply)(variables, expected["image"][..., : model.in_channels])
    np.testing.assert_allclose(logits, expected[f"logits_{name}"], rtol=0, atol=2e-5)
    said = {1: "is summed for one channel", 3: "", 4: "is repeated for 4 channels and scaled by 3 / 4"}
    assert said[model.in_channels] in caplog.text and ("three-channel stem" in caplog.text) == (model.in_channels != 3)


def test_deits_stem_is_adapted_too_and_one_of_other_channels_is_not(tmp_path):
    path, settings = tmp_path / "five.safetensors", {"depth": 2, "in_channels": 5}
    model = published.model("deit_tiny_depth2", **settings)
    variables = load_pretrained(published.weights_file("deit_tiny_depth2"), model)
    kernel = variables["params"]["patch_embedding"]["kernel"]
    original = load_file(published.weights_file("deit_tiny_depth2"))["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(kernel, original[:, :, [0, 1, 2, 0, 1]] * 0.6, rtol=1e-6)
    save_pretrained(path, model, variables)
    with pytest.raises(ValueError, match="looks like a model with in_channels=5; this one has in_channels=4"):
        load_pretrained(path, published.model("deit_tiny_depth2", in_channels=4))


def test_deit_3s_own_names_of_its_layer_scales_are_read_as_timms(tmp_path):
    """DeiT III's release names them gamma_1 and gamma_2 (facebookresearch/deit, models_v2.py)."""
    path, model = tmp_path / "deit_3.safetensors", published.model("deit3_tiny_depth1")
    arrays = load_file(published.weights_file("deit3_tiny_depth1"))
    renamed = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): arrays[name] for name in arrays}
    assert renamed.keys() != arrays.keys()
    save_file(renamed, path)
    timms = load_pretrained(published.weights_file("deit3_tiny_depth1"), model)
    assert_same_bits(flat(load_pretrained(path, model)), flat(timms))


def test_a_grid_whose_rows_and_class_token_are_a_square_number_is_not_deit_3s(tmp_path):
    """3 x 5 sentences and the class token make 16 rows, as many as 4 x 4 sentences without it."""
    positions = np.random.default_rng(0).standard_normal((1, 16, 48)).astype(np.float32)
    path = changed(tmp_path, "deit_tiny_depth2", pos_embed=positions)
    found = flat(load_pretrained(path, published.model("deit_tiny_depth2", image_size=(24, 40))))["sentence_position"]
    np.testing.assert_array_equal(found, positions[0])
    with pytest.raises(ValueError, match="num_sentences=15.*\n.*their old grid is known"):
        load_pretrained(path, published.model("deit_tiny_depth2"))


def test_the_head_of_other_pooling_is_refused_and_a_new_one_is_not(tmp_path):
    path, model = tmp_path / "mean.safetensors", published.model("tnt_tiny", pooling="mean")
    save_pretrained(path, model, load_pretrained(published.weights_file("tnt_tiny"), model))
    load_pretrained(path, model)
    with pytest.raises(ValueError, match="is of a model with pooling='mean'; this one has pooling='class_token'"):
        load_pretrained(path, published.model("tnt_tiny"))
    load_pretrained(path, published.model("tnt_tiny"), new_head=True)


def test_a_tnts_layer_scale_has_no_published_name(tmp_path):
    model = published.model("tnt_tiny", layer_scale=0.1)
    with pytest.raises(ValueError, match=r"no LayerScale, and no name for block_1/inner/.*layer_scale=0"):
        load_pretrained(published.weights_file("tnt_tiny"), model)
    shapes = {path: np.zeros(shape, np.float32) for path, shape in parameter_shapes(model).items()}
    with pytest.raises(ValueError, match="published TNT models have no LayerScale.*kept in a workdir"):
        save_pretrained(tmp_path / "w.safetensors", model, {"params": flax.traverse_util.unflatten_dict(shapes)})
    assert not list(tmp_path.iterdir())


def test_the_official_names_and_timms_give_the_same_parameters(tmp_path):
    """timm's own renaming (timm.models.tnt.checkpoint_filter_fn), spelled out."""
    pairs = [("patch_embed", "pixel_embed"), ("outer_pos", "patch_pos"), ("proj_norm1", "norm1_proj")]
    pairs += [("proj_norm2", "norm2_proj"), ("inner_norm1", "norm_in"), ("inner_attn", "attn_in")]
    pairs += [("inner_norm2", "norm_mlp_in"), ("inner_mlp", "mlp_in"), ("outer_norm1", "norm_out")]
    pairs += [("outer_attn", "attn_out"), ("outer_norm2", "norm_mlp"), ("outer_mlp", "mlp")]
    renamed = {}
    for name, array in load_file(published.weights_file("official_tiny")).items():
        for official, timm in pairs:
            name = name.replace(official, timm)
        if name == "inner_pos":
            name, array = "pixel_pos", array.transpose(0, 2, 1).reshape(1, 8, 4, 4)
        renamed[name] = np.ascontiguousarray(array)
    save_file(renamed, tmp_path / "timm.safetensors")
    model = published.model("official_tiny")
    official = load_pretrained(published.weights_file("official_tiny"), model)
    assert_same_bits(flat(load_pretrained(tmp_path / "timm.safetensors", model)), flat(official))


def test_every_missing_unused_and_misshapen_name_is_listed(tmp_path):
    path = changed(
        tmp_path,
        "tnt_tiny",
        blocks__0__norm_in__weight=None,
        blocks__2__mlp__fc1__bias=None,
        blocks__3__norm_in__weight=np.ones(12, np.float32),
        extra=np.ones((2, 2), np.float32),
        norm__bias=np.ones(7, np.float32),
        cls_token=np.ones((1, 48), np.float32),
    )
    with pytest.raises(ValueError) as error:
        load_pretrained(path, published.model("tnt_tiny"))
    lines = str(error.value).splitlines()
    assert str(path) in lines[0]
    expected = ["missing (2):", "  blocks.0.norm_in.weight [12]", "  blocks.2.mlp.fc1.bias [192]"]
    expected += ["unused (2):", "  blocks.3.norm_in.weight [12]", "  extra [2, 2]"]
    expected += ["misshapen (2):", "  norm.bias: [7] there, [48] expected"]
    expected += ["  cls_token: [1, 48] there, [1, 1, 48] expected"]
    assert sorted(lines[1:10]) == sorted(expected)


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("tnt_tiny", {"legacy": True}, "legacy=False; this one has legacy=True"),
        ("tnt_tiny_legacy", {"legacy": False}, "legacy=True; this one has legacy=False"),
        ("tnt_tiny", {"depth": 2}, "depth=3; this one has depth=2"),
        ("tnt_tiny", {"tnt_blocks": (2,)}, r"tnt_blocks=None; this one has tnt_blocks=\(2,\)"),
        ("tnt_tiny", {"qkv_bias": True}, "qkv_bias=False; this one has qkv_bias=True"),
        ("tnt_tiny", {"word_position": False}, "word_position=True; this one has word_position=False"),
        ("deit_tiny_depth2", {"layer_scale": 0.1}, "layer_scale=0.0; this one has layer_scale=1e-05"),
        ("tnt_tiny", {"word_size": 4}, "num_words=16; this one has num_words=4"),
        ("tnt_tiny", {"inner_dim": 8, "outer_dim": 24}, "outer_dim=48, inner_dim=12; this one has outer_dim=24"),
        ("official_tiny", {"squeeze_excitation": False}, "squeeze_excitation=True; this one has"),
        ("deit_tiny_depth2", {"patch_size": 16}, "patch_size=8; this one has patch_size=16"),
    ],
)
def test_a_model_of_other_settings_is_told_which_fit(name, overrides, message):
    with pytest.raises(ValueError, match=f"looks like a model with {message}"):
        load_pretrained(published.weights_file(name), published.model(name, **overrides))


def test_tnt_and_deit_are_not_mistaken_for_each_other():
    with pytest.raises(ValueError, match="holds a DeiT .* model is a TNT"):
        load_pretrained(published.weights_file("deit_tiny_depth2"), published.model("tnt_tiny"))
    with pytest.raises(ValueError, match="holds a TNT .* model is a DeiT"):
        load_pretrained(published.weights_file("official_tiny"), published.model("deit_tiny_depth2"))


def test_a_distilled_deit_is_named(tmp_path):
    path = changed(tmp_path, "deit_tiny_depth2", dist_token=np.ones((1, 1, 48), np.float32))
    with pytest.raises(ValueError, match="distilled DeiT"):
        load_pretrained(path, published.model("deit_tiny_depth2"))


def test_outer_tokens_must_be_zero(tmp_path):
    tokens = load_file(published.weights_file("official_tiny"))["outer_tokens"].copy()
    assert tokens.shape == (1, 16, 32)
    tokens[0, 3, 5] = 0.25
    with pytest.raises(ValueError, match="outer_tokens should be zero .* reach 0.25"):
        load_pretrained(changed(tmp_path, "official_tiny", outer_tokens=tokens), published.model("official_tiny"))
    without = changed(tmp_path, "official_tiny", outer_tokens=None)
    load_pretrained(without, published.model("official_tiny"))


def test_another_number_of_classes_needs_a_new_head():
    path, model = published.weights_file("tnt_tiny"), published.model("tnt_tiny", num_classes=200)
    with pytest.raises(ValueError, match="num_classes=10; this one has num_classes=200.*\n.*new_head=True"):
        load_pretrained(path, model)
    old, new = (
        flat(load_pretrained(path, published.model("tnt_tiny"))),
        flat(load_pretrained(path, model, new_head=True)),
    )
    assert new["head/kernel"].shape == (48, 200) and not new["head/bias"].any()
    assert abs(float(new["head/kernel"].std()) - 0.02) < 1e-3
    assert_same_bits(new, flat(load_pretrained(path, model, new_head=True)))
    for name in ("head/kernel", "head/bias"):
        del old[name], new[name]
    assert_same_bits(old, new)


def test_new_head_starts_anew_for_the_same_number_of_classes_too():
    path, model = published.weights_file("tnt_tiny"), published.model("tnt_tiny")
    kernel = flat(load_pretrained(path, model, new_head=True))["head/kernel"]
    assert kernel.shape == (48, 10) and float(abs(kernel).max()) < 0.1


def test_a_file_without_a_head(tmp_path):
    path = changed(tmp_path, "tnt_tiny", head__weight=None, head__bias=None)
    with pytest.raises(ValueError, match=r"missing \(2\):\n  head.*\n  head.*\n.*no head; load with new_head=True"):
        load_pretrained(path, published.model("tnt_tiny"))
    assert "head/kernel" in flat(load_pretrained(path, published.model("tnt_tiny"), new_head=True))
    assert "head/kernel" not in flat(load_pretrained(path, published.model("tnt_tiny", num_classes=0)))


def test_a_model_without_a_head_leaves_the_files():
    variables = load_pretrained(published.weights_file("tnt_tiny"), published.model("tnt_tiny", num_classes=0))
    assert not any(name.startswith("head") for name in flat(variables))


@pytest.mark.parametrize("name, size", [("tnt_tiny", (16, 40)), ("official_tiny", 64), ("deit_tiny_depth2", 64)])
def test_another_image_size_resizes_the_sentence_positions_alone(name, size):
    path, model = published.weights_file(name), published.model(name)
    at_home, away = flat(load_pretrained(path, model)), flat(load_pretrained(path, model, image_size=size))
    grid = (8, 8) if size == 64 else (2, 5)
    resized = resize_sentence_positions(at_home.pop("sentence_position"), (4, 4), grid)
    np.testing.assert_array_equal(away.pop("sentence_position"), resized)
    assert resized.shape[0] == 1 + grid[0] * grid[1]
    assert_same_bits(at_home, away)
    assert_same_bits(flat(load_pretrained(path, update(model, image_size=size))), away | {"sentence_position": resized})


def test_a_grid_that_is_no_square_is_noted_on_export_and_resized_from(tmp_path):
    """16 sentences of a 2 x 8 grid could be mistaken for 4 x 4."""
    path = tmp_path / "flat.safetensors"
    model = published.model("tnt_tiny", image_size=(16, 64))
    variables = load_pretrained(published.weights_file("tnt_tiny"), model)
    save_pretrained(path, model, variables)
    assert_same_bits(flat(load_pretrained(path, model)), flat(variables))
    square = flat(load_pretrained(path, published.model("tnt_tiny")))["sentence_position"]
    expected = resize_sentence_positions(variables["params"]["sentence_position"], (2, 8), (4, 4))
    np.testing.assert_array_equal(square, expected)


def test_positions_of_an_unknown_grid_are_an_error():
    """The legacy fixture has 4 x 3 sentences but does not record its grid; only a model of that grid can load it."""
    with pytest.raises(ValueError, match="num_sentences=12.*\n.*their old grid is known"):
        load_pretrained(published.weights_file("tnt_tiny_legacy"), published.model("tnt_tiny_legacy", image_size=32))


def test_saving_checks_the_variables_and_the_name(tmp_path):
    model = published.model("tnt_tiny")
    variables = load_pretrained(published.weights_file("tnt_tiny"), model)
    with pytest.raises(ValueError, match=r"written as \.safetensors"):
        save_pretrained(tmp_path / "w.pth", model, variables)
    with pytest.raises(ValueError, match=r"variables to save does not fit the model:\nmissing"):
        save_pretrained(tmp_path / "w.safetensors", published.model("tnt_tiny", depth=4), variables)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r'must be {"params": ...}, got head'):
        save_pretrained(tmp_path / "a.safetensors", model, {"head": {}})


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    model = published.model("tnt_tiny")
    variables, path = load_pretrained(published.weights_file("tnt_tiny"), model), tmp_path / "w.safetensors"
    save_pretrained(path, model, variables)
    before = path.read_bytes()

    def torn(path, content):
        path.write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", torn)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(path, model, variables)
    assert path.read_bytes() == before


def test_a_file_needs_a_model_and_is_no_workdir(tmp_path):
    with pytest.raises(ValueError, match="does not say which model it is for"):
        load_pretrained(published.weights_file("tnt_tiny"), None)
    with pytest.raises(FileNotFoundError, match="runs/digitz: there is no such file; .* workdir"):
        load_pretrained("runs/digitz", None)
    with pytest.raises(ValueError, match="is not a workdir"):
        load_model(published.weights_file("tnt_tiny"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"patch_size": 16, "word_size": 4, "image_size": 64}, "patch_size=8, word_size=2; this one has patch_size=16"),
        ({"inner_num_heads": 3}, "inner_num_heads=2; this one has inner_num_heads=3"),
        ({"norm_epsilon": 1e-6}, "norm_epsilon=1e-05; this one has norm_epsilon=1e-06"),
    ],
)
def test_a_file_of_this_project_says_what_it_is_of_so_that_fitting_shapes_are_not_enough(tmp_path, changes, message):
    """The published file has the same arrays but does not record its model: whoever loads it has to know."""
    model = published.model("tnt_tiny")
    variables = load_pretrained(published.weights_file("tnt_tiny"), model)
    save_pretrained(tmp_path / "w.safetensors", model, variables)
    other = published.model("tnt_tiny", **changes)
    load_pretrained(published.weights_file("tnt_tiny"), other)
    with pytest.raises(ValueError, match=rf"w\.safetensors is of a model with {message}"):
        load_pretrained(tmp_path / "w.safetensors", other)
