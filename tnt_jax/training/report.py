"""What a run says while it goes, and the files it leaves beside the checkpoints."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from tnt_jax.names import printable_text
from tnt_jax.training import throughput
from tnt_jax.training.config import as_dict
from tnt_jax.training.evaluation import Result
from tnt_jax.training.optimizer import start_in_average
from tnt_jax.training.setup import Run, TrainingRun
from tnt_jax.workdir import CLASSES_FILE, CONFIG_FILE, checkpoint_steps

SUMMARY_FILE = "summary.json"
PARAMETERS_FILE = "parameters.txt"
STARVED = 0.05  # share of the time waiting for data from which a line of the log says so
START_IN_AVERAGE = 0.5  # share of the start in the averaged weights from which a note says so
_NAMED = 20  # faulty images in the last words of a run
WEIGHTS = {"eval": "raw weights", "eval_ema": "averaged weights"}
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def say(text: str) -> None:
    """One line on standard output, of the first process alone."""
    if jax.process_index() == 0:
        print(printable_text(text), flush=True)


def write_json(path: Path, values: Mapping[str, Any] | Sequence[Any] | None) -> None:
    """Writes the whole file or leaves the old one; the first process alone."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes the whole file or leaves the old one; the first process alone."""
    if jax.process_index() == 0:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)


def write_run_files(run: Run) -> None:
    """What whoever reads the run needs beside its checkpoints: config.json and classes.json."""
    write_json(run.workdir / CONFIG_FILE, as_dict(run.experiment))
    classes = run.workdir / CLASSES_FILE
    if not classes.exists() or not checkpoint_steps(run.workdir):  # the labels of what is trained already stay
        write_json(classes, run.feed.class_names)


def read_summary_of_the_end(run: TrainingRun) -> dict[str, Any] | None:
    """summary.json of a run that has nothing left to do; None where there are steps to make or it is not whole."""
    steps = checkpoint_steps(run.workdir)
    return ended_at(run, steps[-1]) if steps and steps[-1] >= run.plan.total_steps else None


def ended_at(run: TrainingRun, step: int) -> dict[str, Any] | None:
    """summary.json where it is of this step, and whole; else None."""
    try:
        summary = json.loads((run.workdir / SUMMARY_FILE).read_text())
        whole = summary["steps"] == step and summary[summary["best"]]["accuracy"] >= 0 and summary["seconds"] >= 0
    except (OSError, ValueError, KeyError, TypeError):  # none, or torn
        return None
    return summary if whole else None


def describe(run: TrainingRun, params: Any) -> int:
    """Says what is about to be trained, writes the whole table to parameters.txt -> number of parameters."""
    experiment, plan = run.experiment, run.plan
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    parts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    width = max(map(len, parts))
    say("\n".join(f"  {name:{width}}  {size:>12,}" for name, size in parts.items()))
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    say(
        f"{experiment.model.name}: {count:,} parameters, {run.multiply_adds:,} multiply-adds an image of "
        f"{experiment.model.image_size} x {experiment.model.image_size}, on {devices}"
    )
    feed, data = run.feed, experiment.data
    say(
        f"{data.name}: {feed.train_examples:,} images to train ({data.train_split}), {feed.eval_examples:,} to "
        f"evaluate ({data.eval_split}), {feed.num_classes:,} classes"
    )
    say(
        f"{plan.total_steps:,} steps of {experiment.batch_size} images ({plan.steps_per_epoch:,} an epoch) into "
        f"{run.workdir}"
    )
    if note := average_note(run):
        say(note)
    if jax.process_index() == 0:
        table = parameter_overview.get_parameter_overview(params, include_stats=False)
        (run.workdir / PARAMETERS_FILE).write_text(table + "\n")
    return count


