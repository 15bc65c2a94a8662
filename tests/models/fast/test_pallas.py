"""The fused inner block against the definition, in Pallas' interpret mode on the CPU."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import tnt_jax
from tnt_jax.models.fast import tpu_ops
from tnt_jax.models.fast.fused import inner_block, obstacle
from tnt_jax.models.layers import Ops, over_sentences
from tnt_jax.models.tnt import InnerBlock


def config_of(num_words, channels, heads, qkv_bias=False, dtype="float32"):
    """Returns the config of a model with this many words per sentence."""
    side = 2 * round(num_words**0.5)
    sizes = {"image_size": side, "patch_size": side, "word_size": 2, "inner_dim": channels, "inner_num_heads": heads}
    return tnt_jax.create_model("tnt_s_patch16_224", **sizes, qkv_bias=qkv_bias, dtype=dtype).config


def make_case(sentences, num_words, channels, heads, qkv_bias=False):
    """Returns (config, the definition as a function, its parameters, none of them 0 or 1, words, drop-path masks)."""
    config = config_of(num_words, channels, heads, qkv_bias)
    keys = jax.random.split(jax.random.key(sentences), 4)
    words = jax.random.normal(keys[0], (sentences, num_words, channels)) + 0.5
    masks = [jax.random.bernoulli(key, 0.8, (sentences,)) / 0.8 for key in keys[1:3]]
    masks = dict(zip(("inner_attention", "inner_mlp"), masks, strict=True))
    block = over_sentences(InnerBlock)(config, Ops.definition(config))
    params = block.init(keys[3], words, masks, False)["params"]
    leaves, tree = jax.tree.flatten(params)
    split = jax.random.split(keys[3], len(leaves))
    noise = [jax.random.normal(key, leaf.shape) for key, leaf in zip(split, leaves, strict=True)]
    params = jax.tree.unflatten(tree, [leaf + 0.2 * extra for leaf, extra in zip(leaves, noise, strict=True)])

    def reference(words, params):
        with jax.default_matmul_precision("highest"):
            return block.apply({"params": params}, words, masks, False)[0]

    return config, reference, params, words, masks


def fused(config, masks):
    """Returns the kernel as a function of words [S, M, C] and InnerBlock's parameters."""
    return lambda words, params: inner_block(config, params, words, masks, interpret=True)


def with_gradients(function):
    """Compiles a function (words, params, cotangent) -> (output, gradients of words and parameters)."""

    def both(words, params, cotangent):
        out, pull = jax.vjp(function, words, params)
        return out, pull(cotangent.astype(out.dtype))

    return jax.jit(both)


def largest_error(found, expected):
    """Returns the largest difference of any leaf, relative to that leaf's largest value."""

    def error(a, b):
        return jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()

    return max(float(e) for e in jax.tree.leaves(jax.tree.map(error, found, expected)))


def usual_error(found, expected):
    """Returns the root-mean-square difference of two arrays."""
    return float(jnp.sqrt(((found.astype(jnp.float32) - expected) ** 2).mean()))


@pytest.mark.parametrize(
    ("sentences", "num_words", "channels", "heads", "qkv_bias"),
    [(1030, 4, 4, 2, False), (5, 4, 12, 2, True), (3, 64, 4, 4, False), (3, 16, 24, 4, False)],  # the last is TNT-S
)
def test_output_and_every_gradient_equal_the_reference(sentences, num_words, channels, heads, qkv_bias):
    config, reference, params, words, masks = make_case(sentences, num_words, channels, heads, qkv_bias)
    cotangent = jax.random.normal(jax.random.key(9), words.shape)
    expected = with_gradients(reference)(words, params, cotangent)
    found = with_gradients(fused(config, masks))(words, params, cotangent)
    assert found[0].shape == words.shape
    assert largest_error(found, expected) < 2e-6


def test_bfloat16_is_no_worse_than_the_plain_form_in_bfloat16():
    config, reference, params, words, masks = make_case(9, 4, 12, 2)
    words = words.astype(jnp.bfloat16)
    cotangent = jax.random.normal(jax.random.key(9), words.shape).astype(jnp.bfloat16)
    exact = with_gradients(reference)(words.astype(jnp.float32), params, cotangent.astype(jnp.float32))
    config = dataclasses.replace(config, dtype=jnp.bfloat16)
    plain_block = over_sentences(InnerBlock)(config, tpu_ops(config))
    plain = with_gradients(lambda w, p: plain_block.apply({"params": p}, w, masks, False)[0])(words, params, cotangent)
    found = with_gradients(fused(config, masks))(words, params, cotangent)
    assert found[0].dtype == found[1][0].dtype == jnp.bfloat16
    # Compares the output and all gradients; the error of an array of a dozen numbers is half luck.
    for ours, theirs, right in zip(*map(jax.tree.leaves, (found, plain, exact)), strict=True):
        assert usual_error(ours, right) <= (1 if right.size >= 100 else 2) * usual_error(theirs, right), right.shape


def test_pmap_and_checkpoint_give_the_same_gradients():
    config, reference, params, words, masks = make_case(8, 4, 12, 2)

    def loss(params, words, masks):
        return (jax.checkpoint(fused(config, masks))(words, params) ** 2).sum()

    def step(params, words, masks):
        return jax.lax.psum(jax.grad(loss)(params, words, masks), "batch")

    halves = words.reshape(2, 4, 4, 12), jax.tree.map(lambda mask: mask.reshape(2, 4), masks)
    step = jax.pmap(step, "batch", in_axes=(None, 0, 0), devices=jax.devices()[:2])
    found = jax.tree.map(lambda leaf: leaf[0], step(params, *halves))
    expected = jax.grad(lambda params: (reference(words, params) ** 2).sum())(params)
    assert largest_error(found, expected) < 2e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word_size": 4}, "xla implementation"),  # one word of 12 channels
        ({"mlp_ratio": 0.25}, "hidden channels"),
        ({"dtype": jnp.float16}, "float16"),
    ],
)
def test_impossible_sizes_say_what_to_do(changes, message):
    assert message in obstacle(dataclasses.replace(config_of(4, 12, 2), **changes), "interpreter")
