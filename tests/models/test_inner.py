import functools

import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.models.inner import InnerBlock, over_sentences

SENTENCES, WORDS, CHANNELS = 5, 4, 6


def mapped(return_weights=False, with_drop_path=False):
    return over_sentences(return_weights, with_drop_path)(num_heads=2)


def test_the_map_is_the_block_of_one_sentence_with_shared_weights():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, None, None, False)
    one = InnerBlock(num_heads=2)
    assert jax.tree.structure(variables) == jax.tree.structure(one.init(jax.random.key(1), words[0]))
    together, attention = mapped(True).apply(variables, words, None, None, True)
    for i in range(SENTENCES):
        alone, weights = one.apply(variables, words[i], return_weights=True)
        np.testing.assert_allclose(together[i], alone, atol=2e-6)
        np.testing.assert_allclose(attention[i], weights, atol=2e-6)
    assert attention.shape == (SENTENCES, 2, WORDS, WORDS)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)


def test_sentences_do_not_see_each_other():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, None, None, False)
    jacobian = jax.jacrev(lambda x: mapped().apply(variables, x, None, None, False)[0])(words)
    touched = jnp.abs(jacobian).sum((1, 2, 4, 5))
    np.testing.assert_array_equal(touched > 0, np.eye(SENTENCES, dtype=bool))


def test_permuted_words_give_permuted_words():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, None, None, False)
    order = jnp.array([2, 0, 3, 1])
    straight = mapped().apply(variables, words, None, None, False)[0]
    permuted = mapped().apply(variables, words[:, order], None, None, False)[0]
    np.testing.assert_allclose(permuted, straight[:, order], atol=2e-6)


def test_drop_path_is_drawn_for_each_sentence():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    variables = mapped().init(jax.random.key(1), words, None, None, False)
    keep = jnp.array([0.0, 1.0, 0.0, 1.0, 0.0])
    full = mapped().apply(variables, words, None, None, False)[0]
    dropped = mapped(with_drop_path=True).apply(variables, words, keep, keep, False)[0]
    np.testing.assert_allclose(dropped[1::2], full[1::2], atol=2e-6)
    np.testing.assert_array_equal(dropped[::2], words[::2])


def test_all_sentences_at_once_are_the_mapped_block_with_its_gradients():
    words = jax.random.normal(jax.random.key(0), (SENTENCES, WORDS, CHANNELS))
    keep = jnp.array([0.0, 1.0, 2.0, 1.0, 0.0])
    weight = jax.random.normal(jax.random.key(2), words.shape)
    variables = mapped().init(jax.random.key(1), words, None, None, False)
    flat = over_sentences(True, True, flat=True)(num_heads=2, attention_form="dot")

    def loss(block, variables, words):
        mixed, attention = block.apply(variables, words, keep, keep, True)
        return (mixed * weight).sum(), (mixed, attention)

    def graded(block):
        return jax.jit(jax.value_and_grad(functools.partial(loss, block), (0, 1), has_aux=True))(variables, words)

    (_, found), gradients = graded(flat)
    (_, want), expected = graded(mapped(True, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6), (found, gradients), (want, expected))
