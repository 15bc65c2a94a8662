"""metrics.jsonl: one whole line a write, and none twice after a resume."""

import json
import math

import numpy as np

from tnt_jax.training import writers


def test_lines_are_numbers_by_name(tmp_path):
    writer = writers.make_writer(tmp_path, writes=True)
    writer.write_scalars(3, {"train/loss": np.float32(0.5), "train/accuracy": 1})
    writer.write_scalars(4, {"train/loss": math.nan})
    writer.write_texts(4, {"note": "TensorBoard's"})
    writer.write_hparams({"seed": 0})
    writer.flush()
    writer.close()
    found = [json.loads(line) for line in (tmp_path / writers.METRICS_FILE).read_text().splitlines()]
    assert found == [{"step": 3, "train/loss": 0.5, "train/accuracy": 1.0}, {"step": 4, "train/loss": None}]


def test_other_processes_write_nothing(tmp_path):
    writer = writers.make_writer(tmp_path, writes=False)
    writer.write_scalars(1, {"train/loss": 1.0})
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_later_and_torn_lines_are_dropped(tmp_path):
    path = tmp_path / writers.METRICS_FILE
    writers.drop_lines_after(path, 3)  # there is none yet
    path.write_text('{"step": 2, "a": 1}\n{"step": 3, "a": 1}\n{"step": 4, "a": 1}\n{"step": 5, "a"')
    writers.drop_lines_after(path, 3)
    assert path.read_text() == '{"step": 2, "a": 1}\n{"step": 3, "a": 1}\n'
