"""--mode=evaluate: raw and averaged weights on a run's evaluation split, or on the data sets of config.report_card."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tnt_jax import workdir as workdirs
from tnt_jax.models.cards import model_info
from tnt_jax.models.config import Params
from tnt_jax.pretrained.load import NUM_IMAGENET_CLASSES, fit
from tnt_jax.pretrained.workdir import read_sets
from tnt_jax.training import logging, memory, steps
from tnt_jax.training.config import Config
from tnt_jax.training.evaluation import CALIBRATION_BINS, EvalStep, Result, evaluate_weights, with_class_names
from tnt_jax.training.evaluation_suite import EvaluationSuite, SuiteSet
from tnt_jax.training.logging import log
from tnt_jax.training.runtime import RunError, abort_on_error, readable, writable
from tnt_jax.training.setup import Run
from tnt_jax.training.starting_point import relabelled, trained_classes
from tnt_jax.training.state import replicate, stack_layers

EVALUATION_FILE = "evaluation.json"
CSV_FILE = "report_card.csv"
IN_TABLE = {"eval": "raw", "eval_ema": "ema"}  # name of the weights in an evaluation -> in the table
COLUMNS = (
    *("set", "split", "weights", "classes", "accuracy", "accuracy_top5", "balanced_accuracy"),
    *("negative_log_likelihood", "expected_calibration_error", "count", "left_out"),
)


def evaluate(run: Run) -> dict[str, Any]:
    """Evaluates the newest checkpoint of the run's workdir or, if it has none, `config.pretrained`.

    Returns eval and eval_ema (None with only one set of weights), best (of the two), step and source, and writes them
    to WORKDIR/evaluation.json. If config.report_card names data sets, see _evaluate_suite.

    Raises RunError if the checkpoint or an example cannot be read, memory runs out, or the results cannot be written.
    """
    with abort_on_error(), memory.enough(memory.EVALUATION_FIX):
        for note in run.notes:
            log(f"Note: {note}")
        if run.pretrained is None:
            named, step, source = *_checkpoint(run), str(run.workdir)
        else:
            named, step, source = {"eval": run.pretrained}, None, run.pretrained_label
        weights = {name: replicate(stack_layers(params, run.config)) for name, params in named.items()}
        if run.config.report_card:
            with writable(run.workdir):
                return _evaluate_suite(run, weights, step, source)
        for line in run.pipeline.found:
            log(line)
        results = evaluate_split(run, steps.make_eval_step(run.config, run.model), weights)
        logging.log_faulty(run.pipeline.faulty)
        log(logging.evaluation_line(step, results))
        outcome = {
            "eval": results["eval"],
            "eval_ema": results.get("eval_ema"),
            "best": workdirs.select_best(results),
            "step": step,
            "source": source,
        }
        with writable(run.workdir):
            run.workdir.mkdir(parents=True, exist_ok=True)
            logging.write_json(run.workdir / EVALUATION_FILE, outcome)
        return outcome


def evaluate_split(
    run: Run, eval_step: EvalStep, weights: Mapping[str, Params], interrupted: Callable[[], bool] = lambda: False
) -> dict[str, Result] | None:
    """Replicated weights by name -> the Result of each on the run's whole evaluation split; None if interrupted."""
    batches = (relabelled(batch, run.label_map) for batch in readable(run.pipeline.evaluation))
    classes = np.ones(run.model.num_classes, np.float32)
    results = evaluate_weights(eval_step, weights, batches, classes, run.config.prefetch_batches, interrupted)
    # Labels are in the model's order, which is the data set's unless there is a map.
    names = run.pipeline.class_names if run.label_map is None else trained_classes(run.config, run.workdir)
    return {name: with_class_names(result, names or ()) for name, result in results.items()} if results else None


def _checkpoint(run: Run) -> tuple[dict[str, Params], int]:
    """Returns every set of weights of the workdir's newest checkpoint, by its name in an evaluation, and the step.

    Raises RunError if the checkpoint is damaged or does not fit the model in config.json.
    """
    try:
        _, sets = read_sets(run.workdir)
    except ValueError as error:
        raise RunError(str(error)) from error
    try:
        named = {workdirs.IN_EVALUATION[kind]: fit(weights, run.model) for kind, weights in sets.items()}
    except ValueError as error:
        config = run.workdir / workdirs.CONFIG_FILE
        raise RunError(f"{error}\n{config} describes the checkpoint's model: was it edited?") from error
    return named, sets["raw"].step


