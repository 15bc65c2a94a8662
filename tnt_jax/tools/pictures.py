"""The two pictures of a run: its training curves, and its class token's attention over some test images.

    python -m tnt_jax.tools.pictures --workdir=runs/digits

Writes curves.png and attention.png into the workdir and prints the run's accuracy and the pictures' paths.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from tnt_jax.analysis.attention import draw_class_token_attention
from tnt_jax.analysis.curves import draw_curves
from tnt_jax.tools import be_quiet

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run that has trained.", required=True)
IMAGES = flags.DEFINE_integer("images", 10, "How many test images to draw the attention over.", lower_bound=1)


def draw_pictures(workdir: Path, count: int) -> list[Path]:
    """A run's workdir -> the paths of curves.png and attention.png in it.

    Raises:
      FileNotFoundError, ValueError: the workdir has no metrics, configuration or checkpoint.
    """
    from tnt_jax.data import sources
    from tnt_jax.pretrained import load_model
    from tnt_jax.training.config import check_config
    from tnt_jax.training.recorded import read_run_config

    curves = draw_curves(workdir, workdir / "curves.png")
    model, variables = load_model(workdir)
    experiment = check_config(read_run_config(workdir))
    pixels, labels = first_examples(experiment, model.input_size, count)
    attention = draw_class_token_attention(
        model,
        variables,
        pixels,
        labels,
        workdir / "attention.png",
        mean=experiment.data.mean,
        std=experiment.data.std,
        class_names=sources.open_source(experiment.data).class_names,
    )
    return [curves, attention]


def first_examples(experiment, image_size: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """-> (pixels [count, H, W, 3] uint8, labels [count]) of the evaluation split, as the evaluation sees them."""
    from tnt_jax.data import pipeline

    batches = pipeline.eval_batches(
        experiment.data, batch_size=count, image_size=image_size, local_devices=1, process_index=0, process_count=1
    )
    batch = next(itertools.islice(batches, 1))
    real = batch["mask"][0] > 0
    return batch["image"][0][real], batch["label"][0][real]


def main(arguments: Sequence[str]) -> None:
    """Draws the pictures and prints where they are."""
    if len(arguments) > 1:
        raise app.UsageError(f"unexpected arguments {arguments[1:]}")
    be_quiet()
    workdir = Path(WORKDIR.value)
    try:
        pictures = draw_pictures(workdir, IMAGES.value)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"pictures: {error}")
    summary = workdir / "summary.json"
    if summary.is_file():
        results = json.loads(summary.read_text())
        best = results[results["best"]]
        which = "averaged weights" if results["best"] == "eval_ema" else "raw weights"
        right = round(best["accuracy"] * best["count"])
        print(f"Test accuracy: {100 * best['accuracy']:.2f}% ({right} of {best['count']:.0f} images, {which})")
    print("Pictures: " + ", ".join(str(path) for path in pictures))


if __name__ == "__main__":
    app.run(main)
