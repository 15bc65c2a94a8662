"""Damaged JPEGs, with every index of the compiled loops checked: no file may make them read or write beyond an array.

    python -m tests.fuzz.jpegs [--files 50000] [--seed 0] [DIR]

Writes random JPEGs, and takes those in DIR (CLASS/*) where it is given, changes some of their bytes or cuts them off,
and decodes a random part of each, and some that are resized. Prints how many were decoded and how many refused. A bad
index is an IndexError, and the file that caused it is kept in the current folder as damaged.jpg.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

CHECKED = {"NUMBA_BOUNDSCHECK": "1"}  # read when Numba is imported; what it compiles so is kept apart


def damaged(random: np.random.Generator, data: bytes) -> bytes:
    """The file with up to eight bytes changed, half of them where the tables are, or without its end."""
    data = bytearray(data)
    if random.random() < 0.2:
        return bytes(data[: random.integers(len(data))])
    for _ in range(random.integers(1, 9)):
        end = len(data) if random.random() < 0.5 else min(len(data), 1000)
        data[random.integers(end)] = random.choice([0, 1, 0x7F, 0xFF, random.integers(256)])
    return bytes(data)


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, help="folder with CLASS/*.jpg")
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= CHECKED | {"NUMBA_CACHE_DIR": folder}
        print(run(arguments.files, np.random.default_rng(arguments.seed), arguments.folder))


def run(files: int, random: np.random.Generator, folder: Path | None) -> dict[str, int]:
    """-> how many files were decoded, found damaged and refused."""
    from tests.data import test_jpeg
    from tnt_jax.data import jpeg

    photographs = [path.read_bytes() for path in sorted(folder.glob("*/*"))] if folder else []
    counts = dict.fromkeys(("decoded", "damaged", "refused"), 0)
    for _ in range(files):
        if photographs and random.random() < 0.3:
            data = photographs[random.integers(len(photographs))]
        else:
            data = test_jpeg.random_file(random)
        data = damaged(random, data)
        file = jpeg.opened(data)
        if file is None or np.prod(file.size) > 2**22:
            counts["refused"] += 1
            continue
        try:
            found = jpeg.part(file, *test_jpeg.random_box(random, file.size))
            boxes = np.array([test_jpeg.random_box(random, file.size) for _ in range(random.integers(1, 4))])
            choices = (random.random((3, len(boxes))) < [[0.9], [0.5], [0.5]]).astype(bool)
            made = np.empty((len(boxes), *random.integers(1, 40, 2), 3), np.uint8)
            jpeg.resized_boxes(file, boxes, *choices, made)
        except IndexError:
            Path("damaged.jpg").write_bytes(data)
            raise
        counts["damaged" if found is None else "decoded"] += 1
    return counts


if __name__ == "__main__":
    main()
