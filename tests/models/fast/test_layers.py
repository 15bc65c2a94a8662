"""Fast attention, GELU, dense layers and stem against their definitions."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from tnt_jax.models import layers, patches
from tnt_jax.models.fast import dense, stem
from tnt_jax.models.fast.attention import broadcast_attention, dot_attention, einsum_attention
from tnt_jax.models.fast.gelu import gelu

FORMS = (dot_attention, broadcast_attention, einsum_attention)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 16, 2, 6), (2, 5, 1, 8), (1, 4, 4, 24), (2, 64, 3, 2)])
def test_attention_gives_the_definitions_numbers_and_gradients(form, shape):
    query, key, value, weight = (jax.random.normal(k, shape) for k in jax.random.split(jax.random.key(0), 4))

    def graded(attend):
        return jax.value_and_grad(lambda *inputs: (attend(*inputs) * weight).sum(), (0, 1, 2))(query, key, value)

    for ours, right in zip(*map(jax.tree.leaves, (graded(form), graded(layers.attend))), strict=True):
        np.testing.assert_allclose(ours, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_large_scores_do_not_overflow(form):
    query = jnp.full((4, 1, 2), 200.0)
    assert jnp.isfinite(form(query, query, query)).all()


def test_gelu_in_bfloat16_is_the_exact_one_rounded_and_so_is_its_slope():
    x = jnp.linspace(-8, 8, 4001).astype(jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    phi = 0.5 * (1 + erf(wide / np.sqrt(2)))
    slope = phi + wide * np.exp(-0.5 * wide**2) / np.sqrt(2 * np.pi)
    values, slopes = jax.vmap(jax.value_and_grad(gelu))(x)
    assert values.dtype == slopes.dtype == jnp.bfloat16
    for found, exact in ((values, wide * phi), (slopes, slope)):
        rounding = np.abs(exact) * 2.0**-8 + 4e-6
        assert (np.abs(np.asarray(found, np.float64) - exact) <= rounding).all()


def test_gelu_in_float32_is_the_definition():
    x = jnp.linspace(-6, 6, 1001)
    np.testing.assert_array_equal(gelu(x), layers.gelu(x))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mapped", [False, True])
def test_dense_layers_are_products_of_two_matrices_backward_too(dtype, mapped):
    """FlatDense alone and MappedDense under nn.vmap have the values and gradients of nn.Dense."""
    settings = {"features": 6, "dtype": dtype, "bias_init": nn.initializers.normal(1.0)}
    plain = nn.Dense(**settings)
    over = layers.over_sentences(_Under) if mapped else _Under
    fast = over(dense.MappedDense if mapped else dense.FlatDense, 6, dtype)
    x = jax.random.normal(jax.random.key(0), (3, 5, 8), dtype)
    params = plain.init(jax.random.key(1), x)["params"]

    def loss(params, x):
        return jnp.square(fast.apply({"params": {"dense": params}}, x, {}, False).astype(jnp.float32)).sum()

    def right(params, x):
        return jnp.square(plain.apply({"params": params}, x).astype(jnp.float32)).sum()

    ours = jax.jit(jax.grad(loss, (0, 1)))
    tolerance = 1e-5 if dtype == jnp.float32 else 3e-2
    pair = ours(params, x), jax.grad(right, (0, 1))(params, x)
    for a, b in zip(*map(jax.tree.leaves, pair), strict=True):
        assert float(jnp.abs(a - b).max()) <= tolerance * float(jnp.abs(b).max())
    products = [line for line in ours.lower(params, x).as_text().splitlines() if "dot_general" in line]
    shapes = re.findall(r"tensor<([0-9x]+)x(?:f32|bf16)>", " ".join(products))
    assert len(products) == 3 and all(shape.count("x") == 1 for shape in shapes), products


class _Under(nn.Module):
    """A dense layer with the call signature of a block."""

    layer: type
    features: int
    dtype: type

    @nn.compact
    def __call__(self, x, drop, return_weights):
        return self.layer(self.features, dtype=self.dtype, name="dense")(x)


def test_a_mapped_kernel_is_refused():
    with pytest.raises(ValueError, match="shares its kernel"):
        jax.vmap(dense._product)(jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5)))


@pytest.mark.parametrize("legacy_shape", [(2, 5, 8)])
def test_feature_major_layers_are_norm_and_dense(legacy_shape):
    x = jax.random.normal(jax.random.key(0), legacy_shape)
    for ours, right in (
        (
            lambda: dense.feature_major_norm(epsilon=1e-5, name="layer"),
            lambda: nn.LayerNorm(epsilon=1e-5, name="layer"),
        ),
        (lambda: dense.feature_major_dense(6, name="layer"), lambda: nn.Dense(6, name="layer")),
    ):
        plain = _Call(right)
        variables = plain.init(jax.random.key(1), x)
        variables = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape), variables)
        np.testing.assert_allclose(_Call(ours).apply(variables, x), plain.apply(variables, x), atol=2e-5)


class _Call(nn.Module):
    """Makes a layer and calls it."""

    make: object

    @nn.compact
    def __call__(self, x):
        return self.make()(x)


@pytest.mark.parametrize(("patch", "word"), [(16, 4), (16, 2), (16, 8), (16, 16), (8, 1), (4, 2), (14, 7)])
def test_the_stems_product_is_the_convolution_inside_each_patch(patch, word):
    images = jax.random.normal(jax.random.key(0), (2, 2 * patch, 3 * patch, 3))
    kernel = jax.random.normal(jax.random.key(1), (7, 7, 3, 5)) / 12
    found = stem.convolve_patches(images, kernel, patch, word)
    np.testing.assert_allclose(found, patches.convolve_patches(images, kernel, patch, word), atol=2e-5)
