"""The fused inner block against the readable one of models/inner.py, in Pallas' interpret mode on the CPU."""

import jax
import jax.numpy as jnp
import pytest

from tnt_jax.models.inner import over_sentences
from tnt_jax.models.pallas.block import inner_block

# The interpreter turns the unrolled kernel into thousands of operations: compile them fast, not well.
FAST_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
EPSILON = 1e-5


def make_case(sentences, num_words, channels, heads, qkv_bias=False):
    """-> (the reference as a function, its parameters with nothing left at 0 or 1, words, two keep factors)."""
    keys = jax.random.split(jax.random.key(sentences), 4)
    words = jax.random.normal(keys[0], (sentences, num_words, channels)) + 0.5
    keeps = [jax.random.bernoulli(key, 0.8, (sentences,)) / 0.8 for key in keys[1:3]]
    block = over_sentences(False, True)(heads, 4.0, qkv_bias, EPSILON, "dot")
    params = block.init(keys[3], words, *keeps, False)["params"]
    leaves, tree = jax.tree.flatten(params)
    split = jax.random.split(keys[3], len(leaves))
    noise = [jax.random.normal(key, leaf.shape) for key, leaf in zip(split, leaves, strict=True)]
    params = jax.tree.unflatten(tree, [leaf + 0.2 * extra for leaf, extra in zip(leaves, noise, strict=True)])

    def reference(words, params):
        with jax.default_matmul_precision("highest"):
            return block.apply({"params": params}, words, *keeps, False)[0]

    return reference, params, words, keeps


def door(params):
    """Parameters of InnerBlock -> those of inner_block."""
    attention, mlp = params["attention"], params["mlp"]
    biases = {}
    if "bias" in attention["query_key"]:
        biases = {"query_key_bias": attention["query_key"]["bias"], "value_bias": attention["value"]["bias"]}
    return {
        "norm1": params["norm1"],
        "norm2": params["norm2"],
        "query_key": attention["query_key"]["kernel"],
        "value": attention["value"]["kernel"],
        "output": attention["output"],
        "dense1": mlp["dense1"],
        "dense2": mlp["dense2"],
        **biases,
    }


def fused(heads, keeps):
    """-> inner_block as a function of words and InnerBlock's parameters."""
    return lambda words, params: inner_block(
        words, door(params), *keeps, num_heads=heads, epsilon=EPSILON, interpret=True
    )


def with_gradients(function):
    """-> function (words, params, upper) -> (output, gradients of words and parameters), compiled."""

    def both(words, params, upper):
        out, pull = jax.vjp(function, words, params)
        return out, pull(upper.astype(out.dtype))

    return jax.jit(both, compiler_options=FAST_COMPILE)


def largest_error(found, expected):
    """The largest difference of any leaf, relative to that leaf's largest number."""

    def error(a, b):
        return jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max()

    return max(float(e) for e in jax.tree.leaves(jax.tree.map(error, found, expected)))


def usual_error(found, expected):
    """Root mean square of the differences of one array."""
    return float(jnp.sqrt(((found.astype(jnp.float32) - expected) ** 2).mean()))


@pytest.mark.parametrize(
    ("sentences", "num_words", "channels", "heads", "qkv_bias"),
    [(1030, 4, 12, 2, False), (5, 4, 40, 8, True), (3, 64, 6, 6, False), (3, 16, 24, 4, False)],
)
def test_output_and_every_gradient_equal_the_reference(sentences, num_words, channels, heads, qkv_bias):
    reference, params, words, keeps = make_case(sentences, num_words, channels, heads, qkv_bias)
    upper = jax.random.normal(jax.random.key(9), words.shape)
    expected = with_gradients(reference)(words, params, upper)
    found = with_gradients(fused(heads, keeps))(words, params, upper)
    assert found[0].shape == words.shape
    assert largest_error(found, expected) < 2e-6


def test_bfloat16_is_no_worse_than_the_plain_form_in_bfloat16():
    reference, params, words, keeps = make_case(9, 4, 12, 2)
    words = words.astype(jnp.bfloat16)
    upper = jax.random.normal(jax.random.key(9), words.shape).astype(jnp.bfloat16)
    exact = with_gradients(reference)(words.astype(jnp.float32), params, upper.astype(jnp.float32))
    plain_block = over_sentences(False, True)(2, 4.0, False, EPSILON, "dot", jnp.bfloat16)
    plain = with_gradients(lambda w, p: plain_block.apply({"params": p}, w, *keeps, False)[0])(words, params, upper)
    found = with_gradients(fused(2, keeps))(words, params, upper)
    assert found[0].dtype == found[1][0].dtype == jnp.bfloat16
    # The output, and the gradients of the words and of every parameter; of a dozen numbers the error is half luck.
    for ours, theirs, right in zip(*map(jax.tree.leaves, (found, plain, exact)), strict=True):
        assert usual_error(ours, right) <= (1 if right.size >= 100 else 2) * usual_error(theirs, right), right.shape


def test_pmap_and_checkpoint_give_the_same_gradients():
    reference, params, words, keeps = make_case(8, 4, 12, 2)
    factors = jnp.stack(keeps, axis=1)

    def loss(params, words, factors):
        block = jax.checkpoint(fused(2, (factors[:, 0], factors[:, 1])))
        return (block(words, params) ** 2).sum()

    def step(params, words, factors):
        return jax.lax.psum(jax.grad(loss)(params, words, factors), "batch")

    halves = words.reshape(2, 4, 4, 12), factors.reshape(2, 4, 2)
    step = jax.pmap(step, "batch", in_axes=(None, 0, 0), devices=jax.devices()[:2])
    step = step.lower(params, *halves).compile(compiler_options=FAST_COMPILE)
    found = jax.tree.map(lambda leaf: leaf[0], step(params, *halves))
    expected = jax.grad(lambda params: (reference(words, params) ** 2).sum())(params)
    assert largest_error(found, expected) < 2e-6


def test_impossible_sizes_say_what_to_do():
    _, params, words, keeps = make_case(2, 4, 12, 2)
    with pytest.raises(ValueError, match="xla implementation"):
        fused(2, keeps)(words[:, :3], params)
    with pytest.raises(ValueError, match="heads"):
        fused(5, keeps)(words, params)
    with pytest.raises(ValueError, match="float16"):
        fused(2, keeps)(words.astype(jnp.float16), params)
