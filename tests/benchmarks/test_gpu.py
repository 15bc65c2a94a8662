"""The GPU benchmark's plan and report; its sides are those of benchmarks.speed."""

import json
import pathlib
import sys

import pytest

from benchmarks import gpu, speed
from benchmarks.sides import turns
from tests.benchmarks.test_speed import WORKER


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Returns a function that runs the benchmark with sleeping workers -> its JSON."""
    script, output = tmp_path / "worker.py", tmp_path / "gpu.json"
    script.write_text(WORKER.format(folder=str(pathlib.Path(turns.__file__).parent)))
    monkeypatch.setattr(speed, "PAUSE", 0)
    monkeypatch.setattr(speed, "start", lambda case, python: turns.Worker([sys.executable, str(script)], case))

    def run(*flags):
        gpu.main(["--rounds=1", "--turn-seconds=0", f"--output={output}", "--batch-size=4", *flags])
        return json.loads(output.read_text())

    return run


@pytest.fixture
def timm(monkeypatch):
    """Makes this Python appear to have torch and timm."""
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: True)


def test_implementations_of_a_model_and_timms_take_turns(timm, program, capsys):
    found = program("--models=tnt_s_patch16_224", "--train-batch-size=2")
    expected = ["dot, xla", "broadcast, xla", "dot, flash", "broadcast, flash", "cudnn, flash", "eager", "compiled"]
    assert [each["implementation"] for each in found["results"]] == expected * 2
    assert [each["mode"] for each in found["results"]] == ["train"] * 7 + ["forward"] * 7
    assert [each["batch_size"] for each in found["results"]] == [2] * 7 + [4] * 7
    printed = capsys.readouterr().out
    assert printed.count("| model |") == 2 and "| tnt_jax broadcast, flash |" in printed
    rows = [line.split(" | ") for line in printed.splitlines() if "tnt_jax dot, xla" in line]
    assert all(1.2 < float(row[5]) < 3 for row in rows)  # twice timm's eager model, with room for a busy machine


def test_the_implementations_are_the_models_settings(timm):
    options = gpu.parse(["--models=tnt_s_patch16_224,deit_small_patch16_224,tnt_ti_patch16_224"])
    config = speed.as_dict(speed.check_config(speed.command_line.read_config(options)))
    cases = gpu.groups(options, config)
    settings = [
        [case["config"]["model"][f"{part}_implementation"] for part in ("inner", "outer")]
        for case in cases[0]
        if case["side"] == speed.OURS
    ]
    expected = [("dot", "xla"), ("broadcast", "xla"), ("dot", "flash"), ("broadcast", "flash"), ("cudnn", "flash")]
    assert settings == list(map(list, expected))
    assert [case["compile"] for case in cases[0] if case["side"] == speed.BASELINE] == ["no", "yes"]
    assert [case["implementation"] for case in cases[2]] == ["xla", "flash", "eager", "compiled"]  # a DeiT has no words
    assert {case["side"] for case in cases[4]} == {speed.OURS}  # timm has no TNT-Ti
    assert {case["dtype"] for group in cases for case in group} == {"bfloat16"}


def test_what_would_not_end_in_time_is_named_and_what_was_measured_stays(program, monkeypatch, capsys):
    clock = iter(range(0, 1000, 30))  # each call is 30 s later; a group makes one call
    monkeypatch.setattr(gpu.time, "monotonic", lambda: next(clock))
    found = program("--models=tnt_s_patch16_224,deit_small_patch16_224", "--no-baseline", "--minutes=1.5")
    assert {(each["model"], each["mode"]) for each in found["results"]} == {("tnt_s_patch16_224", "train")}
    left = "Not started for lack of time: tnt_s_patch16_224 forward, deit_small_patch16_224 train"
    assert left in capsys.readouterr().out


def test_a_python_without_timm(monkeypatch, capsys):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        gpu.main(["--minutes=1"])
    assert stop.value.code == 2 and "give --no-baseline" in capsys.readouterr().err
