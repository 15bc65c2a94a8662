"""Predicts the classes of images: the best five of each, or with --above=0.5 all above that probability.

    python -m tnt_jax.tools.predict --source=runs/photos holiday.jpg another.png
    python -m tnt_jax.tools.predict --source=hf-hub:timm/tnt_s_patch16_224.in1k photos/ --format=csv --output=a.csv

--source: a workdir, or a model's name and weights, NAME:FILE or NAME:hf-hub:OWNER/REPOSITORY (tools/trained.py). IMAGE
is a file (JPEG, PNG, WebP, BMP, GIF, TIFF, .npy) or a folder, which is searched with its subfolders; names that start
with "." are skipped. Images are converted to the model's channels and bits (docs/data.md), rotated by their EXIF tag,
then resized, cropped and normalised as in the run's evaluation, or as by the authors of the published weights. Table
and CSV write line ends, escape sequences and bytes that are not text in names as \\n, \\x1b, \\udcff; JSON keeps names
exact. Probabilities sum to 1, except for a run with config.loss=sigmoid, which gives each class one of its own.

Exit codes: 0 done; 1 some images could not be read (they are named, and the others predicted); 2 the command cannot
work.
"""

import argparse
import collections
import csv
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tnt_jax import names
from tnt_jax.analysis.predictions import Failure, Prediction, classify
from tnt_jax.data.folder import SUFFIXES, images_in
from tnt_jax.tools import command_line
from tnt_jax.tools.trained import add_source_flags, open_trained
from tnt_jax.workdir import user_path, write_atomically

COLUMNS = ("image", "rank", "label", "class", "probability", "weights")
TOP = 5  # classes per image by default
SOME_FAILED = 1  # exit code, beside command_line.CANNOT_WORK


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files and folders -> files, a folder's images in the order of their paths; paths that do not exist are kept.

    Raises ValueError for a folder without an image.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        path = user_path(path)
        if not path.is_dir():
            found.append(path)
            continue
        inside = [path / name for name in images_in(str(path), collections.Counter())]
        if not inside:
            raise ValueError(f"{path}: there is no image in this folder ({', '.join(SUFFIXES)})")
        found += inside
    return found


def as_table(results: Iterator[Prediction | Failure], weights: str) -> Iterator[str]:
    """Yields lines to read: the image's name, and below it the classes with their probabilities in percent."""
    yield f"{weights[0].upper()}{weights[1:]}"
    for result in results:
        yield names.printable(result.path)
        if isinstance(result, Failure):
            yield f"      cannot be read: {names.printable(result.reason)}"
            continue
        if not result.guesses:
            yield "      no class is as probable as --above"
        yield from (f"  {100 * guess.probability:6.2f}%  {names.printable(guess.name)}" for guess in result.guesses)


def as_csv(results: Iterator[Prediction | Failure], weights: str) -> Iterator[str]:
    """Yields CSV lines: one per image and rank, or one with empty cells if no class is as probable as --above.

    An image that cannot be read has none.
    """
    yield ",".join(COLUMNS)
    for result in results:
        if isinstance(result, Failure):
            continue
        rows = [
            (rank, guess.label, names.printable(guess.name), f"{guess.probability:.6f}")  # one line per row
            for rank, guess in enumerate(result.guesses, 1)
        ]
        for row in rows or [("",) * 4]:
            line = io.StringIO()
            csv.writer(line).writerow((names.printable(result.path), *row, weights))
            yield line.getvalue().rstrip()


def as_json(results: Iterator[Prediction | Failure], weights: str) -> Iterator[str]:
    """Yields the lines of one JSON list: an object per image, with "predictions" or "error"."""
    before = "["
    for result in results:
        entry: dict[str, object] = {"image": str(result.path), "weights": weights}
        if isinstance(result, Failure):
            entry["error"] = result.reason
        else:
            keys = ("label", "class", "probability")
            rows = ((guess.label, guess.name, round(guess.probability, 6)) for guess in result.guesses)
            entry["predictions"] = [dict(zip(keys, row, strict=True)) for row in rows]
        yield before + names.as_json(entry)
        before = ","
    yield "]" if before == "," else "[]"


FORMATS = {"table": as_table, "csv": as_csv, "json": as_json}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line arguments -> options."""
    parser = command_line.Parser("predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, or a folder of images")
    add_source_flags(parser)
    parser.add_argument("--top", type=command_line.at_least(1), help=f"classes per image (default {TOP})")
    above = "instead list all classes with a higher probability, 0 to 1, such as 0.5"
    parser.add_argument("--above", type=float, help=above)
    size = "images per batch, over all devices (default 32)"
    parser.add_argument("--batch-size", type=command_line.at_least(1), default=32, help=size)
    size = "in pixels, a side or HEIGHTxWIDTH (default: the model's own)"
    parser.add_argument("--image-size", type=command_line.image_size, help=size)
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--output", type=command_line.path, help="output file (default: standard output)")
    options = parser.parse(arguments)
    if options.above is not None and not 0 <= options.above < 1:
        parser.error(f"--above={options.above:g} must be a probability from 0 to less than 1")
    if options.above is not None and options.top is not None:
        parser.error("--above lists all classes above a probability, --top a fixed number: give only one of them")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts, writes the results, and names unreadable images on standard error."""
    options = parse(arguments)
    failures: list[Failure] = []

    def noted(results: Iterator[Prediction | Failure]) -> Iterator[Prediction | Failure]:
        for result in results:
            if isinstance(result, Failure):
                failures.append(result)
                print(f"predict: {names.printable(f'{result.path} cannot be read: {result.reason}')}", file=sys.stderr)
            yield result

    with command_line.one_message("predict"):
        images = find_images(options.images)
        trained = open_trained(options.source, options.image_size, weights=options.weights, changes=options.changes)
        results = classify(
            trained.model,
            trained.variables,
            trained.images,
            trained.class_names,
            images,
            top=options.top or TOP,
            above=options.above,
            per_class=trained.per_class,
            batch_size=options.batch_size,
        )
        lines = FORMATS[options.format](noted(results), trained.weights)
        if options.output is None:
            for line in lines:
                print(line, flush=True)
        else:
            write_atomically(options.output, "".join(f"{line}\n" for line in lines))
    if failures:
        print(f"predict: {len(failures)} of {len(images)} images could not be read", file=sys.stderr)
        sys.exit(SOME_FAILED)


if __name__ == "__main__":
    main()
