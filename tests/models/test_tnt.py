import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.helpers import images, random_variables, run, small_model
from tnt_jax.models import layers, tnt
from tnt_jax.models.embeddings import sincos_positions
from tnt_jax.models.variants import update

EVERYTHING = ("sentences", "words", "outer_attention", "inner_attention")


def test_shapes():
    model = small_model()
    logits, features = run(model, random_variables(model), images(), return_features=EVERYTHING)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    assert [x.shape for x in features["sentences"]] == [(2, 17, 24)] * 2
    assert [x.shape for x in features["words"]] == [(2, 16, 4, 6)] * 2
    assert [x.shape for x in features["outer_attention"]] == [(2, 3, 17, 17)] * 2
    assert [x.shape for x in features["inner_attention"]] == [(2, 16, 2, 4, 4)] * 2
    for name in ("outer_attention", "inner_attention"):
        np.testing.assert_allclose(features[name][-1].sum(-1), 1, atol=1e-5)


def test_features_are_what_was_asked_for_and_change_nothing():
    model = small_model()
    variables = random_variables(model)
    logits, features = run(model, variables, images(), return_features=True)
    assert set(features) == {"sentences", "words"}
    np.testing.assert_allclose(run(model, variables, images()), logits, atol=1e-6)
    with pytest.raises(ValueError, match="return_features has"):
        run(model, variables, images(), return_features=("sentense",))


OPTIONS = {"in_channels": 5, "pooling": "mean", "layer_scale": 0.1, "sentence_encoding": "sincos"}


@pytest.mark.parametrize(
    "overrides",
    [{}, {"tnt_blocks": (2,)} | OPTIONS, {"tnt_blocks": ()}, {"squeeze_excitation": True, "layer_scale": 1}],
)
def test_every_parameter_receives_a_gradient(overrides):
    model = small_model(**overrides)
    variables = random_variables(model)
    weight, image = jax.random.normal(jax.random.key(5), (2, 5)), images(channels=model.in_channels)
    gradients = jax.jit(jax.grad(lambda v: (model.apply(v, image) * weight).sum()))(variables)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert float(jnp.abs(gradient).max()) > 0, jax.tree_util.keystr(path)


def test_pixels_of_patch_i_reach_sentence_i_plus_1_and_before_the_outer_block_no_other():
    model = small_model(depth=1)
    variables = random_variables(model)
    # With zero outputs of its attention and MLP, the outer block leaves each sentence unchanged.
    silent = jax.tree.map(lambda x: x, variables)
    for part in ("attention", "mlp"):
        last = silent["params"]["block_1"]["outer"][part]["output" if part == "attention" else "dense2"]
        last["kernel"], last["bias"] = jnp.zeros_like(last["kernel"]), jnp.zeros_like(last["bias"])
    base = images(1)

    def sentences(values, image):
        return run(model, values, image, return_features=("sentences",))[1]["sentences"][0][0]

    for patch in (0, 3, 4, 10, 15):
        row, column = divmod(patch, 4)
        changed = base.at[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].add(1.0)
        moved = jnp.abs(sentences(silent, changed) - sentences(silent, base)).max(-1) > 1e-6
        np.testing.assert_array_equal(np.flatnonzero(moved), [patch + 1])
        assert (jnp.abs(sentences(variables, changed) - sentences(variables, base)).max(-1) > 1e-6).all()


def test_words_lie_in_their_sentence_in_row_major_order():
    model = small_model(depth=1)
    variables = random_variables(model)
    params = variables["params"]["block_1"]["inner"]
    for layer in (params["attention"]["output"], params["mlp"]["dense2"]):
        layer["kernel"], layer["bias"] = jnp.zeros_like(layer["kernel"]), jnp.zeros_like(layer["bias"])
    base = images(1)

    def words(image):
        return run(model, variables, image, return_features=("words",))[1]["words"][0][0]

    # The top right pixel of a patch is in reach of all four words (2 x 2 pixels each), with different weights.
    moved = jnp.abs(words(base.at[0, 4, 8 + 3].add(1.0)) - words(base)).max(-1)
    assert set(np.flatnonzero(np.asarray(moved).max(-1) > 1e-6)) == {4 + 2}  # sentence in row 1, column 2
    kernel = variables["params"]["word_embedding"]["kernel"]
    # Word (h, w) starts at pixel (2h, 2w); pixel (0, 3) is at kernel position (0 + 3 - 2h, 3 + 3 - 2w).
    for word in range(4):
        h, w = divmod(word, 2)
        expected = jnp.abs(kernel[3 - 2 * h, 6 - 2 * w].sum(0)).max()
        np.testing.assert_allclose(moved[6, word], expected, atol=1e-5)


