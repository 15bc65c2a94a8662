"""A run as one HTML page: results, curves, evaluation suite, speed, mistakes, the paper's figures, configuration.

    python -m tnt_jax.tools.report --workdir=runs/digits [--output=report.html] [--figures=all] [--image=eval:0]

The page is one file with its images inside; it loads nothing from elsewhere, and fits a phone too. The mistakes and the
confusion matrix (with several labels per image: the average precision of each class) are those of the newest checkpoint
on data.eval_split, with the weights (raw or averaged) that the last evaluation found better, or --weights. --figures:
as in tools.figures, or none; they show --image.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from tnt_jax.analysis import page
from tnt_jax.analysis.figures import chosen_figures, draw
from tnt_jax.analysis.mistakes import find_mistakes, find_mistakes_of_several
from tnt_jax.analysis.predictions import predictor
from tnt_jax.analysis.style import as_bytes, style
from tnt_jax.tools import command_line
from tnt_jax.tools.figures import open_image, subject_of
from tnt_jax.tools.trained import Trained, add_weights_flag, batches_of_run, check_run, open_trained
from tnt_jax.workdir import read_summary, write_atomically

REPORT_FILE = "report.html"


def draw_figures(trained: Trained, figures: str, image: str, changes: Sequence[str]) -> dict[str, bytes]:
    """A run's model -> {name of a figure (tools.figures): PNG file}, in the paper's order."""
    if figures == "none":
        return {}
    subject = subject_of(trained)
    pixels = open_image(image, [trained.source], changes, subject.channels)
    with style():
        drawn = draw([subject], pixels, chosen_figures(figures, [subject]))
        return {name: as_bytes(figure, dpi=110) for name, (figure, _) in drawn}


def make_report(options: argparse.Namespace, workdir: Path) -> str:
    """The options of `parse` and the workdir -> the page. Raises ValueError or OSError with the fix."""
    check_run(workdir, options.changes)
    summary = read_summary(workdir)
    trained = open_trained(str(workdir), weights=options.weights, changes=options.changes)
    figures = draw_figures(trained, options.figures, options.image, options.changes)  # first: a wrong name fails early
    logits_of = predictor(trained.model, trained.variables, trained.images)
    batches = batches_of_run(trained, trained.config.eval_batch_size)
    first = next(batches)
    batches = itertools.chain([first], batches)
    if trained.per_class and "labels" in first:
        evaluated = find_mistakes_of_several(logits_of, batches, keep=options.mistakes)
    else:
        evaluated = find_mistakes(logits_of, batches, trained.model.num_classes, keep=options.mistakes)
    return page.render(
        workdir=workdir,
        config=trained.config,
        class_names=trained.class_names,
        summary=summary,
        weights=trained.weights,
        evaluated=evaluated,
        figures=figures,
        image=options.image,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line arguments -> options."""
    parser = command_line.Parser("report", __doc__)
    parser.add_argument("--workdir", required=True, type=command_line.path, help="the workdir of a trained run")
    parser.add_argument("--output", type=command_line.path, help=f"output file (default WORKDIR/{REPORT_FILE})")
    add_weights_flag(parser)
    parser.add_argument("--figures", default="all", help="all (default), none, or comma-separated names")
    parser.add_argument("--image", default="eval:0", help="image for the figures: a file, or eval:K (default eval:0)")
    mistakes = "number of worst mistakes to show (default 24)"
    parser.add_argument("--mistakes", type=command_line.at_least(1), default=24, help=mistakes)
    return parser.parse(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page and prints its path."""
    options = parse(arguments)
    with command_line.one_message("report"):
        workdir = options.workdir.absolute()
        output = options.output or workdir / REPORT_FILE
        write_atomically(output, make_report(options, workdir))
    command_line.log(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
