import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from tnt_jax.models import layers


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 1001).astype(np.float32)
    exact = x * 0.5 * (1 + erf(x.astype(np.float64) / np.sqrt(2)))
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), exact, atol=1e-6)  # the tanh form is 5e-4 off
    assert layers.gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_gelu_in_bfloat16_is_the_exact_one_rounded_and_so_is_its_slope():
    x = jnp.linspace(-8, 8, 4001).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    phi = 0.5 * (1 + erf(wide / np.sqrt(2)))
    slope = phi + wide * np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi)
    values, slopes = jax.vmap(jax.value_and_grad(layers.gelu))(x)
    assert values.dtype == slopes.dtype == jnp.bfloat16
    for found, exact in ((values, wide * phi), (slopes, slope)):
        rounding = np.abs(exact) * 2.0**-8 + 4e-6
        assert (np.abs(np.asarray(found, np.float64) - exact) <= rounding).all()


@pytest.mark.parametrize("shape", [(3, 16, 2, 6), (2, 5, 1, 8), (1, 4, 4, 24), (2, 64, 3, 2)])
def test_the_attention_forms_give_the_same_numbers_and_gradients(shape):
    query, key, value, weight = (jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(0), 4))

    def loss(query, key, value, form):
        return (layers.attend(query, key, value, form) * weight).sum()

    for form in ("broadcast", "einsum"):
        np.testing.assert_allclose(
            layers.attend(query, key, value, form), layers.attend(query, key, value, "dot"), atol=3e-6
        )
        ours = jax.grad(loss, (0, 1, 2))(query, key, value, form)
        for a, b in zip(ours, jax.grad(loss, (0, 1, 2))(query, key, value, "dot"), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_attention_against_its_definition():
    query, key, value = np.random.default_rng(0).standard_normal((3, 7, 2, 4))
    for head in range(2):
        scores = query[:, head] @ key[:, head].T / 2.0
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        got = layers.attend(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))[:, head]
        np.testing.assert_allclose(got, weights @ value[:, head], atol=2e-6)
        seen = layers.attention_weights(jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32))[head]
        np.testing.assert_allclose(seen, weights, atol=2e-6)


def test_large_scores_do_not_overflow():
    query = jnp.full((4, 1, 2), 200.0)
    for form in ("einsum", "dot", "broadcast"):
        assert jnp.isfinite(layers.attend(query, query, query, form)).all()


def test_an_unknown_attention_form_names_the_known_ones():
    with pytest.raises(ValueError, match="einsum, dot, broadcast"):
        layers.attend(*[jnp.ones((2, 1, 1))] * 3, form="flash")


def test_softmax_is_float32_in_bfloat16_arithmetic():
    query = jax.random.normal(jax.random.key(0), (6, 1, 8), jnp.bfloat16)
    assert layers.attention_weights(query, query).dtype == jnp.float32
    assert layers.attend(query, query, query, "dot").dtype == jnp.bfloat16


def test_keep_factors_keep_the_expectation():
    factors = layers.keep_factors(jax.random.key(0), (20_000,), 0.3)
    np.testing.assert_allclose(np.unique(factors), [0, 1 / 0.7], rtol=1e-6)
    assert abs(float((factors == 0).mean()) - 0.3) < 0.015
    np.testing.assert_array_equal(layers.keep_factors(jax.random.key(0), (10,), 0.0), 1)


def test_drop_path_scales_whole_examples():
    branch = jnp.ones((2, 3, 4))
    np.testing.assert_array_equal(layers.drop_path(branch, jnp.array([0.0, 2.0]))[:, 0, 0], [0, 2])
    assert layers.drop_path(branch, None) is branch


def test_initial_weights_have_the_published_spread():
    drawn = layers.normal_init(jax.random.key(0), (200, 200), jnp.float32)
    assert abs(float(drawn.std()) - 0.02) < 3e-4  # cut at two deviations it would be 0.0176
    assert float(jnp.abs(drawn).max()) > 0.06


def test_squeeze_excitation_gates_each_channel_for_the_whole_image():
    module = layers.SqueezeExcitation(1e-5)
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = module.init(jax.random.key(1), x)
    gate = module.apply(variables, x) / x - 1  # the ungated branch is added
    np.testing.assert_allclose(gate, jnp.broadcast_to(gate[:, :1], x.shape), rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(gate).max()) < 1
    assert variables["params"]["dense1"]["kernel"].shape == (8, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_flat_mlp_is_the_plain_one_in_products_of_two_matrices_backward_too(dtype):
    plain, flat = layers.MLP(2.0, dtype), layers.MLP(2.0, dtype, flat=True)
    x = jax.random.normal(jax.random.key(0), (3, 5, 8), dtype)
    variables = plain.init(jax.random.key(1), x)
    assert jax.tree.structure(variables) == jax.tree.structure(flat.init(jax.random.key(1), x))

    def gradient(module):
        return jax.jit(jax.grad(lambda variables, x: module.apply(variables, x).astype(jnp.float32).sum(), (0, 1)))

    ours, theirs = gradient(flat), gradient(plain)
    tolerance = 2e-6 if dtype == jnp.float32 else 2e-2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance * 10),
        ours(variables, x),
        theirs(variables, x),
    )
    products = [line for line in ours.lower(variables, x).as_text().splitlines() if "dot_general" in line]
    shapes = re.findall(r"tensor<([0-9x]+)x(?:f32|bf16)>", " ".join(products))
    assert len(products) == 5 and all(shape.count("x") == 1 for shape in shapes), products
