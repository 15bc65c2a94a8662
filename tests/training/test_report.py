"""What a run says."""

import types

import jax
import pytest

from tests.training.helpers import TinyFeed, experiment
from tnt_jax.training import report, throughput


def test_progress_line():
    run = types.SimpleNamespace(plan=types.SimpleNamespace(total_steps=2200), feed=TinyFeed(None))
    values = {"loss": 1.5, "accuracy": 0.25, "learning_rate": 1e-3, "images_per_second": 1234.5}
    assert report.progress_line(run, 500, values, 80.0) == (
        "step 500/2,200  loss 1.5000  accuracy 0.2500  learning rate 0.001  1,234 images/s  1 min 20 s left"
    )
    assert report.progress_line(run, 1, values | {"model_flops_utilization": 0.213}, None).endswith("21.3% of peak")
    starved = report.progress_line(run, 1, values | {"input_wait_share": 0.4, "skipped_steps": 2}, None)
    assert starved.endswith("40% of the time waiting for data  2 steps skipped")
    assert report.progress_line(run, 1, values | {"input_wait_share": 0.01, "skipped_steps": 0}, None).endswith("/s")
    run.feed.faulty.add("train", "example 3 of train (a/b.jpg)", "no JPEG")
    assert report.progress_line(run, 500, values, 80.0).endswith("  1 faulty image replaced so far  1 min 20 s left")


def test_the_last_words_name_the_faulty_images(capsys):
    run = types.SimpleNamespace(feed=TinyFeed(None))
    report.say_faulty(run)
    assert capsys.readouterr().out == ""
    for number in range(23):
        run.feed.faulty.add("train", f"example {number}", "no JPEG")
    run.feed.faulty.add("eval", "example 7", "empty")
    report.say_faulty(run)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Faulty images replaced in training: 23", "  example 0: no JPEG"]
    assert lines[21:] == [
        "  and 3 more, all in the log",
        "Faulty images left out of the evaluation: 1",
        "  example 7: empty",
    ]


def test_speed_is_by_device_and_against_a_known_peak(monkeypatch):
    run = types.SimpleNamespace(multiply_adds=10**9)
    assert report.speed_metrics(run, None, 0.0) == {}
    speed = report.speed_metrics(run, 800.0, 0.25)
    assert speed == {
        "images_per_second": 800.0,
        "images_per_second_per_device": 100.0,  # eight virtual devices
        "input_wait_share": 0.25,
    }
    monkeypatch.setattr(throughput, "PEAK_FLOPS", {jax.devices()[0].device_kind: 6e12})
    assert report.speed_metrics(run, 800.0, 0.0)["model_flops_utilization"] == pytest.approx(0.1)


def test_evaluation_line_has_both_weights():
    result = {"accuracy": 0.5, "loss": 1.0, "count": 1000}
    line = report.evaluation_line(7, {"eval": result, "eval_ema": result | {"accuracy": 0.75}})
    assert line.startswith("evaluation at step 7 on 1,000 images")
    assert "weights: accuracy 0.5000" in line and "averaged weights: accuracy 0.7500" in line


def test_versions_name_what_numbers_depend_on():
    assert {"python", "jax", "jaxlib", "flax", "device"} <= set(report.versions())


def test_an_average_that_will_be_half_the_start_is_noted():
    def note(steps, **changes):
        run = types.SimpleNamespace(experiment=experiment(**changes), plan=types.SimpleNamespace(total_steps=steps))
        return report.average_note(run)

    said = note(200, ema_decay=0.999)
    assert said.startswith("Note: 82% of the averaged weights will still be the start's after the last of 200 steps")
    assert "--config.ema_warmup=True" in said and "config.ema_decay=0.999" in said
    assert note(692, ema_decay=0.999) and not note(693, ema_decay=0.999)  # 0.999^692 is 0.5004
    assert not note(200, ema_decay=0.999, ema_warmup=True) and not note(200, ema_decay=0.0)
    assert not note(310 * 1251, ema_decay=0.99996)  # the recipe
