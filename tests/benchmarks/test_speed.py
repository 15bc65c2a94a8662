"""Worker processes that take turns, and the report of their measurements."""

import importlib.util
import json
import pathlib
import sys

import pytest

from benchmarks import speed
from benchmarks.sides import ours, turns
from tests.training.helpers import tiny_config
from tnt_jax.training.config import as_dict, check_config

# A side that only sleeps, for as long as its case says; some cases fail, in the ways that real sides do.
WORKER = """
import sys, time
sys.path.insert(0, {folder!r})
import turns

class Sleeper(turns.Side):
    def open(self, case):
        print("libraries print what they like")
        if case["model"] == "deit_base_patch16_224":
            raise MemoryError("no room for it")
        if case["model"] == "deit_tiny_patch16_224":
            sys.exit(7)
        self.seconds = {{"tnt_jax": 0.02, "timm": 0.04}}[case["side"]]
        return dict(platform="cpu", device_kind="cpu", device_count=1, versions={{"sleep": "1"}})

    def run(self, steps):
        time.sleep(self.seconds * steps)

turns.serve(Sleeper)
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Returns a function that runs the benchmark with sleeping workers and these flags -> its JSON."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(folder=str(pathlib.Path(turns.__file__).parent)))
    monkeypatch.setattr(speed, "PAUSE", 0)
    monkeypatch.setattr(speed, "start", lambda case, python: turns.Worker([sys.executable, str(script)], case))
    monkeypatch.setattr(speed, "has_baseline", lambda options: True)
    output = tmp_path / "figures.json"

    def run(*flags):
        speed.main(["--rounds=3", "--turn-seconds=0.02", "--warmup-steps=1", f"--output={output}", *flags])
        return json.loads(output.read_text())

    return run


def test_sides_take_turns_and_the_ratio_is_theirs(program, capsys):
    found = program("--models=tnt_s_patch16_224,deit_small_patch16_224", "--modes=train", "--batch_sizes=4")
    assert [(each["model"], each["side"]) for each in found["results"]] == [
        ("tnt_s_patch16_224", "tnt_jax"),
        ("tnt_s_patch16_224", "timm"),
        ("deit_small_patch16_224", "tnt_jax"),
        ("deit_small_patch16_224", "timm"),
    ]
    for each in found["results"]:
        speed = each["images_per_second"]
        assert len(speed["turns"]) == 3 and speed["min"] <= speed["median"] <= speed["max"]
        assert speed["max"] <= 4 / {"tnt_jax": 0.02, "timm": 0.04}[each["side"]]  # never faster than its step
        assert each["memory_bytes"] > 1e6 and "process" in each["memory_basis"]
        assert each["interleaved"] and each["error"] is None
    ratios = {(each["of"], each["to"]): each["ratio"] for each in found["ratios"]}
    assert len(ratios) == 4
    assert 1.2 < ratios["tnt_s_patch16_224 tnt_jax", "tnt_s_patch16_224 timm"] < 3  # 2, with room for a busy machine
    text = capsys.readouterr().out
    assert "images/s" in text and "tnt_s_patch16_224 tnt_jax / tnt_s_patch16_224 timm = " in text
    assert found["threads"] >= 1 and found["versions"]["sleep"] == "1"


def test_a_side_that_fails_is_named_and_the_others_go_on(program, capsys):
    names = "--models=tnt_s_patch16_224,deit_base_patch16_224,deit_tiny_patch16_224"
    found = program(names, "--modes=forward", "--batch-sizes=2", "--rounds=1")
    errors = {(each["model"], each["side"]): each["error"] for each in found["results"]}
    assert errors["tnt_s_patch16_224", "timm"] is None
    assert errors["deit_base_patch16_224", "tnt_jax"] == "out of memory: no room for it"
    assert errors["deit_tiny_patch16_224", "timm"] == "the process ended with status 7 (its message is above)"
    assert all(each["images_per_second"] is None for each in found["results"] if each["error"])
    assert "failed" in capsys.readouterr().out
    assert [(each["of"], each["to"]) for each in found["ratios"]] == [
        ("tnt_s_patch16_224 tnt_jax", "tnt_s_patch16_224 timm")
    ]


def test_on_a_tpu_each_case_has_the_device_to_itself(monkeypatch):
    """Also if the first case fails, which then cannot report its device."""
    alive, most = set(), []

    class OnTPU:
        def __init__(self, case, python):
            self.name = case["model"]
            alive.add(self.name)
            most.append(len(alive))

        def ready(self):
            if self.name == "first":
                alive.discard(self.name)
                raise turns.WorkerError("out of memory")
            return {"platform": "tpu", "steps_a_turn": 1}

        def turn(self):
            return 1.0

        def end(self):
            return {"memory_bytes": 1, "memory_basis": "pretended"}

        def close(self):
            alive.discard(self.name)

    monkeypatch.setattr(speed, "PAUSE", 0)
    monkeypatch.setattr(speed, "start", OnTPU)
    case = {"side": "tnt_jax", "mode": "train", "batch_size": 4, "dtype": "float32"}
    results = speed.measure([case | {"model": name} for name in ("first", "second", "third")], 2, "python")
    assert most == [1, 1, 1] and not alive
    assert [each["interleaved"] for each in results[1:]] == [False, False]
    assert [each["images_per_second"] and each["images_per_second"]["turns"] for each in results] == [
        None,
        [4, 4],
        [4, 4],
    ]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--models=", "--models is empty"),
        ("--models=tnt_s_patch16_225", "did you mean 'tnt_s_patch16_224'"),
        ("--modes=backward", "--modes=backward: must be forward, train or both"),
        ("--batch-sizes=8,many", "--batch-sizes=many: must be whole numbers"),
        ("--batch-sizes=0", "--batch-sizes=0: must be whole numbers"),
        ("--rounds=0", "argument --rounds: 0 must be at least 1"),
        ("--config.model.mlp_ratio=2.0", "config.model.mlp_ratio: timm's models keep their own"),  # only ours changes
        ("--config.model.pooling=mean", "config.model.pooling: timm's models keep their own"),
        ("--config.model.image_size=(224, 112)", "config.model.image_size: timm's models keep their own"),
    ],
)
def test_flags_that_cannot_work(program, flag, message, capsys):
    with pytest.raises(SystemExit) as stop:
        program(flag)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_baseline_that_is_not_there(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="Name one that has: --baseline-python=PYTHON"):
        speed.has_baseline(speed.parse(["--baseline=timm"]))
    assert not speed.has_baseline(speed.parse([]))
    assert speed.has_baseline(speed.parse(["--baseline-python=python"]))


@pytest.mark.parametrize("training", [False, True])
def test_our_side_runs_the_loops_step(training):
    side = ours.Ours()
    grey = {"model__in_channels": 1, "data__mean": (0.5,), "data__std": (0.5,)}
    config = as_dict(check_config(tiny_config(model__num_classes=4, model__image_size=(8, 12), **grey)))
    facts = side.open({"config": config, "training": training})
    side.run(2)
    assert facts["device_count"] == 8 and facts["platform"] == "cpu"
    if training:
        assert int(side._state.step[0]) == 2
    with pytest.raises(ValueError, match="a batch of 12 is not a multiple of the 8 devices"):
        side.open({"config": config | {"batch_size": 12, "eval_batch_size": 12}, "training": False})


def test_the_baselines_file_is_where_it_is_looked_for():
    assert speed.BASELINE_FILE.is_file()
