"""Features under timm's names: the requested blocks, their shapes, and no needless computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnt_jax
from tests.models.helpers import images, random_variables, run, small_model
from tests.pretrained import published
from tnt_jax.models.intermediates import forward_features, forward_intermediates
from tnt_jax.models.tnt import pool

MODELS = {"TNT": {}, "mixed": {"tnt_blocks": (2,)}, "DeiT": {"tnt_blocks": ()}, "scan": {"scan": True}}


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_the_sentences_of_the_blocks_asked_for(name):
    model = small_model(depth=3, **MODELS[name])
    variables, pixels = random_variables(model), images()
    _, features = model.apply(variables, pixels, return_features=("sentences",))
    found = forward_intermediates(model, variables, pixels, (-1, 0))
    for each, block in zip(found, (2, 0), strict=True):
        expected = features["sentences"][block][:, 1:].reshape(2, 4, 4, 24)
        np.testing.assert_allclose(each, expected, atol=1e-5)
    assert len(forward_intermediates(model, variables, pixels)) == 3
    assert len(forward_intermediates(model, variables, pixels, np.int64(1))) == 1
    assert [each.shape for each in forward_intermediates(model, variables, pixels, 2)] == [(2, 4, 4, 24)] * 2


def test_tokens_before_pooling_are_what_the_head_reads():
    for pooling in ("class_token", "mean"):
        model = small_model(pooling=pooling)
        variables = random_variables(model)
        tokens = forward_features(model, variables, images())
        assert tokens.shape == (2, 17, 24)
        head = variables["params"]["head"]
        logits = pool(tokens, pooling) @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits, model.apply(variables, images()), atol=1e-5)


def test_a_map_of_another_shape_than_square():
    model = small_model()
    pixels = jnp.zeros((1, 12, 20, 3))
    assert forward_intermediates(model, random_variables(model), pixels, (0,))[0].shape == (1, 3, 5, 24)


NEEDED = (
    "word_embedding",
    "word_position",
    "sentence_embedding",
    "sentence_position",
    "class_token",
    "block_1",
    "norm",
)


def test_blocks_behind_the_last_one_asked_for_are_not_computed():
    model = small_model(depth=3)
    variables = random_variables(model)
    without = {"params": {name: leaf for name, leaf in variables["params"].items() if name in NEEDED}}
    found = forward_intermediates(model, without, images(), (0,))[0]
    np.testing.assert_array_equal(found, forward_intermediates(model, variables, images(), (0,))[0])


def test_blocks_before_the_first_inner_block():
    model = small_model(depth=3, tnt_blocks=(3,))
    variables = random_variables(model)
    (first,) = forward_intermediates(model, variables, images(), (0,), maps=False, class_token=True)
    _, features = run(model, variables, images(), return_features=("sentences",))
    np.testing.assert_allclose(first, features["sentences"][0], atol=1e-6)


def test_they_are_those_of_timm():
    model, found = published.model("tnt_tiny"), published.outputs("tnt_tiny")
    variables = tnt_jax.load_pretrained(published.weights_file("tnt_tiny"), model)
    blocks = [int(name.removeprefix("block_")) for name in found if name.startswith("block_")]  # timm's block numbers
    tokens = tnt_jax.forward_intermediates(model, variables, found["image"], blocks, maps=False, class_token=True)
    for block, each in zip(blocks, tokens, strict=True):
        np.testing.assert_allclose(each, found[f"block_{block}"], atol=2e-5)
    assert len(blocks) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"indices": (2,)}, "indices=.2.: the model has the blocks 0 to 1"),
        ({"indices": ()}, "the model has the blocks 0 to 1"),
        ({"indices": 3}, "indices=3: the last 3 of 2 blocks; take 1 to 2"),
        ({"class_token": True}, "a map has no place for it"),
    ],
)
def test_what_is_not_there(arguments, message):
    model = small_model()
    with pytest.raises(ValueError, match=message):
        forward_intermediates(model, jax.eval_shape(model.init, jax.random.key(0), images()), images(), **arguments)