def _evaluate_suite(run: Run, weights: Mapping[str, Params], step: int | None, source: str) -> dict[str, Any]:
    """Evaluates replicated weights, by name ("eval", "eval_ema"), on every data set of the suite.

    Returns what it writes to WORKDIR/report_card.json; the `results` also go to report_card.csv.
    `published` has rows with the accuracies in the model's card, which the log shows beside the measured ones.
    `results` has a row (COLUMNS) per data set and weights: classes in the softmax, which is used with any training
    loss; accuracy, accuracy_top5, balanced_accuracy and expected_calibration_error in 0..1; negative_log_likelihood in
    nats; count, images; left_out, images not counted: without a label or, with data.allow_faulty_eval, undecodable.
    If images have several labels (imagenet2012_real; Beyer et al. 2020, arXiv 2006.07159), a prediction is right if it
    is one of them, the likelihood is their summed probability, and there is no balanced accuracy.
    Files and table grow set by set, so an interrupted suite keeps its results.
    """
    suite: EvaluationSuite = run.pipeline
    config = dataclasses.replace(run.config, loss="softmax")
    eval_step = steps.make_eval_step(config, run.model, calibration_bins=CALIBRATION_BINS)
    run.workdir.mkdir(parents=True, exist_ok=True)
    width = max(len(suite_set.settings.name) for suite_set in suite.sets)
    outcome = {
        "source": source,
        "step": step,
        "model": run.config.model.name,
        "image_size": run.config.model.image_size,
        "calibration_bins": CALIBRATION_BINS,
        "results": [],
        "published": [],
    }
    if run.config.per_class:
        log(
            f"Note: NLL and ECE are of a softmax over the logits, which config.loss={run.config.loss} does not train. "
            "Top-1 and top-5 are the same either way."
        )
    log(_line(width, "set", "split", "weights", "images", "top-1 %", "top-5 %", "by class", "NLL", "ECE %"))
    for suite_set in suite.sets:
        batches, ahead = suite.batches(suite_set), run.config.prefetch_batches
        try:
            results = evaluate_weights(eval_step, weights, batches, suite_set.classes, ahead)
        except (ValueError, OSError) as error:  # an unreadable image, a set without labels
            raise RunError(f"config.report_card, {suite_set.settings.name}: {error}") from error
        rows = [_row(suite_set, IN_TABLE[name], results[name]) for name in weights]
        published = _published_rows(run.config, suite_set)
        outcome["results"] += rows
        outcome["published"] += published
        logging.write_json(run.workdir / workdirs.SUITE_FILE, outcome)
        logging.write_text(run.workdir / CSV_FILE, as_csv(outcome["results"]))
        for row in rows + published:
            log(_table_line(width, row))
    logging.log_faulty(suite.faulty)
    if outcome["published"]:
        info = model_info(run.config.model.name)
        side = "x".join(map(str, info.image_size))
        log(f"published: {info.hub_name} at {side}, crop {info.eval_crop_fraction}; {info.source}")
    log(f"Written to {run.workdir / workdirs.SUITE_FILE} and {CSV_FILE} beside it.")
    return outcome


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows of the table -> CSV with a header line; None becomes an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(suite_set: SuiteSet, weights: str, result: Result) -> dict[str, Any]:
    measured = {name.replace("loss", "negative_log_likelihood"): value for name, value in result.items()}
    return {
        "set": suite_set.settings.name,
        "split": suite_set.settings.eval_split,
        "weights": weights,
        "classes": round(float(suite_set.classes.sum())),
        "balanced_accuracy": None,  # for several labels per image
        # JSON has no NaN, which diverged weights produce.
        **{name: value if math.isfinite(value) else None for name, value in measured.items()},
        "left_out": suite_set.num_examples - result["count"],
    }


def _published_rows(config: Config, suite_set: SuiteSet) -> list[dict[str, Any]]:
    """Returns the accuracy on a set from the model's card as one row of the table, or none.

    Only whole splits and heads for ImageNet's classes are comparable.
    """
    settings, info = suite_set.settings, model_info(config.model.name)
    name = "imagenet_v2/matched-frequency" if settings.name == "imagenet_v2" else settings.name
    whole = settings.eval_split in ("validation", "test") and config.model.num_classes == NUM_IMAGENET_CLASSES
    if not whole or name not in info.accuracy:
        return []
    top1, top5 = (round(each / 100, 6) for each in info.accuracy[name])
    known = {"set": settings.name, "split": settings.eval_split, "accuracy": top1, "accuracy_top5": top5}
    return [dict.fromkeys(COLUMNS) | {"weights": "published"} | known]


def _table_line(width: int, row: Mapping[str, Any]) -> str:
    shares = ("accuracy", "accuracy_top5", "balanced_accuracy", "expected_calibration_error")
    top1, top5, balanced, calibration = ("-" if row[name] is None else f"{100 * row[name]:.2f}" for name in shares)
    likelihood = row["negative_log_likelihood"]
    likelihood = "-" if likelihood is None else f"{likelihood:.4f}"
    count = "-" if row["count"] is None else f"{row['count']:,}"
    return _line(width, row["set"], row["split"], row["weights"], count, top1, top5, balanced, likelihood, calibration)


def _line(width: int, name: str, split: str, weights: str, *numbers: str) -> str:
    return f"{name:{width}}  {split:12}  {weights:9}" + "".join(f"  {number:>8}" for number in numbers)
