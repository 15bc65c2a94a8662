"""What a run prints, and metrics.jsonl: one whole line per write, and none twice after a resume."""

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import tensorflow as tf

from tests.training.helpers import checked_config, points
from tnt_jax.data.faulty import FaultyImages
from tnt_jax.training import logging, monitor
from tnt_jax.training.setup import Plan
from tnt_jax.workdir import METRICS_FILE


def test_lines_are_numbers_by_name(tmp_path):
    writer = logging.MetricsWriter(tmp_path, lambda step: {"epoch": step / 2})
    writer.write_config({"seed": 0})
    writer.write(3, {"train/loss": np.float32(0.5), "train/accuracy": 1})
    writer.write(4, {"train/loss": math.nan})
    writer.close()
    found = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert found == [
        {"step": 3, "epoch": 1.5, "train/loss": 0.5, "train/accuracy": 1.0},
        {"step": 4, "epoch": 2.0, "train/loss": None},
    ]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    writer = logging.MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 1.0})
    writer.write_config({})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def steps_of(workdir):
    return [json.loads(line)["step"] for line in (workdir / METRICS_FILE).read_text().splitlines()]


def write(workdir, *steps):
    writer = logging.MetricsWriter(workdir)
    for step in steps:
        writer.write(step, {"train/loss": 1.0})
        if step % 2 == 0:
            writer.write(step, {"eval/loss": 1.0})
    writer.close()


def test_later_points_and_torn_ends_are_dropped(tmp_path):
    logging.truncate_logs_after(tmp_path, 3, evaluation_due=False)  # there is nothing yet
    write(tmp_path, 1, 2, 3, 4, 5)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "a"')
    (events,) = tmp_path.glob("events*")
    with events.open("ab") as file:
        file.write(b"\x18\0\0\0torn")
    assert logging.truncate_logs_after(tmp_path, 3, evaluation_due=False) == []
    assert steps_of(tmp_path) == [1, 2, 2, 3]
    write(tmp_path, 4, 5)
    assert steps_of(tmp_path) == [1, 2, 2, 3, 4, 4, 5]
    everything = {("train/loss", step) for step in (1, 2, 3, 4, 5)} | {("eval/loss", 2), ("eval/loss", 4)}
    assert points(tmp_path) == dict.fromkeys(everything, 1)
    assert len(list(tmp_path.iterdir())) == 3  # metrics.jsonl and an event file per session


@pytest.mark.parametrize("damage", [b'{"step": \xff}', b"5", b"[1]", b"{}", b'{"step": "3"}', b'{"step": 1, "a": "b"}'])
def test_damaged_lines_are_said_and_the_file_kept(tmp_path, damage):
    write(tmp_path, 1, 3, 5)
    file = tmp_path / METRICS_FILE
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(content := first + damage + b"\n" + second + third)
    (note,) = logging.truncate_logs_after(tmp_path, 4, evaluation_due=False)
    assert f"1 of 4 lines of {file} are damaged" in note and "damaged.metrics.jsonl" in note
    assert file.read_bytes() == first + second
    assert (tmp_path / "damaged.metrics.jsonl").read_bytes() == content


def test_a_flipped_bit_among_events_is_said_and_the_file_kept(tmp_path):
    write(tmp_path, 1, 3, 5)
    (events,) = tmp_path.glob("events*")
    content = bytearray(events.read_bytes())
    content[content.index(b"train/loss")] ^= 1
    events.write_bytes(content)
    (note,) = logging.truncate_logs_after(tmp_path, 4, evaluation_due=False)
    assert f"bytes of {events} are damaged" in note
    (copy,) = tmp_path.glob("damaged.*")
    assert copy.read_bytes() == content and "tfevents" not in copy.name
    assert points(tmp_path) == {}
    assert logging.truncate_logs_after(tmp_path, 4, evaluation_due=False) == []


def test_an_evaluation_that_is_still_due_is_dropped(tmp_path):
    write(tmp_path, 1, 2)
    before = (tmp_path / METRICS_FILE).read_text()
    logging.truncate_logs_after(tmp_path, 2, evaluation_due=False)
    assert (tmp_path / METRICS_FILE).read_text() == before
    logging.truncate_logs_after(tmp_path, 2, evaluation_due=True)
    assert steps_of(tmp_path) == [1, 2]
    assert points(tmp_path) == {("train/loss", 1): 1, ("train/loss", 2): 1}


