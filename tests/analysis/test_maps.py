"""The arrays of the paper's figures against the whole model's features, and where a bright patch changes them."""

import flax.linen as nn
import numpy as np
import pytest

from tests.models.helpers import images, random_variables, run, small_model
from tnt_jax.analysis import maps
from tnt_jax.models import layers, tnt

BLOCKS = (1, 2)


@pytest.fixture(scope="module")
def small():
    model = small_model(qkv_bias=True)
    return model, random_variables(model)


@pytest.fixture(scope="module")
def features(small):
    """Returns (image, features) for 24 x 16 pixels, 6 x 4 sentences: not the model's size, and not square."""
    image = images(1, 24)[:, :, :16]
    wanted = ("sentences", "words", "outer_attention", "inner_attention")
    return image, run(*small, image, return_features=wanted)[1]


def test_sentence_maps_are_the_sentences_by_position(small, features):
    image, found = features
    each = maps.sentence_maps(*small, image, (2, 1))
    assert each.shape == (2, 24, 6, 4)
    for block, values in zip((2, 1), each, strict=True):
        expected = np.asarray(found["sentences"][block - 1])[0, 1:].reshape(6, 4, 24)
        np.testing.assert_allclose(values.transpose(1, 2, 0), expected, rtol=1e-4, atol=1e-4)


def test_word_maps_are_means_over_channels_by_position(small, features):
    image, found = features
    each = maps.word_maps(*small, image)
    assert each.shape == (2, 12, 8)
    for i in range(2):
        for row, column in ((0, 0), (5, 2), (11, 7), (6, 5)):
            sentence, word = row // 2 * 4 + column // 2, row % 2 * 2 + column % 2
            expected = np.asarray(found["words"][i])[0, sentence, word].mean()
            np.testing.assert_allclose(each[i, row, column], expected, rtol=1e-4, atol=1e-4)


def test_inner_attention_is_the_query_words_row(small, features):
    image, found = features
    queries = [(0, 0), (7, 3), (23, 1)]
    each = maps.inner_attention(*small, image, queries, BLOCKS)
    assert each.shape == (3, 2, 2, 4)
    np.testing.assert_allclose(each.sum(-1), 1, rtol=1e-5)
    for i, (sentence, word) in enumerate(queries):
        for j in range(2):
            expected = np.asarray(found["inner_attention"][j])[0, sentence, :, word]
            np.testing.assert_allclose(each[i, j], expected, rtol=1e-4, atol=1e-5)


def test_outer_attention_in_pieces_is_the_models(small, features, monkeypatch):
    image, found = features
    monkeypatch.setattr(maps, "ROWS", 7)  # 25 rows: the last piece is short
    each = maps.outer_attention(*small, image)
    for block in BLOCKS:
        expected = np.asarray(found["outer_attention"][block - 1])[0].mean(0)
        np.testing.assert_allclose(each[block - 1], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(each[block - 1].sum(-1), 1, rtol=1e-5)


def test_class_attention_is_the_class_tokens_row(small, features):
    image, found = features
    each = maps.class_attention(*small, image)
    np.testing.assert_allclose(each, np.asarray(found["outer_attention"][-1])[0, :, 0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(each.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"tnt_blocks": (), "qkv_bias": True}])
def test_a_bright_patch_is_seen_at_its_place(changes):
    """It changes that patch most in every map; in the first block's words, where sentences do not mix, only it."""
    model = small_model(depth=1, outer_num_heads=1, **changes)
    variables = random_variables(model)
    dark = images(1)

    def arrays(image):
        sentences = maps.sentence_maps(model, variables, image, (1,))[0]
        attention = maps.class_attention(model, variables, image)[0, 1:].reshape(4, 4)
        return sentences, attention, maps.outer_attention(model, variables, image)[0]

    sentences, attention, matrix = arrays(dark)
    for row, column in ((0, 3), (2, 1)):
        bright = dark.at[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].set(2.0)
        now = arrays(bright)
        change = np.abs(now[0] - sentences).sum(0)
        assert np.unravel_index(change.argmax(), change.shape) == (row, column)
        # The others keep their scores: with one head, all their weights change by the same factor.
        ratio = now[1] / attention
        assert np.argwhere(np.abs(ratio / np.median(ratio) - 1) > 1e-3).tolist() == [[row, column]]
        ratio = now[2] / matrix
        off = np.abs(ratio / np.median(ratio, axis=1, keepdims=True) - 1) > 1e-3
        patch = 1 + 4 * row + column
        others = np.delete(np.arange(17), patch)
        assert off[others, patch].all() and not off[np.ix_(others, others)].any()
        if model.inner_blocks:
            changed = maps.word_maps(model, variables, bright)[0] != maps.word_maps(model, variables, dark)[0]
            places = np.argwhere(changed)
            assert len(places) and {(r // 2, c // 2) for r, c in places.tolist()} == {(row, column)}


def test_a_block_with_a_second_attention_is_not_drawn_by_the_wrong_one(monkeypatch):
    published = tnt.OuterBlock

    class Twice(published):
        @nn.compact
        def __call__(self, sentences, drop, return_weights=False):
            sentences, weights = published.__call__(self, sentences, drop, return_weights)
            return layers.Attention(3, False, self.ops.outer, name="second")(sentences)[0], weights

    monkeypatch.setattr(tnt, "OuterBlock", Twice)
    model = small_model(depth=1)
    with pytest.raises(ValueError, match="2 outer attentions in 1 blocks"):
        maps.outer_attention(model, random_variables(model), images(1))
