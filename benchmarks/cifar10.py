"""Trains TNT, DeiT and the ablations on CIFAR-10, one run after the other, and draws table, curves and spread of all.

    python -m benchmarks.cifar10 --root=runs/cifar10 --runs model=tnt model=deit --seeds 0 1 2
    python -m benchmarks.cifar10 --root=runs/cifar10 --runs ablations --seeds 0 1 2
    python -m benchmarks.cifar10 --root=runs/cifar10 --runs model=tnt,scale=mini --epochs=11 -- \
        --config.data.name=folder --config.data.directory=CIFAR

A run is main.py with configs/cifar10.py:ARGUMENT in ROOT/ARGUMENT/EPOCHS_epochs/seed_SEED, with "+" for commas,
which separate sources in tools.figures. Finished runs are not run again, and stopped ones resume. Without --runs
nothing runs. Flags after "--" go to main.py. ROOT/table.md, curves.png and spread.png cover every finished run there;
with --attention the table also shows how even each TNT's inner attention is, which needs the images.
"""

import argparse
import collections
import json
import math
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs import cifar10

# Tables 6, 8, 5 and 7, beside model=tnt (all of it) and model=deit (no inner path).
ABLATIONS = {
    "full": (
        *("sentence_position=false", "word_position=false", "sentence_position=false,word_position=false"),
        *("words=4", "blocks=1", "blocks=1,6", "blocks=1,6,12", "blocks=1,4,8,12"),
        *("inner_heads=1", "inner_heads=4", "inner_heads=6"),
    ),
    "mini": (
        *("sentence_position=false", "word_position=false", "sentence_position=false,word_position=false"),
        *("words=4", "words=64", "blocks=1", "blocks=1,3"),
        *("inner_heads=1", "inner_heads=4", "inner_heads=6"),
    ),
}
HEADER = (
    (
        "model",
        "parameters",
        "multiply-adds",
        "epochs",
        "seeds",
        "time a run",
        "images/s",
        "top-1 %",
        "top-1 %, averaged",
    ),
    ("---", "---:", "---:", "---:", "---:", "---:", "---:", "---:", "---:"),
)
# Runs to compare seed by seed: a part of an argument, and its replacement in the other run's argument.
PAIRS = (("model=tnt", "model=deit"), (",initialization=scaled", ""))
Runs = dict[tuple[str, float], list[pathlib.Path]]


