"""metrics.jsonl: one whole line a write, and none twice after a resume."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf

from tests.training.helpers import points
from tnt_jax.training import writers
from tnt_jax.workdir import METRICS_FILE


def test_lines_are_numbers_by_name(tmp_path):
    writer = writers.make_writer(tmp_path, writes=True)
    writer.write_scalars(3, {"train/loss": np.float32(0.5), "train/accuracy": 1})
    writer.write_scalars(4, {"train/loss": math.nan})
    writer.write_texts(4, {"note": "TensorBoard's"})
    writer.write_hparams({"seed": 0})
    writer.flush()
    writer.close()
    found = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert found == [{"step": 3, "train/loss": 0.5, "train/accuracy": 1.0}, {"step": 4, "train/loss": None}]


def test_other_processes_write_nothing(tmp_path):
    writer = writers.make_writer(tmp_path, writes=False)
    writer.write_scalars(1, {"train/loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def steps_of(workdir):
    return [json.loads(line)["step"] for line in (workdir / METRICS_FILE).read_text().splitlines()]


def write(workdir, *steps):
    writer = writers.make_writer(workdir, writes=True)
    for step in steps:
        writers.write(writer, step, {"train/loss": 1.0})
        if step % 2 == 0:
            writers.write(writer, step, {"eval/loss": 1.0})
    writer.close()


def test_later_points_and_torn_ends_are_dropped(tmp_path):
    writers.go_back(tmp_path, 3, evaluation_due=False)  # there is nothing yet
    write(tmp_path, 1, 2, 3, 4, 5)
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"step": 3, "a"')
    (events,) = tmp_path.glob("events*")
    with events.open("ab") as file:
        file.write(b"\x18\0\0\0torn")
    assert writers.go_back(tmp_path, 3, evaluation_due=False) == []
    assert steps_of(tmp_path) == [1, 2, 2, 3]
    write(tmp_path, 4, 5)
    assert steps_of(tmp_path) == [1, 2, 2, 3, 4, 4, 5]
    everything = {("train/loss", step) for step in (1, 2, 3, 4, 5)} | {("eval/loss", 2), ("eval/loss", 4)}
    assert points(tmp_path) == dict.fromkeys(everything, 1)
    assert len(list(tmp_path.iterdir())) == 3  # the lines and a file of events a session


@pytest.mark.parametrize("damage", [b'{"step": \xff}', b"5", b"[1]", b"{}", b'{"step": "3"}', b'{"step": 1, "a": "b"}'])
def test_damaged_lines_are_said_and_the_file_kept(tmp_path, damage):
    write(tmp_path, 1, 3, 5)
    file = tmp_path / METRICS_FILE
    first, second, third = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(content := first + damage + b"\n" + second + third)
    (note,) = writers.go_back(tmp_path, 4, evaluation_due=False)
    assert f"1 of 4 lines of {file} are damaged" in note and "damaged.metrics.jsonl" in note
    assert file.read_bytes() == first + second
    assert (tmp_path / "damaged.metrics.jsonl").read_bytes() == content


def test_a_flipped_bit_among_events_is_said_and_the_file_kept(tmp_path):
    write(tmp_path, 1, 3, 5)
    (events,) = tmp_path.glob("events*")
    content = bytearray(events.read_bytes())
    content[content.index(b"train/loss")] ^= 1
    events.write_bytes(content)
    (note,) = writers.go_back(tmp_path, 4, evaluation_due=False)
    assert f"bytes of {events} are damaged" in note
    (copy,) = tmp_path.glob("damaged.*")
    assert copy.read_bytes() == content and "tfevents" not in copy.name
    assert points(tmp_path) == {}
    assert writers.go_back(tmp_path, 4, evaluation_due=False) == []


def test_an_evaluation_that_is_still_due_is_dropped(tmp_path):
    write(tmp_path, 1, 2)
    before = (tmp_path / METRICS_FILE).read_text()
    writers.go_back(tmp_path, 2, evaluation_due=False)
    assert (tmp_path / METRICS_FILE).read_text() == before
    writers.go_back(tmp_path, 2, evaluation_due=True)
    assert steps_of(tmp_path) == [1, 2]
    assert points(tmp_path) == {("train/loss", 1): 1, ("train/loss", 2): 1}


def test_what_tensorflow_cannot_write_is_an_oserror():
    class Full:
        def write_scalars(self, step, scalars):
            raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        writers.write(Full(), 1, {})
