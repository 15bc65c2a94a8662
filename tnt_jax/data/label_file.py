"""Reads a folder's labels.csv, which lists any number of labels per image."""

import csv
import io
import posixpath
import unicodedata
from collections.abc import Iterable

from etils import epath

from tnt_jax.names import printable

LABELS_FILE = "labels.csv"
HEADER = ["path", "labels"]
SEPARATOR = ";"  # class names may contain spaces
_FORM = f"It is a CSV file in UTF-8 with the header {','.join(HEADER)}; labels are separated by {SEPARATOR!r}."


def read_labels(path: epath.Path) -> dict[str, tuple[str, ...]]:
    """labels.csv -> the labels of each image by its path below the file's folder, in the file's order.

    Labels are in Unicode's composed form, without duplicates; an image may have none. Raises ValueError with the file
    and line for another format, and for a path that occurs twice.
    """
    found: dict[str, tuple[str, ...]] = {}
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
        if "\0" in text:
            raise ValueError("it is not UTF-8 text")
        rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if [cell.strip() for cell in next(rows, [])] != HEADER:
            raise ValueError(f"its first line is not {','.join(HEADER)}")
        for row in filter(None, rows):
            if len(row) != len(HEADER) or not row[0].strip():
                raise ValueError(f"line {rows.line_num} is not a path and its labels: {printable(','.join(row)[:80])}")
            image = posixpath.normpath(unicodedata.normalize("NFC", row[0].strip()))
            if image in found:
                raise ValueError(f"line {rows.line_num} has {printable(image)} a second time")
            labels = (unicodedata.normalize("NFC", label.strip()) for label in row[1].split(SEPARATOR))
            found[image] = tuple(dict.fromkeys(filter(None, labels)))
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{printable(path)}: {error}. {_FORM} Rename the file if it is meant for something else."
        ) from error
    if not found:
        raise ValueError(f"{printable(path)} lists no image. {_FORM}")
    return found


def labels_of_images(path: epath.Path, images: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """labels.csv and the images below its folder -> the labels of the images that it lists, sorted by path.

    Raises ValueError, with the first one, if it lists paths that are not among the images.
    """
    there = {unicodedata.normalize("NFC", image): image for image in images}
    listed = read_labels(path)
    if missing := [image for image in listed if image not in there]:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{printable(path)} lists {printable(missing[0])}{more}, but there is no such image below its folder. "
            "Paths are relative to it, such as photos/1.jpg; remove the lines or add the files."
        )
    return {there[image]: listed[image] for image in sorted(listed)}