def main() -> None:
    """Runs the chosen experiments; prints and writes the table, draws the curves and the spread."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, required=True)
    parser.add_argument("--runs", nargs="+", default=[], help='arguments of configs/cifar10.py, or "ablations"')
    parser.add_argument("--scale", choices=sorted(ABLATIONS), default="full", help='scale of --runs "ablations"')
    parser.add_argument("--epochs", type=float, help="replaces the config's")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--attention", action="store_true", help="measure how even the inner attention is")
    parser.add_argument("others", nargs="*", help="flags of main.py, after --")
    arguments = parser.parse_args()
    ablations = [f"{each},scale={arguments.scale}" for each in ABLATIONS[arguments.scale]]
    chosen = [each for name in arguments.runs for each in (ablations if name == "ablations" else [name])]
    for argument in chosen:
        for seed in arguments.seeds:
            run(arguments.root, argument, arguments.epochs, seed, arguments.others)
    found = finished(arguments.root)
    if not found:
        sys.exit(f"--root={arguments.root}: no run in it has finished; name some with --runs.")
    text = "\n\n".join([table(found), paired(found)] + [attention(found)] * arguments.attention)
    (arguments.root / "table.md").write_text(text + "\n")
    draw_curves(found, arguments.root / "curves.png")
    draw_spread(found, arguments.root / "spread.png")
    print(text)


def run(root: pathlib.Path, argument: str, epochs: float | None, seed: int, others: Sequence[str]) -> None:
    """Starts or resumes a run and trains it to its end, unless it is finished. Exits if it fails."""
    epochs = epochs or cifar10.get_config(argument).epochs
    workdir = root / argument.replace(",", "+") / f"{epochs:g}_epochs" / f"seed_{seed}"
    if (workdir / "summary.json").exists():
        return
    flags = [f"--config=configs/cifar10.py:{argument}", f"--workdir={workdir}"]
    flags += [f"--config.epochs={epochs}", f"--config.seed={seed}", *others]
    print("main.py", *flags, flush=True)
    code = subprocess.run([sys.executable, "main.py", *flags], check=False).returncode
    if code:
        sys.exit(code)


def finished(root: pathlib.Path) -> Runs:
    """Returns the workdirs of all seeds for each argument and number of epochs. Exits if their settings differ."""
    found: Runs = collections.defaultdict(list)
    for file in sorted(root.glob("*/*_epochs/seed_*/summary.json")):
        argument, epochs = file.parts[-4].replace("+", ","), file.parts[-3].removesuffix("_epochs")
        found[argument, float(epochs)].append(file.parent)
    for first, *others in found.values():
        for other in others:
            differing = [each for each in different_settings(first, other) if each[0] != "seed"]
            if differing:
                sys.exit(f"{first} and {other} are not seeds of one experiment: {differing}. Use another --root.")
    return found


def different_settings(workdir: pathlib.Path, other: pathlib.Path) -> list[tuple[str, Any, Any]]:
    """Two workdirs -> the keys of their configurations that differ, with both values."""
    from tnt_jax.training.saved_config import differences

    return differences(*(json.loads((each / "summary.json").read_text())["config"] for each in (workdir, other)))


def table(found: Runs) -> str:
    """-> lines of Markdown; with several seeds the mean and the sample standard deviation."""
    rows = [*HEADER, *(row(argument, epochs, workdirs) for (argument, epochs), workdirs in found.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def row(argument: str, epochs: float, workdirs: Sequence[pathlib.Path]) -> tuple[str, ...]:
    """Returns the cells of one line, in HEADER's order."""
    summaries = [json.loads((workdir / "summary.json").read_text()) for workdir in workdirs]
    first = summaries[0]
    seconds = statistics.mean(summary["seconds"] for summary in summaries)
    return (
        argument,
        f"{first['parameters']:,}",
        f"{count_multiply_adds(first['config']) / 1e6:.1f} M",
        f"{epochs:g}",
        str(len(summaries)),
        f"{int(seconds // 60)} min {seconds % 60:.0f} s",
        f"{statistics.mean(speed(workdir) for workdir in workdirs):,.0f}",
        *(spread([100 * summary[name]["accuracy"] for summary in summaries]) for name in ("eval", "eval_ema")),
    )


def paired(found: Runs) -> str:
    """-> lines of Markdown: raw top-1 of each run in PAIRS minus that of the other with the same seed, in points."""
    lines = ["| run | less | epochs | by seed | mean |", "| --- | --- | ---: | --- | ---: |"]
    for part, instead in PAIRS:
        for (argument, epochs), workdirs in found.items():
            other = argument.replace(part, instead)
            if part not in argument or (other, epochs) not in found:
                continue
            less = {workdir.name: last_accuracy(workdir) for workdir in found[other, epochs]}
            apart = [last_accuracy(each) - less[each.name] for each in workdirs if each.name in less]
            by_seed = ", ".join(f"{each:+.2f}" for each in apart)
            if apart:
                lines.append(f"| {argument} | {other} | {epochs:g} | {by_seed} | {spread(apart)} |")
    return "\n".join(lines)


