"""Makes user-chosen names of classes, files and folders safe to show: on one line, escaped, never a formula.

A folder can be called "a<newline>b", "$x$", an escape sequence that repaints a terminal, or bytes that are not text.
"""

import json
import unicodedata

_JOINERS = "\u200c\u200d"  # invisible, but needed to spell Persian, Hindi and some emoji


def printable(name: object) -> str:
    r"""A name -> the same on one line, with control characters and bytes that are not text as \n, \x1b, \udcff."""
    return "".join(map(_escaped, str(name)))


def printable_text(text: object) -> str:
    """Like `printable`, for a text of several lines; keeps the line ends."""
    return "\n".join(map(printable, str(text).split("\n")))


def figure_label(name: object) -> str:
    """A name -> a text for matplotlib, which reads anything between two dollar signs as a formula."""
    return without_formulas(printable(name))


def without_formulas(text: str) -> str:
    r"""A text for matplotlib -> the same with each "$" as \$, which it draws as a dollar sign."""
    return text.replace("$", r"\$")


def as_json(value: object, indent: int | None = None) -> str:
    r"""A value -> its exact JSON: letters of any script as they are, and \uXXXX for what `printable` escapes."""
    return "".join(
        character if _plain(character) or character == "\n" else json.dumps(character)[1:-1]
        for character in json.dumps(value, ensure_ascii=False, indent=indent)  # line ends occur only between values
    )


def _escaped(character: str) -> str:
    return character if _plain(character) else repr(character)[1:-1]


def _plain(character: str) -> bool:
    return character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"  # spaces
