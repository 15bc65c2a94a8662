"""Renders the page of tools.report, one HTML file, from a run's files and its evaluation. All text is escaped."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from tnt_jax.analysis.curves import PANELS, Series, draw_panel, read_metrics
from tnt_jax.analysis.mistakes import Evaluated, EvaluatedSeveral, most_confused
from tnt_jax.analysis.panels import visible
from tnt_jax.analysis.style import ORANGE, RED, as_bytes, style
from tnt_jax.names import printable, without_formulas
from tnt_jax.training.config import Config, as_dict
from tnt_jax.training.logging import in_words
from tnt_jax.workdir import IN_WORDS, SUITE_FILE, measure, read_json

TEMPLATE = Path(__file__).with_name("page.html")
MOST_NUMBERS = 25  # most classes for which the confusion matrix shows numbers
MOST_LISTED = 15  # rows of confusions, and of classes with the lowest accuracy

CAPTIONS = {
    "feature_maps": "Sentence embeddings by position: some channels, first, middle and last block (Figure 3a).",
    "tsne": "t-SNE of all channels' maps of the last block, one point per channel (Figure 3b).",
    "words": "Word embeddings by position, averaged over the channels, after every TNT block (Figure 4).",
    "inner_attention": "What query words attend to inside their sentence (Figure 5).",
    "outer_attention": "What each sentence attends to, block by block (Figure 6).",
    "class_attention": "What the class token of the last block attends to (Figure 7).",
}
# A metric of an evaluation, its label, a remark.
MEASURES = (
    ("balanced_accuracy", "balanced accuracy", "mean over the classes"),
    ("accuracy_top5", "top-5 accuracy", ""),
    ("subset_accuracy", "subset accuracy", "all classes of an image right"),
)
# A series of metrics.jsonl, its label, the format of a value.
SPEEDS = (
    ("train/images_per_second", "Images per second", "{:,.0f}"),
    ("train/images_per_second_per_device", "Images per second per device", "{:,.0f}"),
    ("train/model_flops_utilization", "Fraction of the device's peak", "{:.1%}"),
    ("train/input_wait_share", "Time spent waiting for data", "{:.1%}"),
    ("train/host_memory_gb", "Host memory, GB", "{:.2f}"),
    ("train/device_memory_gb", "Device memory, GB", "{:.2f}"),
)


def render(
    *,
    workdir: Path,
    config: Config,
    class_names: Sequence[str],
    summary: Mapping[str, Any] | None,
    weights: str,
    evaluated: Evaluated | EvaluatedSeveral,
    figures: Mapping[str, bytes],
    image: str,
) -> str:
    """A run -> HTML. figures: PNG files by name. Raises FileNotFoundError or ValueError as read_metrics."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, finalize=_without_escapes
    )
    environment.filters["percent"] = lambda part, digits=1: "–" if part is None else f"{100 * part:.{digits}f}%"
    series, suite = read_metrics(workdir), read_json(workdir / SUITE_FILE)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=workdir.name,
        model=config.model,
        data=config.data,
        numbers=key_numbers(config, summary, series),
        finished=summary is not None,
        curves=_curves(series),
        suite=suite,
        suite_rows=suite_rows(suite) if suite else [],
        weights=weights,
        evaluated=evaluated,
        several=isinstance(evaluated, EvaluatedSeveral),
        **(_precisions if isinstance(evaluated, EvaluatedSeveral) else _confusions)(evaluated, class_names),
        mistakes=[(mistake, _data_uri_of_pixels(mistake.pixels)) for mistake in evaluated.worst],
        names=class_names,
        figures=[(name, CAPTIONS[name], _data_uri(content)) for name, content in figures.items()],
        image=image,
        speeds=speeds(series),
        config=config_groups(as_dict(config)),
        versions=(summary or {}).get("versions", {}),
    )


def _confusions(evaluated: Evaluated, names: Sequence[str]) -> dict[str, Any]:
    """Returns what the page shows for one label per image."""
    few = len(names) <= MOST_NUMBERS
    return {
        "matrix": _matrix(evaluated.confusion) if few else None,
        "heat_map": None if few else _data_uri(as_bytes(draw_confusion(evaluated.confusion, names))),
        "confused": most_confused(evaluated.confusion, MOST_LISTED),
        "weakest": weakest_classes(evaluated.confusion),
    }


def _precisions(evaluated: EvaluatedSeveral, names: Sequence[str]) -> dict[str, Any]:
    """For several labels: rows (class, average precision, examples), the lowest first, those without one last."""
    rows = zip(names, evaluated.precisions, evaluated.examples, strict=True)
    return {"precisions": sorted(rows, key=lambda row: (row[1] is None, row[1]))}