def test_what_tensorflow_cannot_write_is_an_oserror(tmp_path, monkeypatch):
    writer = logging.MetricsWriter(tmp_path)

    def full(step, scalars):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(writer._events, "write_scalars", full)
    with pytest.raises(OSError, match="No space left"):
        writer.write(1, {})


def test_progress_line():
    values = {"loss": 1.5, "accuracy": 0.25, "learning_rate": 1e-3, "images_per_second": 1234.5}
    assert logging.progress_line(500, 2200, values, 0, 80.0) == (
        "step 500/2,200  loss 1.5000  accuracy 0.2500  learning rate 0.001  1,234 images/s  1 min 20 s left"
    )
    assert logging.progress_line(1, 2200, values | {"model_flops_utilization": 0.213}, 0, None).endswith(
        "21.3% of peak"
    )
    starved = logging.progress_line(1, 2200, values | {"input_wait_share": 0.4, "skipped_steps": 2}, 0, None)
    assert starved.endswith("40% of the time waiting for data  2 steps skipped")
    assert logging.progress_line(1, 2200, values | {"input_wait_share": 0.01, "skipped_steps": 0}, 0, None).endswith(
        "/s"
    )
    assert logging.progress_line(500, 2200, values, 1, 80.0).endswith(
        "  1 faulty image replaced so far  1 min 20 s left"
    )


def test_the_last_words_name_the_faulty_images(capsys):
    faulty = FaultyImages()
    logging.log_faulty(faulty)
    assert capsys.readouterr().out == ""
    for number in range(23):
        faulty.add("train", f"example {number}", "no JPEG")
    faulty.add("eval", "example 7", "empty")
    logging.log_faulty(faulty)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["Faulty images replaced in training: 23", "  example 0: no JPEG"]
    assert lines[21:] == [
        "  and 3 more, all in the log",
        "Faulty images left out of the evaluation: 1",
        "  example 7: empty",
    ]


def test_speed_is_by_device_and_against_a_known_peak(monkeypatch):
    assert monitor.speed_metrics(monitor.Interval(), 10**9) == {}
    speed = monitor.speed_metrics(monitor.Interval(1600, 2.0, 0.5), 10**9)
    assert speed == {
        "images_per_second": 800.0,
        "images_per_second_per_device": 100.0,  # eight virtual devices
        "input_wait_share": 0.25,
    }
    monkeypatch.setattr(monitor, "PEAK_FLOPS", {jax.devices()[0].device_kind: 6e12})
    assert monitor.speed_metrics(monitor.Interval(1600, 2.0), 10**9)["model_flops_utilization"] == pytest.approx(0.1)


def test_evaluation_line_has_both_weights():
    result = {"accuracy": 0.5, "loss": 1.0, "count": 1000}
    line = logging.evaluation_line(7, {"eval": result, "eval_ema": result | {"accuracy": 0.75}})
    assert line.startswith("evaluation at step 7 on 1,000 images")
    assert "weights: accuracy 0.5000" in line and "averaged weights: accuracy 0.7500" in line


def test_versions_name_what_numbers_depend_on():
    assert {"python", "jax", "jaxlib", "flax"} <= set(logging.versions())


def test_a_closed_standard_output_ends_nothing():
    code = "from tnt_jax.training.logging import log\nfor line in range(9): log(str(line))\nprint('done', flush=True)"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 0 and done.stderr.count("standard output is closed. The run goes on") == 1, done.stderr


def test_a_run_that_ends_within_its_warm_up_is_noted():
    def note(total_steps):
        plan = Plan(10, total_steps, log_every_steps=1, eval_every_steps=10, checkpoint_every_steps=10)
        return logging.warmup_note(checked_config(warmup_epochs=1.5), plan)

    assert "within its warm-up of 15 steps (config.warmup_epochs=1.5)" in note(14) and not note(15)


def test_an_average_that_will_be_half_the_start_is_noted():
    def note(steps, **changes):
        return logging.average_note(checked_config(**changes), steps)

    said = note(200, ema_decay=0.999)
    assert said.startswith("Note: 82% of the averaged weights will still be the initial ones after 200 steps")
    assert "--config.ema_warmup=True" in said and "config.ema_decay=0.999" in said
    assert note(692, ema_decay=0.999) and not note(693, ema_decay=0.999)  # 0.999^692 is 0.5004
    assert not note(200, ema_decay=0.999, ema_warmup=True) and not note(200, ema_decay=0.0)
    assert not note(310 * 1251, ema_decay=0.99996)  # the recipe
