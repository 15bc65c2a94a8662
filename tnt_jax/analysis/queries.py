"""Query words for figures of inner attention: given by pixel or number, or chosen by contrast."""

import numpy as np

from tnt_jax.models.tnt import TNT

Query = tuple[int, int]  # (sentence, word in it), both from 0, row by row
DEFAULT_QUERIES = 4


def parse_query(text: str, model: TNT) -> Query:
    """ "ROW,COLUMN", a pixel of the model's input, or "NUMBER" of a word, counted sentence by sentence -> the query.

    Raises:
      ValueError: the text is neither, or outside the image.
    """
    height, width = model.input_size
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 2:
        row, column = numbers
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"query {text!r} is outside the model's input of {height} x {width} pixels, from 0")
        patch, word = model.patch_size, model.word_size
        sentence = row // patch * model.grid[1] + column // patch
        return sentence, row % patch // word * (patch // word) + column % patch // word
    if len(numbers) == 1:
        words = model.grid[0] * model.grid[1] * model.num_words
        if not 0 <= numbers[0] < words:
            raise ValueError(f"query {text!r}: the words are numbered from 0 to {words - 1}")
        return divmod(numbers[0], model.num_words)
    raise ValueError(f"query {text!r} must be ROW,COLUMN (a pixel of the model's input) or the number of a word")


def default_queries(pixels: np.ndarray, model: TNT) -> list[Query]:
    """pixels [H, W, C] at the model's input size -> one word in each of the sentences of most contrast, none adjacent.

    Where all pixels are alike, attention shows nothing. Contrast is the standard deviation of the grey values.
    """
    patch, word = model.patch_size, model.word_size
    rows, columns = model.grid
    grey = pixels.astype(np.float64).mean(-1)
    cells = grey.reshape(rows, patch, columns, patch).transpose(0, 2, 1, 3)  # [rows, columns, p, p]
    contrast = cells.std(axis=(2, 3))
    chosen: list[Query] = []
    for sentence in np.argsort(-contrast, axis=None, kind="stable"):
        row, column = divmod(int(sentence), columns)
        taken = (divmod(other, columns) for other, _ in chosen)
        if all(max(abs(row - r), abs(column - c)) > 1 for r, c in taken):
            chosen.append((int(sentence), _word(cells[row, column], word)))
        if len(chosen) == DEFAULT_QUERIES:
            break
    return chosen


def _word(cell: np.ndarray, word: int) -> int:
    """A sentence's grey values [p, p] -> the word that differs most from the sentence's mean."""
    side = len(cell) // word
    means = cell.reshape(side, word, side, word).mean((1, 3))
    return int(np.abs(means - cell.mean()).argmax())


def centre(query: Query, model: TNT) -> tuple[float, float]:
    """Returns (row, column) of the query word's centre in the image, in pixels; pixel centres are whole numbers."""
    (top, left), side = corner(query, model), model.patch_size // model.word_size
    row, column = divmod(query[1], side)
    middle = (model.word_size - 1) / 2
    return top + row * model.word_size + middle, left + column * model.word_size + middle


def corner(query: Query, model: TNT) -> tuple[int, int]:
    """Returns (row, column) of the first pixel of the query's sentence."""
    row, column = divmod(query[0], model.grid[1])
    return row * model.patch_size, column * model.patch_size
