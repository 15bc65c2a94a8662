"""Classes of images: the best five of each, or (--above=0.5) all that are probable enough, with their probabilities.

    python -m tnt_jax.tools.predict --source=runs/photos holiday.jpg another.png
    python -m tnt_jax.tools.predict --source=hf-hub:timm/tnt_s_patch16_224.in1k photos/ --format=csv --output=a.csv

--source: a workdir, or a model's name and weights, NAME:FILE or NAME:hf-hub:OWNER/REPOSITORY (tools/trained.py). IMAGE
is a file (JPEG, PNG, WebP, BMP, GIF, TIFF, .npy) or a folder, whose images are taken, those of its folders too; names
that start with "." are not. They get the model's channels and bits (docs/data.md), are rotated as their EXIF tag says,
then resized, cropped and normalised as for the run's evaluation, or as the published weights' authors do. Names with
line ends, escape sequences or bytes that are no text have them as \\n, \\x1b, \\udcff in table and CSV; JSON has them
exactly. Probabilities sum to 1, but not those of a run with config.loss=sigmoid, which are each class's own.

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
TOP = 5  # classes an image, unless given
SOME_FAILED = 1  # beside command_line.CANNOT_WORK


def find_images(paths: Sequence[str]) -> list[Path]:
    """Files and folders -> files, a folder's images in the order of their paths; what does not exist stays.

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
    """-> lines for people: the image's name, and under it the classes with their probabilities in percent."""
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
    """-> lines: one for each image and rank, or, where no class is as probable as --above, one with empty cells.

    An image that cannot be read has none.
    """
    yield ",".join(COLUMNS)
    for result in results:
        if isinstance(result, Failure):
            continue
        rows = [
            (rank, guess.label, names.printable(guess.name), f"{guess.probability:.6f}")  # a row is a line
            for rank, guess in enumerate(result.guesses, 1)
        ]
        for row in rows or [("",) * 4]:
            line = io.StringIO()
            csv.writer(line).writerow((names.printable(result.path), *row, weights))
            yield line.getvalue().rstrip()


def as_json(results: Iterator[Prediction | Failure], weights: str) -> Iterator[str]:
    """-> the lines of one JSON list: an object for each image, with "predictions" or "error"."""
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
    """The command line -> options."""
    parser = command_line.Parser("predict", __doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a file, or a folder of images")
    add_source_flags(parser)
    parser.add_argument("--top", type=command_line.at_least(1), help=f"classes an image (default {TOP})")
    above = "instead all classes with a higher probability, 0 to 1, such as 0.5"
    parser.add_argument("--above", type=float, help=above)
    size = "images at a time, over all devices (default 32)"
    parser.add_argument("--batch-size", type=command_line.at_least(1), default=32, help=size)
    size = "pixels, a side or HEIGHTxWIDTH; the model's own unless given"
    parser.add_argument("--image-size", type=command_line.image_size, help=size)
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--output", type=Path, help="a file; standard output unless given")
    options = parser.parse(arguments)
    if options.above is not None and not 0 <= options.above < 1:
        parser.error(f"--above={options.above:g} must be a probability from 0 to less than 1")
    if options.above is not None and options.top is not None:
        parser.error("--above lists all classes that are probable enough, and --top a number of them: give one of them")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Predicts, writes, and names on standard error what could not be read."""
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
