import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import erf

from tnt_jax.models import layers


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 1001).astype(np.float32)
    exact = x * 0.5 * (1 + erf(x.astype(np.float64) / np.sqrt(2)))
    np.testing.assert_allclose(layers.gelu(jnp.asarray(x)), exact, atol=1e-6)  # the tanh approximation is off by 5e-4
    assert layers.gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16


def test_attention_against_its_definition():
    query, key, value = np.random.default_rng(0).standard_normal((3, 7, 2, 4))
    for head in range(2):
        scores = query[:, head] @ key[:, head].T / 2.0
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        got = layers.attend(*(jnp.asarray(x, jnp.float32) for x in (query, key, value)))[:, head]
        np.testing.assert_allclose(got, weights @ value[:, head], atol=2e-6)
        seen = layers.attention_weights(jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32))[head]
        np.testing.assert_allclose(seen, weights, atol=2e-6)


def test_softmax_is_float32_in_bfloat16_arithmetic():
    query = jax.random.normal(jax.random.key(0), (6, 1, 8), jnp.bfloat16)
    assert layers.attention_weights(query, query).dtype == jnp.float32
    assert layers.attend(query, query, query).dtype == jnp.bfloat16


def test_layer_scale_starts_where_it_is_told_to():
    x = jnp.arange(6.0).reshape(2, 3)
    scale = layers.LayerScale(0.25)
    variables = scale.init(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["gamma"], [0.25] * 3)
    gamma = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_array_equal(scale.apply({"params": {"gamma": gamma}}, x), x * gamma)
    assert scale.apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_squeeze_excitation_gates_each_channel_for_the_whole_image():
    module = layers.SqueezeExcitation(layers.Layers(jnp.float32, 1e-5))
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = module.init(jax.random.key(1), x)
    gate = module.apply(variables, x) / x - 1  # the ungated branch is added
    np.testing.assert_allclose(gate, jnp.broadcast_to(gate[:, :1], x.shape), rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(gate).max()) < 1
    assert variables["params"]["dense1"]["kernel"].shape == (8, 2)
