"""A run as one HTML page: results, curves, report card, speed, mistakes, the paper's figures, configuration.

    python -m tnt_jax.tools.report --workdir=runs/digits [--output=report.html] [--figures=all] [--image=eval:0]

The page is one file with its pictures inside; it asks no server for anything, and reads on a phone too. The mistakes
and the confusion matrix are of the newest checkpoint on data.eval_split, with the weights (raw or averaged) that
the last evaluation found better, or --weights. --figures: as in tools.figures, or none; they are drawn of --image.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tnt_jax.analysis.mistakes import Evaluated, evaluate
from tnt_jax.models.variants import update
from tnt_jax.pretrained.sources import BEST
from tnt_jax.tools import arguments as command_line
from tnt_jax.tools import be_quiet
from tnt_jax.tools.trained import Trained, add_weights_flag, check_run, open_trained
from tnt_jax.workdir import read_class_names

REPORT_FILE = "report.html"


def evaluate_trained(trained: Trained, workdir: Path, mistakes: int) -> Evaluated:
    """A run's model -> where it is wrong on the run's evaluation split.

    Raises what the data package raises, and ValueError where the data set now has classes that the run does not know.
    """
    from tnt_jax.analysis.predictions import predictor, whole_batch
    from tnt_jax.data.batches import eval_batches
    from tnt_jax.training.setup import data_classes
    from tnt_jax.training.starting_point import label_map, relabelled

    experiment = trained.experiment
    labels = label_map(read_class_names(workdir), data_classes(experiment)[1], experiment.data.name)
    batches = eval_batches(
        experiment.data,
        batch_size=whole_batch(experiment.eval_batch_size),
        image_size=trained.model.input_size,
        local_devices=jax.local_device_count(),
    )
    probabilities_of = predictor(trained.model, trained.variables, trained.images)
    return evaluate(probabilities_of, relabelled(batches, labels), trained.model.num_classes, keep=mistakes)


def draw_figures(
    trained: Trained, workdir: Path, figures: str, image: str, changes: Sequence[str] = ()
) -> dict[str, bytes]:
    """A run's model -> PNG files by the figures' names (tools.figures), in the paper's order."""
    if figures == "none":
        return {}
    from tnt_jax.analysis.figures import INNER_FIGURES
    from tnt_jax.analysis.panels import save_figure
    from tnt_jax.analysis.picture import Subject
    from tnt_jax.tools import figures as tool

    names = tool.chosen_figures(figures)
    if figures == "all" and not trained.model.inner_blocks:
        names = [name for name in names if name not in INNER_FIGURES]
    kind = "TNT" if trained.model.inner_blocks else "DeiT"
    model = update(trained.model, dtype=jnp.float32)
    subject = Subject(
        f"{kind} ({workdir.name})",
        model,
        trained.variables,
        tuple(trained.images.mean),
        tuple(trained.images.std),
        trained.weights,
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, drawn in tool.draw([subject], tool.open_picture(image, str(workdir), changes), names):
            found[name] = save_figure(drawn, Path(folder), name, dpi=110)[0].read_bytes()
    return found


def make_report(
    workdir: Path,
    *,
    figures: str = "all",
    image: str = "eval:0",
    mistakes: int = 24,
    weights: str = BEST,
    changes: Sequence[str] = (),
) -> str:
    """A run's workdir, with `changes` (--config.KEY=VALUE) of its configuration -> the page.

    weights: "best", "raw" or "averaged".

    Raises ValueError, FileNotFoundError or OSError with the fix.
    """
    from tnt_jax.analysis import page

    check_run(workdir, changes)
    summary = page.read_summary(workdir)
    trained = open_trained(str(workdir), weights=weights, changes=changes)
    evaluated = evaluate_trained(trained, workdir, mistakes)
    contents: dict[str, Any] = {
        "workdir": workdir,
        "experiment": trained.experiment,
        "class_names": trained.class_names,
        "summary": summary,
        "weights": trained.weights,
        "evaluated": evaluated,
        "figures": draw_figures(trained, workdir, figures, image, changes),
        "image": image,
    }
    return page.render(**contents)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; argparse ends the process with code 2 where it cannot be understood."""
    parser = argparse.ArgumentParser(
        "report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True, type=Path, help="a run that has trained")
    parser.add_argument("--output", type=Path, help=f"a file; WORKDIR/{REPORT_FILE} unless given")
    add_weights_flag(parser)
    parser.add_argument("--figures", default="all", help="all (default), none, or names with commas between them")
    parser.add_argument("--image", default="eval:0", help="of the figures: a file, or eval:K (default eval:0)")
    parser.add_argument("--mistakes", type=int, default=24, help="how many of the worst to show (default 24)")
    options = command_line.parse_known(parser, arguments)
    if options.mistakes < 1:
        parser.error(f"--mistakes={options.mistakes} must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page and says where."""
    options = parse(arguments)
    be_quiet()
    workdir = options.workdir.expanduser().absolute()
    output = (options.output or workdir / REPORT_FILE).expanduser()
    try:
        page = make_report(
            workdir,
            figures=options.figures,
            image=options.image,
            mistakes=options.mistakes,
            weights=options.weights,
            changes=options.changes,
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        temporary = output.with_name(output.name + ".tmp")
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(output)
    except (ValueError, OSError) as error:
        command_line.stop(error, "report")
    command_line.say(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
