import numpy as np
import pytest

from tests.models.helpers import small_model
from tnt_jax.analysis.queries import centre, default_queries, parse_query

MODEL = small_model(image_size=(16, 24))  # 4 x 6 sentences of 4 x 4 pixels, 2 x 2 words


@pytest.mark.parametrize(
    "text, query",
    [
        ("0,0", (0, 0)),
        ("0,2", (0, 1)),
        ("2,3", (0, 3)),
        ("5,23", (11, 1)),
        ("15,23", (23, 3)),
        ("4", (1, 0)),
        ("95", (23, 3)),
    ],
)
def test_a_pixel_or_a_number_names_a_word(text, query):
    assert parse_query(text, MODEL) == query


@pytest.mark.parametrize("text", ["0,2", "5,23", "15,0", "7,7"])
def test_the_middle_of_a_word_is_in_it(text):
    query = parse_query(text, MODEL)
    row, column = centre(query, MODEL)
    assert parse_query(f"{int(row)},{int(column)}", MODEL) == query
    assert row % 2 == 0.5 and column % 2 == 0.5  # between the two pixels of a word's side


@pytest.mark.parametrize(
    "text, message",
    [
        ("16,0", "outside the model's input of 16 x 24 pixels"),
        ("0,-1", "outside"),
        ("96", "numbered from 0 to 95"),
        ("-1", "numbered from 0 to 95"),
        ("a,b", "ROW,COLUMN"),
        ("1,2,3", "ROW,COLUMN"),
        ("", "ROW,COLUMN"),
    ],
)
def test_what_is_no_word_is_said(text, message):
    with pytest.raises(ValueError, match=message):
        parse_query(text, MODEL)


def test_words_of_contrast_are_chosen_apart_from_each_other():
    pixels = np.full((16, 24, 3), 100, np.uint8)
    pixels[2:4, 12:14] = 255  # word 2 of sentence 3, the first in its row of words
    pixels[0:2, 18:20] = 180  # in sentence 4, which touches sentence 3
    pixels[12:14, 2:4] = 20  # word 1 of sentence 18
    chosen = default_queries(pixels, MODEL)
    assert chosen[:2] == [(3, 2), (18, 1)]
    assert chosen == default_queries(pixels, MODEL)
    everywhere = default_queries(np.zeros((16, 24, 3), np.uint8), MODEL)
    assert len(set(everywhere)) == 4