def key_numbers(config: Config, summary: Mapping[str, Any] | None, series: Series) -> list[tuple[str, str, str]]:
    """Returns the figures at the top of the page: (value, label, remark)."""
    if summary is None:
        step = max((steps[-1] for steps, _ in series.values()), default=0)
        return [(f"{step:,}", "steps so far", "the run has not ended")]
    best = summary[summary["best"]]
    remark, judged = f"{IN_WORDS[summary['best']]} weights, {best['count']:,} images", measure(best)
    for name in IN_WORDS.keys() - {summary["best"]}:
        if summary[name] is not None:
            remark += f"; {IN_WORDS[name]}: {summary[name][judged]:.1%}"
    speed = summary["images_per_second"]
    wanted = ("balanced_accuracy", "accuracy_top5") if judged == "accuracy" else ("subset_accuracy",)
    # Older runs have no balanced accuracy.
    measures = [each for each in MEASURES if each[0] in wanted and each[0] in best]
    return [
        (f"{best[judged]:.1%}", judged.replace("_", " "), remark),
        *((f"{best[metric]:.1%}", label, note) for metric, label, note in measures),
        (f"{best['loss']:.3f}", "loss", "nats per image"),
        (f"{summary['parameters']:,}", "parameters", ""),
        (f"{summary['steps']:,}", "steps", f"of {config.batch_size:,} images"),
        (in_words(summary["seconds"]), "training", summary["versions"]["device"]),
        ("–" if speed is None else f"{speed:,.0f}", "images per second", "when it ended"),
    ]


def suite_rows(suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An evaluation suite's JSON -> its rows, set by set; published figures, if any, after the measured ones."""
    rows = [*suite["results"], *suite.get("published", [])]  # older suites have none
    order = [(row["set"], row["split"]) for row in rows]
    return sorted(rows, key=lambda row: order.index((row["set"], row["split"])))


def speeds(series: Series) -> list[tuple[str, str, str, str]]:
    """Metrics -> (label, median, minimum, maximum) of the logged speed and memory."""
    rows = []
    for name, label, form in SPEEDS:
        if name in series:
            values = series[name][1]
            rows.append((label, *(form.format(f(values)) for f in (np.median, np.min, np.max))))
    return rows


def _matrix(confusion: np.ndarray) -> list[list[tuple[int, float]]]:
    """confusion [K, K] -> rows of (examples, their fraction of the class)."""
    rows = zip(confusion.tolist(), _fractions(confusion).tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def _fractions(confusion: np.ndarray) -> np.ndarray:
    """confusion [K, K] -> fractions [K, K] of each class's examples."""
    return confusion / np.maximum(confusion.sum(1, keepdims=True), 1)


def weakest_classes(confusion: np.ndarray) -> list[tuple[int, float, int]]:
    """confusion [K, K] -> (class, accuracy, examples) of the classes with the lowest accuracy, below 1."""
    accuracies, counts = np.diag(_fractions(confusion)), confusion.sum(1)
    order = [i for i in np.argsort(accuracies, kind="stable").tolist() if counts[i] and accuracies[i] < 1]
    return [(i, float(accuracies[i]), int(counts[i])) for i in order[:MOST_LISTED]]


def draw_confusion(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """confusion [K, K] of many classes -> a figure: each row's fractions as colours, on a square-root scale.

    This scale keeps a confusion of one in a hundred visible beside classes that are nearly always right.
    """
    count = len(names)
    side = min(max(6.5, 0.045 * count + 2.5), 12.0)
    every = max(1, -(-count // 60))
    colors = LinearSegmentedColormap.from_list("fractions", ["white", ORANGE, RED, "#3b0a00"])
    with style():
        figure, axes = plt.subplots(figsize=(side, 0.93 * side))
        drawn = axes.imshow(np.sqrt(_fractions(confusion)), cmap=colors, vmin=0, vmax=1)
        ticks = range(0, count, every)
        ticked = [printable(names[i]) for i in ticks]
        labels = [without_formulas(name if len(name) <= 18 else f"{name[:17]}…") for name in ticked]
        axes.set_xticks(ticks, labels, rotation=90, fontsize=5.5)
        axes.set_yticks(ticks, labels, fontsize=5.5)
        axes.set(xlabel="taken for", ylabel="class")
        axes.grid(False)
        bar = figure.colorbar(drawn, shrink=0.4, fraction=0.04, pad=0.01, label="fraction of the class's images")
        bar.set_ticks(np.sqrt([0, 0.01, 0.05, 0.2, 0.5, 1]), labels=["0", "1%", "5%", "20%", "50%", "100%"])
    return figure


def config_groups(config: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Nested keys -> (group, [(key, value)]), the ungrouped ones first."""
    groups: dict[str, list[tuple[str, str]]] = {"": []}
    for key, value in config.items():
        if isinstance(value, Mapping):
            groups[key] = [(name, json.dumps(each)) for name, each in value.items()]
        else:
            groups[""].append((key, json.dumps(value)))
    return list(groups.items())


def _without_escapes(value: object) -> object:
    """Escapes control characters, and bytes that are not text, in strings and paths for the page."""
    return printable(value) if isinstance(value, str | Path) else value


def _curves(series: Series) -> list[tuple[str, str]]:
    """Returns (title, data URI) of each panel: side by side on a wide screen, stacked on a phone."""
    found = []
    for panel in PANELS:
        with style():
            figure, axes = plt.subplots(figsize=(4.6, 2.9))
            draw_panel(axes, series, *panel)
            found.append((panel[0], _data_uri(as_bytes(figure))))
    return found


def _data_uri_of_pixels(pixels: np.ndarray) -> str:
    """[H, W, C] -> a data URI; small images stay small, and the browser enlarges them without blur."""
    content = io.BytesIO()
    plt.imsave(content, visible(pixels), format="png")
    return _data_uri(content.getvalue())


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
