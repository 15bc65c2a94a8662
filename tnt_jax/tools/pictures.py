"""The two pictures of a run: its training curves, and its class token's attention over some test images.

    python -m tnt_jax.tools.pictures --workdir=runs/digits

Writes curves.png and attention.png into the workdir and prints the run's accuracy and the pictures' paths.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tnt_jax.analysis.attention import draw_class_token_attention
from tnt_jax.analysis.curves import draw_curves
from tnt_jax.tools import arguments as command_line
from tnt_jax.tools import be_quiet
from tnt_jax.tools.trained import check_run


def draw_pictures(workdir: Path, count: int, changes: Sequence[str] = ()) -> list[Path]:
    """A run's workdir, with `changes` (--config.KEY=VALUE) of its configuration -> its curves.png and attention.png.

    Raises:
      FileNotFoundError, ValueError: the workdir has no metrics, configuration or checkpoint.
    """
    from tnt_jax.data import sources
    from tnt_jax.pretrained import load_model

    curves = draw_curves(workdir, workdir / "curves.png")
    model, variables = load_model(workdir)
    experiment = check_run(workdir, changes)
    pixels, labels = first_examples(experiment, model.input_size, count)
    attention = draw_class_token_attention(
        model,
        variables,
        pixels,
        labels,
        workdir / "attention.png",
        mean=experiment.data.mean,
        std=experiment.data.std,
        class_names=sources.open_dataset(experiment.data).class_names,
    )
    return [curves, attention]


def first_examples(experiment, image_size: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """-> (pixels [count, H, W, 3] uint8, labels [count]) of the evaluation split, as the evaluation sees them."""
    from tnt_jax.data.batches import eval_batches

    batches = eval_batches(
        experiment.data, batch_size=count, image_size=image_size, local_devices=1, process_index=0, process_count=1
    )
    batch = next(itertools.islice(batches, 1))
    real = batch["mask"][0] > 0
    return batch["image"][0][real], batch["label"][0][real]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse ends the process with code 2 where it cannot be understood."""
    parser = argparse.ArgumentParser(
        "pictures", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run that has trained")
    parser.add_argument("--images", type=int, default=10, help="how many test images to draw the attention over")
    options = command_line.parse_known(parser, arguments)
    if options.images < 1:
        parser.error(f"--images={options.images} must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the pictures and prints where they are."""
    options = parse(arguments)
    be_quiet()
    workdir = options.workdir.expanduser()
    try:
        pictures = draw_pictures(workdir, options.images, options.changes)
    except (FileNotFoundError, ValueError) as error:
        command_line.stop(error, "pictures")
    summary = workdir / "summary.json"
    if summary.is_file():
        results = json.loads(summary.read_text())
        best = results[results["best"]]
        which = "averaged weights" if results["best"] == "eval_ema" else "raw weights"
        right = round(best["accuracy"] * best["count"])
        print(f"Test accuracy: {100 * best['accuracy']:.2f}% ({right} of {best['count']:.0f} images, {which})")
    command_line.say("Pictures: " + ", ".join(str(path) for path in pictures))


if __name__ == "__main__":
    main()
