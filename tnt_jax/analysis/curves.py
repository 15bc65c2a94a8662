"""Training curves of a run, from its metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from tnt_jax.analysis.style import hide_axes, save, style
from tnt_jax.workdir import METRICS_FILE, parse_metrics_line

Series = dict[str, tuple[list[int], list[float]]]

# Panels: title, {series in metrics.jsonl: its label}.
PANELS = (
    ("loss", {"train/loss": "training", "eval/loss": "test", "eval_ema/loss": "test, averaged weights"}),
    (
        "accuracy",
        {
            "train/accuracy": "training",
            "eval/accuracy": "test",
            "eval_ema/accuracy": "test, averaged weights",
            "eval/mean_average_precision": "test, mAP",
            "eval_ema/mean_average_precision": "test, mAP, averaged weights",
        },
    ),
    ("learning rate", {"train/learning_rate": "learning rate"}),
    ("images per second", {"train/images_per_second": "training"}),
)


def read_metrics(workdir: Path) -> Series:
    """A run's workdir -> steps and values of each metric, in the order written, without nulls (not finite).

    Raises:
      FileNotFoundError: the workdir has no metrics file.
      ValueError: a line of it is damaged, or cut off by the end of a process.
    """
    path = Path(workdir) / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the --workdir of a run that has trained")
    series: Series = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        values = parse_metrics_line(line)
        if values is None:
            raise ValueError(f'{path}, line {number}: not a JSON object of numbers with a "step"; remove that line')
        step = values.pop("step")
        for name, value in values.items():
            if value is not None:
                steps, numbers = series.setdefault(name, ([], []))
                steps.append(step)
                numbers.append(value)
    return series


def draw_curves(workdir: Path, path: Path) -> Path:
    """A run's workdir -> a figure of loss, accuracy, learning rate and speed against the step, written to `path`.

    Raises:
      FileNotFoundError, ValueError: as read_metrics.
    """
    series = read_metrics(workdir)
    with style():
        figure, grid = plt.subplots(2, 2, figsize=(9, 5.5))
        for axes, panel in zip(grid.flat, PANELS, strict=True):
            draw_panel(axes, series, *panel)
        return save(figure, Path(path))


def draw_panel(axes: Axes, series: Series, title: str, names: Mapping[str, str]) -> None:
    """Draws one of PANELS on its axes; the title says if nothing was logged."""
    found = {name: label for name, label in names.items() if name in series}
    if "eval/mean_average_precision" in found:  # several labels per image; accuracies would hide it
        found = {name: label for name, label in found.items() if name not in ("eval/accuracy", "eval_ema/accuracy")}
    if not found:
        hide_axes(axes)
        axes.set_title(f"{title}: not logged")
        return
    for name, label in found.items():
        steps, values = series[name]
        axes.plot(steps, values, label=label, marker="" if len(steps) > 1 else "o", linewidth=1.4)
    axes.set(title=title, xlabel="step")
    if len(found) > 1:
        axes.legend(framealpha=0.8, edgecolor="none")  # it may cover a curve