def average_note(run: TrainingRun) -> str:
    """Where the averaged weights will still be half or more of the start after the last step: a note; else ""."""
    experiment, steps = run.experiment, run.plan.total_steps
    share = start_in_average(experiment, steps) if experiment.ema_decay else 0.0
    if share < START_IN_AVERAGE:
        return ""
    way = "Set --config.ema_warmup=True or lower" if not experiment.ema_warmup else "Lower"
    return (
        f"Note: {share:.0%} of the averaged weights will still be the start's after the last of {steps:,} steps "
        f"(config.ema_decay={experiment.ema_decay:g}). {way} config.ema_decay, or go by the raw weights."
    )


def speed_metrics(run: TrainingRun, images_per_second: float | None, input_wait_share: float) -> dict[str, float]:
    """images/s, images/s/device, the share of the time in which the devices waited for data and, where the device's
    peak is known, the share of it; {} before any timing.
    """
    if images_per_second is None:
        return {}
    per_device = images_per_second / jax.device_count()
    speed = {"images_per_second": images_per_second, "images_per_second_per_device": per_device}
    speed["input_wait_share"] = input_wait_share
    peak = throughput.peak_flops(jax.devices()[0].device_kind)
    if peak is not None:
        speed["model_flops_utilization"] = throughput.model_flops_utilization(per_device, run.multiply_adds, peak)
    return speed


def progress_line(run: TrainingRun, step: int, values: Mapping[str, float], seconds_left: float | None) -> str:
    """ "step 500/2,200  loss 1.234  accuracy 0.567  learning rate 0.001  350 images/s  1 min 20 s left"."""
    parts = [
        f"step {step:,}/{run.plan.total_steps:,}",
        f"loss {values['loss']:.4f}",
        f"accuracy {values['accuracy']:.4f}",
        f"learning rate {values['learning_rate']:.3g}",
    ]
    if "images_per_second" in values:
        parts.append(f"{values['images_per_second']:,.0f} images/s")
    if "model_flops_utilization" in values:
        parts.append(f"{values['model_flops_utilization']:.1%} of peak")
    if values.get("input_wait_share", 0.0) >= STARVED:
        parts.append(f"{values['input_wait_share']:.0%} of the time waiting for data")
    if values.get("skipped_steps"):
        parts.append(f"{values['skipped_steps']:.0f} steps skipped")
    if faulty := run.feed.faulty.count("train"):
        parts.append(f"{faulty} faulty image{'s' * (faulty > 1)} replaced so far")
    if seconds_left is not None:
        parts.append(f"{throughput.in_words(seconds_left)} left")
    return "  ".join(parts)


def evaluation_line(step: int | None, results: Mapping[str, Result]) -> str:
    """Raw and averaged weights side by side."""
    parts = [f"{WEIGHTS[name]}: accuracy {r['accuracy']:.4f}, loss {r['loss']:.4f}" for name, r in results.items()]
    count = next(iter(results.values()))["count"]
    return f"evaluation{'' if step is None else f' at step {step:,}'} on {count:,} images  {'; '.join(parts)}"


def last_line(summary: Mapping[str, Any], path: Path) -> str:
    """What the run came to, and where it says more."""
    best = summary["best"]
    return (
        f"test accuracy {summary[best]['accuracy']:.2%} ({WEIGHTS[best]}) after {summary['steps']:,} steps and "
        f"{throughput.in_words(summary['seconds'])}; {path}"
    )


def say_found(run: Run) -> None:
    """What the data set holds, and what was left out of it."""
    for line in run.feed.found:
        say(line)


def say_faulty(run: Run) -> None:
    """Counts and names of the images that could not be decoded since the start of this process, if there were any."""
    for purpose, done in {"train": "replaced in training", "eval": "left out of the evaluation"}.items():
        if names := run.feed.faulty.names(purpose):
            more = [f"and {len(names) - _NAMED} more, all in the log"] if len(names) > _NAMED else []
            say("\n  ".join([f"Faulty images {done}: {len(names)}", *names[:_NAMED], *more]))


def versions() -> dict[str, str]:
    """Of Python, the packages that numbers depend on, and this one's devices."""
    found = {package: importlib.metadata.version(package) for package in PACKAGES}
    return {"python": platform.python_version()} | found | {"device": jax.devices()[0].device_kind}
