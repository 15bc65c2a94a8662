"""The report card: raw and averaged weights on a list of data sets, as a table, JSON and CSV."""

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from tnt_jax.training import report
from tnt_jax.training.card_sets import CardFeed, CardSet
from tnt_jax.training.errors import RunError
from tnt_jax.training.measures import CALIBRATION_BINS, Measures, make_measure_step, measure
from tnt_jax.training.setup import Run

JSON_FILE = "report_card.json"
CSV_FILE = "report_card.csv"
WEIGHTS = {"eval": "raw", "eval_ema": "ema"}  # as they are called elsewhere, and on a card
COLUMNS = (
    "set",
    "split",
    "weights",
    "classes",
    "accuracy",
    "accuracy_top5",
    "negative_log_likelihood",
    "expected_calibration_error",
    "count",
    "left_out",
)


def make_report_card(run: Run, weights: Mapping[str, Any], step: int | None, source: str) -> dict[str, Any]:
    """Replicated weights by name ("raw", "ema") -> what is also written to WORKDIR/report_card.json and .csv.

    `results` has a row (COLUMNS) for each set and weights: classes, how many the softmax is over; accuracy,
    accuracy_top5 and expected_calibration_error in 0..1; negative_log_likelihood in nats; count, images; left_out,
    images that are not counted: without a label or, with data.allow_faulty_eval, undecodable. Where an image has
    several labels (imagenet2012_real; Beyer et al. 2020, arXiv 2006.07159) a prediction is right if it is one of them,
    and the likelihood is their summed probability.
    The files and the table grow set by set, so that a card that breaks off keeps what it has.
    """
    feed: CardFeed = run.feed
    evaluate = make_measure_step(run.experiment, run.model)
    run.workdir.mkdir(parents=True, exist_ok=True)
    width = max(len(card_set.settings.name) for card_set in feed.sets)
    card = {
        "source": source,
        "step": step,
        "model": run.experiment.model.name,
        "image_size": run.experiment.model.image_size,
        "calibration_bins": CALIBRATION_BINS,
        "results": [],
    }
    report.say(_line(width, "set", "split", "weights", "images", "top-1 %", "top-5 %", "NLL", "ECE %"))
    for card_set in feed.sets:
        try:
            results = measure(
                evaluate, weights, feed.batches(card_set), card_set.classes, run.experiment.prefetch_batches
            )
        except (ValueError, OSError) as error:  # an image that cannot be read, a set without labels
            raise RunError(f"config.report_card, {card_set.settings.name}: {error}") from error
        rows = [_row(card_set, name, results[name]) for name in weights]
        card["results"] += rows
        report.write_json(run.workdir / JSON_FILE, card)
        report.write_text(run.workdir / CSV_FILE, as_csv(card["results"]))
        for row in rows:
            report.say(_table_line(width, row))
    report.say_faulty(run)
    report.say(f"Written to {run.workdir / JSON_FILE} and {CSV_FILE} beside it.")
    return card


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows of a report card -> text with a header line; None is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(card_set: CardSet, weights: str, measures: Measures) -> dict[str, Any]:
    # JSON has no NaN, which is what weights that went wrong measure.
    found = {name: value if math.isfinite(value) else None for name, value in measures.items()}
    return {
        "set": card_set.settings.name,
        "split": card_set.settings.eval_split,
        "weights": weights,
        "classes": round(float(card_set.classes.sum())),
        **found,
        "left_out": card_set.num_examples - measures["count"],
    }


def _table_line(width: int, row: Mapping[str, Any]) -> str:
    shares = ("accuracy", "accuracy_top5", "expected_calibration_error")
    top1, top5, calibration = ("-" if row[name] is None else f"{100 * row[name]:.2f}" for name in shares)
    likelihood = row["negative_log_likelihood"]
    likelihood = "-" if likelihood is None else f"{likelihood:.4f}"
    count = f"{row['count']:,}"
    return _line(width, row["set"], row["split"], row["weights"], count, top1, top5, likelihood, calibration)


def _line(width: int, name: str, split: str, weights: str, *numbers: str) -> str:
    return f"{name:{width}}  {split:12}  {weights:7}" + "".join(f"  {number:>8}" for number in numbers)
