"""Traces of training steps: through the loop, on the CPU."""

import dataclasses
import gzip
import json

import jax
import pytest

from tests.training.helpers import TinyFeed, TinyModel, tiny_config
from tnt_jax.training import loop, setup
from tnt_jax.training.config import check_config
from tnt_jax.training.errors import RunError
from tnt_jax.training.plan import make_plan


def train(monkeypatch, workdir, steps, spoil_step=None, **changes):
    """A run of the tiny model -> its traces, each the set of the steps in it."""
    monkeypatch.setattr(setup, "multiply_adds", lambda model: 1000)
    config = tiny_config(steps=steps, eval_every_steps=100, checkpoint_every_steps=3, **changes)
    run = setup.prepare(config, workdir, TinyFeed(config, spoil_step))
    try:
        loop.train(dataclasses.replace(run, model=TinyModel()))
    finally:
        traces = sorted((workdir / "profile").glob("plugins/profile/*/*.trace.json.gz"))
    return [steps_in(path) for path in traces]


def steps_in(path):
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {int(event["args"]["step_num"]) for event in events if "step_num" in event.get("args", {})}


def test_the_trace_holds_the_steps_asked_for_and_no_others(tmp_path, monkeypatch, capsys):
    assert train(monkeypatch, tmp_path, steps=5, profile_steps=(3, 2)) == [{3, 4}]
    assert list(tmp_path.glob("profile/plugins/profile/*/*.xplane.pb"))
    assert f"profiled steps is in {tmp_path / 'profile'}" in capsys.readouterr().out
    # The run goes on behind them.
    assert train(monkeypatch, tmp_path, steps=6, profile_steps=(3, 2)) == [{3, 4}]
    assert "is done already" in capsys.readouterr().out


def test_without_the_key_there_is_no_trace(tmp_path, monkeypatch):
    assert train(monkeypatch, tmp_path, steps=1) == []
    assert not (tmp_path / "profile").exists()


def test_a_run_that_ends_early_leaves_its_trace(tmp_path, monkeypatch):
    assert train(monkeypatch, tmp_path / "short", steps=3, profile_steps=(2, 10)) == [{2, 3}]
    with pytest.raises(RunError):
        train(monkeypatch, tmp_path / "nan", steps=5, spoil_step=2, profile_steps=(2, 10))
    assert len(list((tmp_path / "nan").glob("profile/plugins/profile/*/*.xplane.pb"))) == 1


def test_what_follows_the_last_step_is_not_in_the_trace(tmp_path, monkeypatch):
    order = []

    def noted(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *arguments: (order.append(name), original(*arguments))[1])

    noted(jax.profiler, "stop_trace")
    noted(loop, "_evaluate_and_save")
    train(monkeypatch, tmp_path, steps=3, profile_steps=(2, 10))
    assert order == ["stop_trace", "_evaluate_and_save"]


@pytest.mark.parametrize("value, words", [((3,), r"\(first, count\)"), ((0, 1), "at least 1"), ((3, 0), "at least 1")])
def test_impossible_values(value, words):
    with pytest.raises(ValueError, match=f"config.profile_steps=.*{words}"):
        check_config(tiny_config(profile_steps=value))


def test_a_first_step_behind_the_end():
    with pytest.raises(ValueError, match="begins at step 30 of a run of 20. Begin earlier"):
        make_plan(check_config(tiny_config(steps=20, profile_steps=(30, 1))), steps_per_epoch=5)
