import jax
import jax.numpy as jnp
import numpy as np

import tnt_jax
from tnt_jax.models.layers import Ops, over_sentences
from tnt_jax.models.tnt import InnerBlock

SENTENCES, WORDS, CHANNELS = 5, 4, 6
SIZES = {"image_size": 4, "patch_size": 4, "word_size": 2, "inner_dim": CHANNELS, "inner_num_heads": 2}
CONFIG = tnt_jax.create_model("tnt_s_patch16_224", **SIZES).config
ARGUMENTS = CONFIG, Ops.definition(CONFIG)


def mapped():
    return over_sentences(InnerBlock)(*ARGUMENTS)


def test_the_map_is_the_block_of_one_sentence_with_shared_weights():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, {}, False)
    one = InnerBlock(*ARGUMENTS)
    assert jax.tree.structure(variables) == jax.tree.structure(one.init(jax.random.key(1), words[0], {}))
    together, attention = mapped().apply(variables, words, {}, True)
    for i in range(SENTENCES):
        alone, weights = one.apply(variables, words[i], {}, return_weights=True)
        np.testing.assert_allclose(together[i], alone, atol=2e-6)
        np.testing.assert_allclose(attention[i], weights, atol=2e-6)
    assert attention.shape == (SENTENCES, 2, WORDS, WORDS)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)


def test_sentences_do_not_see_each_other():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, {}, False)
    jacobian = jax.jacrev(lambda x: mapped().apply(variables, x, {}, False)[0])(words)
    touched = jnp.abs(jacobian).sum((1, 2, 4, 5))
    np.testing.assert_array_equal(touched > 0, np.eye(SENTENCES, dtype=bool))


def test_permuted_words_give_permuted_words():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, {}, False)
    order = jnp.array([2, 0, 3, 1])
    straight = mapped().apply(variables, words, {}, False)[0]
    permuted = mapped().apply(variables, words[:, order], {}, False)[0]
    np.testing.assert_allclose(permuted, straight[:, order], atol=2e-6)


def test_drop_path_is_drawn_for_each_sentence():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, {}, False)
    mask = jnp.array([0.0, 1.0, 0.0, 1.0, 0.0])
    full = mapped().apply(variables, words, {}, False)[0]
    masks = {"inner_attention": mask, "inner_mlp": mask}
    dropped = mapped().apply(variables, words, masks, False)[0]
    np.testing.assert_allclose(dropped[1::2], full[1::2], atol=2e-6)
    np.testing.assert_array_equal(dropped[::2], words[::2])
