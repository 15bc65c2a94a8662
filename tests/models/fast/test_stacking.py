"""Stacking blocks and unstacking them, and the same model either way."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.helpers import images, random_variables, small_model
from tnt_jax.models.fast import cpu_ops
from tnt_jax.models.fast.scan import run_blocks
from tnt_jax.models.fast.stacking import block_runs, stack_blocks, unstack_blocks
from tnt_jax.models.variants import update


@pytest.mark.parametrize(
    ("tnt_blocks", "names"),
    [
        (None, ["blocks_1_4"]),
        ((), ["blocks_1_4"]),
        ((1, 2, 4), ["blocks_1_2", "blocks_3_3", "blocks_4_4"]),
    ],
)
def test_like_blocks_that_follow_one_another_are_one(tnt_blocks, names):
    params = random_variables(small_model(depth=4, tnt_blocks=tnt_blocks))["params"]
    stacked = stack_blocks(params)
    runs = block_runs(stacked)
    assert [name for name, _ in runs] == names
    assert [index for _, run in runs for index in run] == [1, 2, 3, 4]
    assert set(stacked) == {name for name in params if not name.startswith("block_")} | set(names)
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), params)
    for name, run in runs:
        scale = stacked[name]["outer"]["norm1"]["scale"]
        for at, index in enumerate(run):
            np.testing.assert_array_equal(scale[at], params[f"block_{index}"]["outer"]["norm1"]["scale"])


def test_blocks_stand_in_the_order_of_their_numbers():
    """A sorted dict of names has block_10 before block_2."""
    params = {f"block_{i}": {"kernel": np.full(2, i)} for i in range(1, 13)}
    stacked = stack_blocks(params)
    np.testing.assert_array_equal(stacked["blocks_1_12"]["kernel"][:, 0], range(1, 13))
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), params)


def test_parameters_are_found_anywhere_and_what_is_done_stays():
    params = {"block_1": {"bias": np.zeros(3)}, "block_2": {"bias": np.ones(3)}, "head": {"bias": np.ones(2)}}
    tree = {"step": np.int32(3), "moments": [params, (params, None)]}
    stacked = stack_blocks(tree)
    assert stacked["moments"][1][0]["blocks_1_2"]["bias"].shape == (2, 3)
    assert isinstance(stacked["moments"][0]["blocks_1_2"]["bias"], np.ndarray)
    jax.tree.map(np.testing.assert_array_equal, stack_blocks(stacked), stacked)
    back = unstack_blocks(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(tree) == jax.tree.structure(unstack_blocks(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_a_model_that_does_not_scan_wants_them_block_by_block():
    model = small_model(depth=2)
    stacked = stack_blocks(random_variables(model))
    with pytest.raises(flax.errors.FlaxError, match="block_1"):
        model.apply(stacked, images())
    assert update(model, scan=True).apply(stacked, images()).shape[-1] == model.num_classes


def test_a_gap_or_another_dtype_parts_blocks():
    params = {f"block_{i}": {"bias": np.full(2, i, kind)} for i, kind in ((1, "f4"), (3, "f4"), (4, "f4"), (5, "f2"))}
    stacked = stack_blocks(params)
    assert [name for name, _ in block_runs(stacked)] == ["blocks_1_1", "blocks_3_4", "blocks_5_5"]
    jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), params)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 4}, r"of 3 blocks, with an inner path in \[1, 2, 3\]; the model has depth=4"),
        ({"depth": 2}, "the model has depth=2"),
        ({"tnt_blocks": (1, 2)}, r"tnt_blocks=\[1, 2\]"),
    ],
)
def test_parameters_of_other_blocks_are_refused(changes, words):
    params = random_variables(small_model(depth=3))["params"]
    model = small_model(**{"depth": 3, "scan": True} | changes)
    for form in (params, stack_blocks(params)):
        with pytest.raises(ValueError, match=words):
            model.apply({"params": form}, images())


@pytest.mark.parametrize("tnt_blocks", [None, (1, 2)])
def test_a_scanned_model_takes_either_form(tnt_blocks):
    model = small_model(depth=3, tnt_blocks=tnt_blocks, scan=True, drop_path_rate=0.3)
    params = random_variables(model)["params"]

    def loss(params):
        logits = model.apply({"params": params}, images(), train=True, rngs={"dropout": jax.random.key(0)})
        return (logits * jnp.arange(5)).sum()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    stacked_value, stacked_gradient = jax.jit(jax.value_and_grad(loss))(stack_blocks(params))
    np.testing.assert_allclose(stacked_value, value, rtol=1e-6)
    assert set(stacked_gradient) == set(stack_blocks(params))
    for a, b in zip(jax.tree.leaves(unstack_blocks(stacked_gradient)), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("feature_major", [False, True])
def test_the_loop_hands_on_words_and_sentences_of_the_last_block(feature_major):
    model = small_model()
    words, sentences = jax.random.normal(jax.random.key(0), (32, 4, 6)), jnp.ones((2, 17, 24))
    loop = functools.partial(run_blocks, scan=True, policy=None, feature_major=feature_major)
    ops, params, requested = cpu_ops(model.config), random_variables(model)["params"], ("words", "sentences")
    words, sentences, features = loop(model.config, ops, params, words, sentences, None, requested)
    np.testing.assert_allclose(words, features[-1]["words"].reshape(words.shape), atol=1e-6)
    np.testing.assert_allclose(sentences, features[-1]["sentences"], atol=1e-6)
