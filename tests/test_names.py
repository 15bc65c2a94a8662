"""Names of classes, files and folders are shown safely, whatever characters they contain."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tnt_jax import names


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("golden retriever", "golden retriever"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x9b0m", r"\x1b[31mred\x9b0m"),  # terminal colours, in both forms of the escape
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),  # reverses the writing direction
        ("line\u2028end", r"line\u2028end"),
        (b"caf\xe9".decode(errors="surrogateescape"), r"caf\udce9"),  # a file name in Latin-1
        ("日本\u3000語 été\u00a0👩\u200d🔬", "日本\u3000語 été\u00a0👩\u200d🔬"),
        ("$5 to $10", "$5 to $10"),
    ],
)
def test_printable(name, shown):
    assert names.printable(name) == shown
    shown.encode()
    assert json.loads(names.as_json([name])) == [name] and len(names.as_json([name]).splitlines()) == 1


def test_line_ends_of_a_text_stay():
    assert names.printable_text(ValueError("one\ntwo\x1b")) == "one\ntwo\\x1b"
    assert json.loads(names.as_json({"a": "b\n"}, indent=1)) == {"a": "b\n"}


@pytest.mark.parametrize("name", [r"$\frac{1$", "$5 to $10", r"\$x$", "$", "$$", "a_b^c", r"$\alpha$"])
def test_a_figure_shows_the_name_and_not_a_formula(name):
    def drawn(text, **settings):
        figure = plt.figure(figsize=(3, 0.5), dpi=60)
        figure.text(0.05, 0.5, text, **settings)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba()).copy()
        plt.close(figure)
        return pixels

    np.testing.assert_array_equal(drawn(names.figure_label(name)), drawn(name, parse_math=False))