def attention(found: Runs) -> str:
    """-> lines of Markdown: how far each TNT's inner attention is from even, by block, over seeds."""
    lines = ["| run | epochs | inner attention at the start, % from even, by block | at the end |"]
    lines.append("| --- | ---: | --- | --- |")
    for (argument, epochs), workdirs in found.items():
        if "model=deit" not in argument:
            ends = zip(*map(unevenness, workdirs), strict=True)
            cells = [", ".join(map(spread, zip(*blocks, strict=True))) for blocks in ends]
            lines.append(f"| {argument} | {epochs:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def unevenness(workdir: pathlib.Path) -> tuple[list[float], list[float]]:
    """A TNT's run -> the root mean square of M * weight - 1 in %, for each block, at its start and its end.

    Over all heads and 250 test images; raw weights.
    """
    import jax

    from tnt_jax.tools.trained import batches_of_run, open_trained
    from tnt_jax.training.device_augment import normalize
    from tnt_jax.training.state import initial_params

    trained = open_trained(str(workdir), weights="raw")
    images = normalize(next(batches_of_run(trained, 250))["image"], trained.images)

    @jax.jit
    def squares(variables: Mapping[str, Any]) -> list[jax.Array]:
        _, features = trained.model.apply(variables, images, return_features=("inner_attention",))
        return [((each * each.shape[-1] - 1) ** 2).mean() for each in features["inner_attention"]]  # [.., M, M]

    start = jax.jit(lambda: {"params": initial_params(trained.config, trained.model)})()
    first, last = ([100 * math.sqrt(each) for each in squares(variables)] for variables in (start, trained.variables))
    return first, last


def last_accuracy(workdir: pathlib.Path) -> float:
    """Returns the final top-1 of the raw weights, in %."""
    return 100 * json.loads((workdir / "summary.json").read_text())["eval"]["accuracy"]


def count_multiply_adds(config: Mapping[str, Any]) -> int:
    """A summary's config -> multiply-adds of one image: products with their biases."""
    from tnt_jax.models import complexity
    from tnt_jax.models.variants import create_model

    # Without check_config: older runs lack keys that were added later.
    given = {name: value for name, value in config["model"].items() if value is not None}
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return complexity.multiply_adds(create_model(**settings))


def speed(workdir: pathlib.Path) -> float:
    """Returns training images per second, the median over the run's log lines."""
    from tnt_jax.analysis.curves import read_metrics

    return statistics.median(read_metrics(workdir)["train/images_per_second"][1])


def spread(values: Sequence[float]) -> str:
    """-> the mean and, of several values, the sample standard deviation."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def points(workdir: pathlib.Path) -> Iterator[tuple[float, float, float]]:
    """A run -> (epoch, minutes, top-1 in %) of each evaluation of the raw weights; minutes go by steps."""
    from tnt_jax.analysis.curves import read_metrics

    summary = json.loads((workdir / "summary.json").read_text())
    config, steps = summary["config"], summary["steps"]
    for step, accuracy in zip(*read_metrics(workdir)["eval/accuracy"], strict=True):
        fraction = step / steps
        yield config["epochs"] * fraction, summary["seconds"] / 60 * fraction, 100 * accuracy


def draw_curves(found: Runs, path: pathlib.Path) -> None:
    """Draws the test accuracy of every run against its epochs and against its time."""
    import matplotlib.pyplot as plt

    from tnt_jax.analysis.style import save, style

    with style():
        figure, panels = plt.subplots(1, 2, figsize=(9, 3.8 + 0.12 * len(found)), sharey=True)
        for number, ((argument, epochs), workdirs) in enumerate(found.items()):
            look = {"marker": "o", "markersize": 3, "linewidth": 1.4, "color": f"C{number}"}
            look["linestyle"] = ("-", "--", ":", "-.")[number // 4 % 4]  # there are four colours
            for workdir in workdirs:
                columns = list(zip(*points(workdir), strict=True))
                label = f"{argument}, {epochs:g} epochs" if workdir == workdirs[0] else None
                panels[0].plot(columns[0], columns[2], label=label, **look)
                panels[1].plot(columns[1], columns[2], **look)
        for axes, label in zip(panels, ("epoch", "minutes"), strict=True):
            axes.set(xlabel=label)
        panels[0].set(ylabel="test accuracy, raw weights (%)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        save(figure, path)


def draw_spread(found: Runs, path: pathlib.Path) -> None:
    """Draws the final test accuracy: a dot per seed, a stroke at their mean, the best mean at the top."""
    import matplotlib.pyplot as plt

    from tnt_jax.analysis.style import save, style

    ends = {
        f"{argument}, {epochs:g} epochs": list(map(last_accuracy, workdirs))
        for (argument, epochs), workdirs in found.items()
    }
    names = sorted(ends, key=lambda name: statistics.mean(ends[name]))
    with style():
        figure, axes = plt.subplots(figsize=(7, 1 + 0.3 * len(names)))
        for height, name in enumerate(names):
            axes.plot(ends[name], [height] * len(ends[name]), "o", color="C0", markersize=4)
            axes.plot([statistics.mean(ends[name])], [height], "|", color="C1", markersize=14, markeredgewidth=2)
        axes.locator_params(axis="x", nbins=6)
        axes.set(xlabel="test accuracy, raw weights (%)", yticks=range(len(names)), yticklabels=names)
        save(figure, path)


if __name__ == "__main__":
    main()