def test_permuting_sentences_with_their_positions_permutes_outputs():
    model = small_model(num_classes=0)
    variables = random_variables(model)
    order = np.random.default_rng(0).permutation(16)
    image = images(1)
    patches = image.reshape(4, 4, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(16, 4, 4, 3)[order]
    shuffled = patches.reshape(4, 4, 4, 4, 3).transpose(0, 2, 1, 3, 4).reshape(1, 16, 16, 3)
    positions = variables["params"]["sentence_position"]
    moved = {"params": {**variables["params"], "sentence_position": positions.at[1:].set(positions[1:][order])}}
    straight, features = run(model, variables, image, return_features=("sentences",))
    permuted, permuted_features = run(model, moved, shuffled, return_features=("sentences",))
    np.testing.assert_allclose(permuted, straight, atol=1e-5)
    last = features["sentences"][-1][0]
    np.testing.assert_allclose(permuted_features["sentences"][-1][0][1:], last[1:][order], atol=3e-5)


def test_permuting_words_with_their_encodings_changes_words_only_by_that_order():
    model = small_model(depth=1)
    variables = random_variables(model)
    # With a zero stem, which gives every word the same features, words differ only by their encodings.
    params = {
        **variables["params"],
        "word_embedding": jax.tree.map(jnp.zeros_like, variables["params"]["word_embedding"]),
    }
    order = jnp.array([3, 1, 0, 2])
    moved = {**params, "word_position": params["word_position"][order]}
    words = [run(model, {"params": p}, images(1), return_features=("words",))[1]["words"][0] for p in (params, moved)]
    np.testing.assert_allclose(words[1], words[0][:, :, order], atol=2e-6)


def test_train_and_eval_differ_only_by_drop_path():
    without, with_it = small_model(drop_path_rate=0.0), small_model(drop_path_rate=0.5)
    variables = random_variables(without)
    rngs = {"dropout": jax.random.key(3)}
    evaluated = run(without, variables, images())
    np.testing.assert_array_equal(run(without, variables, images(), train=True, rngs=rngs), evaluated)
    np.testing.assert_array_equal(run(with_it, variables, images()), evaluated)
    assert float(jnp.abs(run(with_it, variables, images(), train=True, rngs=rngs) - evaluated).max()) > 1e-3


def test_drop_path_rises_linearly_from_zero():
    np.testing.assert_allclose(
        small_model(drop_path_rate=0.1, depth=5).config.drop_path_rates(), [0, 0.025, 0.05, 0.075, 0.1]
    )
    assert small_model(drop_path_rate=0.1, depth=1).config.drop_path_rates() == [0.0]


def test_constant_drop_path_reaches_the_first_block_too():
    settings = {"drop_path_rate": 0.5, "drop_path_schedule": "constant"}
    assert small_model(**settings, depth=3).config.drop_path_rates() == [0.5, 0.5, 0.5]
    model = small_model(**settings, depth=1)
    variables = random_variables(model)
    evaluated = run(model, variables, images())
    trained = run(model, variables, images(), train=True, rngs={"dropout": jax.random.key(3)})
    assert float(jnp.abs(trained - evaluated).max()) > 1e-3


@pytest.mark.parametrize(
    ("tnt_blocks", "remat"),
    [(None, {"remat": True}), ((1, 2), {"remat": True, "remat_policy": "dots_with_no_batch_dims_saveable"}), ((), {})],
)
def test_scanned_blocks_compute_what_unrolled_ones_do(tnt_blocks, remat):
    model = small_model(depth=3, tnt_blocks=tnt_blocks, drop_path_rate=0.4)
    variables = random_variables(model)
    weight = jax.random.normal(jax.random.key(5), (2, 5))

    def gradient(model):
        def loss(values):
            logits, features = model.apply(
                values, images(), train=True, rngs={"dropout": jax.random.key(3)}, return_features=EVERYTHING
            )
            return (logits * weight).sum(), features

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables)

    ours, expected = gradient(update(model, scan=True, **remat)), gradient(model)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_the_remat_policy_decides_what_is_computed_again(scan):
    model = small_model(depth=3, inner_implementation="reference", scan=scan)
    variables = random_variables(model)

    def products(**changes):
        def loss(values):
            return update(model, **changes).apply(values, images()).sum()

        jaxpr = jax.make_jaxpr(jax.grad(loss))(variables)
        dense = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "dot_general"]
        batched = [e for e in dense if e.params["dimension_numbers"][1][0]]
        return len(dense) - len(batched), len(batched)

    plain, kept, whole = (
        products(),
        products(remat=True, remat_policy="dots_with_no_batch_dims_saveable"),
        products(remat=True),
    )
    assert kept[0] == plain[0] < whole[0]  # dense layers
    assert plain[1] < kept[1] == whole[1]  # attention


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "jaxpr")):
            if hasattr(value, "jaxpr"):
                yield from _equations(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from _equations(value)


def test_the_scanned_model_compiles_one_block_for_all():
    model = small_model(depth=6)
    variables = random_variables(model)

    def lines(model):
        return jax.jit(model.apply).lower(variables, images()).as_text().count("\n")

    assert lines(update(model, scan=True)) < 0.5 * lines(model)


def test_deit_is_a_tnt_without_tnt_blocks():
    model = small_model(tnt_blocks=())
    params = random_variables(model)["params"]
    assert "patch_embedding" in params and not any(name.startswith("word") for name in params)
    _, features = run(model, {"params": params}, images(), return_features=True)
    assert features["words"] == [] and len(features["sentences"]) == 2


def test_position_encodings_can_be_left_out():
    params = random_variables(small_model(word_position=False, sentence_position=False))["params"]
    assert "word_position" not in params and "sentence_position" not in params


def test_other_image_sizes_interpolate_the_sentence_positions():
    model = small_model()
    variables = random_variables(model)
    _, features = run(model, variables, images(1, 24), return_features=True)
    assert features["sentences"][0].shape == (1, 37, 24)
    with pytest.raises(ValueError, match="not a multiple"):
        run(model, variables, images(1, 18))


def test_bfloat16_arithmetic_keeps_float32_parameters_and_logits():
    model = small_model(dtype="bfloat16")
    variables = random_variables(model)
    created = jax.eval_shape(model.init, jax.random.key(0), images())
    assert {leaf.dtype for leaf in jax.tree.leaves(created)} == {jnp.dtype("float32")}
    logits, features = run(model, variables, images(), return_features=EVERYTHING)
    assert logits.dtype == jnp.float32 and features["sentences"][0].dtype == jnp.bfloat16
    assert features["outer_attention"][0].dtype == jnp.float32
    np.testing.assert_allclose(logits, run(small_model(), variables, images()), atol=0.1)


def test_no_head_gives_what_it_would_read():
    """Without a head the output is the class token, or the mean of the sentences, after the last norm."""
    model = small_model(num_classes=0)
    variables = random_variables(model)
    assert "head" not in variables["params"]
    token, features = run(model, variables, images(), return_features=("sentences",))
    normed = layers.Layers.of(model.config).norm("norm")
    normed = normed.apply({"params": variables["params"]["norm"]}, features["sentences"][-1])
    np.testing.assert_allclose(token, normed[:, 0], atol=1e-6)
    mean = run(update(model, pooling="mean"), variables, images())
    np.testing.assert_allclose(mean, normed[:, 1:].mean(1), atol=1e-6)


def test_the_heads_dropout_is_in_training_alone_and_before_the_head():
    without, with_it = small_model(), small_model(head_dropout=0.5)
    variables = random_variables(without)
    variables["params"]["head"]["kernel"] = jnp.eye(24, 5)  # logits are the head's first five inputs
    variables["params"]["head"]["bias"] = jnp.zeros(5)
    evaluated = run(without, variables, images())
    np.testing.assert_array_equal(run(with_it, variables, images()), evaluated)
    trained = run(with_it, variables, images(), train=True, rngs={"dropout": jax.random.key(3)})
    dropped = np.asarray(trained) == 0
    assert 0 < dropped.sum() < dropped.size
    np.testing.assert_allclose(trained[~dropped], 2 * evaluated[~dropped], rtol=1e-5)


def test_layer_scale_is_a_factor_a_channel_on_every_branch():
    plain, scaled = small_model(), small_model(layer_scale=0.25)
    variables = random_variables(scaled)
    folded = jax.tree.map(lambda leaf: leaf, variables)  # gamma (x W + b) = x (W gamma) + b gamma
    for block in (folded["params"][f"block_{i}"][part] for i in (1, 2) for part in ("inner", "outer")):
        for name, (module, layer) in {"1": ("attention", "output"), "2": ("mlp", "dense2")}.items():
            gamma = block.pop(f"layer_scale{name}")["gamma"]
            block[module][layer] = jax.tree.map(lambda leaf, gamma=gamma: leaf * gamma, block[module][layer])
    found, expected = run(scaled, variables, images()), run(plain, folded, images())
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_sine_cosine_positions_are_no_parameter_and_follow_the_images_grid():
    model = small_model(sentence_encoding="sincos")
    variables = random_variables(model)
    learned = small_model()
    assert "sentence_position" not in variables["params"]
    positions = {"sentence_position": sincos_positions((4, 4), 24)}
    found, expected = (
        run(model, variables, images()),
        run(learned, {"params": variables["params"] | positions}, images()),
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    _, features = run(model, variables, images(1, 24), return_features=("sentences",))
    assert features["sentences"][0].shape == (1, 37, 24)


@pytest.mark.parametrize(
    ("shape", "hint"),
    [((2, 3, 16, 16), "channels come last"), ((16, 16, 3), "batch axis"), ((2, 16, 16, 1), r"got \[2, 16, 16, 1\]")],
)
def test_images_of_another_layout_are_named(shape, hint):
    model = small_model()
    variables = random_variables(model)
    with pytest.raises(ValueError, match=rf"images must be \[B, H, W, 3\].*{hint}"):
        model.apply(variables, jnp.zeros(shape))


def test_the_definition_does_not_know_what_makes_it_fast():
    """And it is short: changing the model takes reading only this file."""
    source = Path(tnt.__file__).read_text()
    assert len(source.splitlines()) <= 220
    assert not re.findall(r"\b(lanes?|fused|scan\w*|remat\w*|platforms?|kernels?|layouts?|forms?)\b", source.lower())
    assert not re.findall(r"import .*fast|from .*fast", source)
