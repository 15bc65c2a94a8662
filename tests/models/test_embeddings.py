import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tnt_jax
from tnt_jax.models import embeddings, patches
from tnt_jax.models.layers import Ops


def convolve(images, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def word_embedding(patch, word, features=5, **changes):
    sizes = {"image_size": patch, "patch_size": patch, "word_size": word, "inner_dim": features, "inner_num_heads": 1}
    config = tnt_jax.create_model("tnt_s_patch16_224", **sizes, **changes).config
    return embeddings.WordEmbedding(config, Ops.definition(config))


@pytest.mark.parametrize(("patch", "word"), [(16, 4), (16, 2), (16, 16), (14, 7)])
def test_the_words_are_a_convolution_inside_each_patch(patch, word):
    images = jax.random.normal(jax.random.key(0), (2, 2 * patch, 3 * patch, 3))
    module = word_embedding(patch, word)
    variables = module.init(jax.random.key(1), images)
    words = module.apply(variables, images)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    patches = images.reshape(2, 2, patch, 3, patch, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, patch, patch, 3)
    expected = convolve(patches, kernel, word, ((3, 3), (3, 3))) + bias
    assert words.shape == (2 * 6, (patch // word) ** 2, 5)
    np.testing.assert_allclose(words, expected.reshape(words.shape), atol=2e-5)


def test_the_legacy_convolution_crosses_the_patches():
    images = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
    module = word_embedding(8, 4, legacy=True)
    variables = module.init(jax.random.key(1), images)
    whole = convolve(images, variables["params"]["kernel"], 4, ((3, 3), (3, 3))) + variables["params"]["bias"]
    expected = whole.reshape(1, 2, 2, 2, 2, 5).transpose(0, 1, 3, 2, 4, 5).reshape(4, 4, 5)
    np.testing.assert_allclose(module.apply(variables, images), expected, atol=2e-5)


def test_patch_embedding_is_a_convolution():
    images = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    sizes = {"image_size": 4, "patch_size": 4, "outer_dim": 6, "outer_num_heads": 1}
    module = embeddings.PatchEmbedding(tnt_jax.create_model("deit_tiny_patch16_224", **sizes).config)
    variables = module.init(jax.random.key(1), images)
    expected = convolve(images, variables["params"]["kernel"], 4, "VALID") + variables["params"]["bias"]
    np.testing.assert_allclose(module.apply(variables, images), expected.reshape(2, 6, 6), atol=1e-5)


def test_the_convolution_starts_as_pytorch_starts_it():
    module = word_embedding(16, 4, features=64)
    params = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    bound = (7 * 7 * 3) ** -0.5
    for value in (params["kernel"], params["bias"]):
        assert float(jnp.abs(value).max()) <= bound
        assert abs(float(value.std()) / (bound / 3**0.5) - 1) < 0.15


def test_sine_cosine_positions_tell_rows_and_columns_apart():
    """Quarters of a vector: sine and cosine of the column, sine and cosine of the row; frequencies 1 to 1 / 10,000."""
    positions = np.asarray(embeddings.sincos_positions((3, 5), 12))
    assert positions.shape == (16, 12) and positions.dtype == np.float32 and not positions[0].any()
    row, column, frequencies = 2, 4, np.array([1, 1e-2, 1e-4])
    parts = [np.sin(column * frequencies), np.cos(column * frequencies)]
    parts += [np.sin(row * frequencies), np.cos(row * frequencies)]
    np.testing.assert_allclose(positions[1 + 5 * row + column], np.concatenate(parts), rtol=1e-6)


@pytest.mark.parametrize(("size", "fix"), [(225, "224 or 240"), (10, "16")])
def test_a_size_that_patches_do_not_divide_gets_the_fix(size, fix):
    with pytest.raises(ValueError, match=f"image_size={size} is not a multiple of patch_size=16; use {fix}"):
        patches.grid_of((size, size), 16)


def test_grid_of_a_rectangle():
    assert patches.grid_of((32, 64), 16) == (2, 4)
    assert embeddings.num_sentences((32, 64), 16) == 8
