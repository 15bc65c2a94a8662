"""What a run is watched for: speed and the time left, waiting for data, memory, and traces of its steps."""

import dataclasses
import gzip
import json
import threading
import time

import jax
import pytest

from tests.training.helpers import TinyModel, TinyPipeline, tiny_config
from tnt_jax.training import logging, loop, monitor, setup
from tnt_jax.training.config import check_config
from tnt_jax.training.runtime import RunError
from tnt_jax.training.setup import make_plan


def test_peaks_by_device_kind():
    assert monitor.peak_flops("TPU v5 lite") == 197e12
    assert monitor.peak_flops("TPU v5") == 459e12
    assert monitor.peak_flops("TPU v4") == 275e12
    assert monitor.peak_flops("TPU v6 lite") == 918e12
    assert monitor.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert monitor.peak_flops("NVIDIA H200") == monitor.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert monitor.peak_flops("cpu") is None


def test_share_of_the_peak():
    """A TNT-S of 5.24 G multiply-adds at 1,000 images/s on a v5e: 6 x 5.24e9 x 1000 of 197e12."""
    share = monitor.model_flops_utilization(1000, 5_240_000_000, 197e12)
    assert share == pytest.approx(0.1596, abs=1e-4)


def test_the_meter_leaves_out_compilation_and_everything_else():
    times = iter([100.0, 102.0, 104.0, 150.0, 152.0, 154.0])
    meter = monitor.Meter(batch_size=10, clock=lambda: next(times))
    meter.tick()  # the first step's end, after compiling
    assert meter.speed(meter.take()) is None and meter.seconds_left(5) is None
    meter.tick()
    meter.tick()
    assert meter.speed(meter.take()) == pytest.approx(5.0)  # 2 steps of 10 images in 4 seconds
    meter.resume()  # after an evaluation of 46 seconds
    meter.tick()
    meter.tick()
    assert meter.speed(meter.take()) == pytest.approx(10.0 * 2 / 4)
    assert meter.images_per_second() == pytest.approx(5.0)
    assert meter.seconds_left(5) == pytest.approx(10.0)


def test_the_share_of_the_time_in_which_the_devices_wait():
    times = iter([0.0, 4.0, 8.0])
    meter = monitor.Meter(batch_size=10, clock=lambda: next(times))
    meter.wait(30.0)  # for the very first batch: start-up
    meter.tick()
    meter.wait(1.0)
    assert meter.tick() == monitor.Interval(1, 4.0, 1.0)
    meter.wait(2.0)
    meter.tick()
    assert meter.take().input_wait_share == pytest.approx(3 / 8)
    assert meter.take().input_wait_share == 0.0


def test_slow_steps_are_told_from_the_usual_ones():
    slow = monitor.SlowSteps(factor=10.0)
    usual, long = monitor.Interval(1, 0.2, 0.0), monitor.Interval(1, 4.0, 3.0)
    assert slow.message(1, None) is None  # the first of a session is not timed
    assert slow.message(2, long) is None  # nothing is usual yet
    assert all(slow.message(step, usual) is None for step in range(3, 20))
    assert slow.message(20, monitor.Interval(1, 2.5, 0.0)) is None  # 12 times as long, but not a second more
    message = slow.message(21, long)
    for word in ("Step 21", "4.0 s", "0.2 s", "75%"):
        assert word in message
    never = monitor.SlowSteps(factor=0.0)
    assert all(never.message(step, usual) is None for step in range(20)) and never.message(20, long) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (3700, "1 h 1 min"), (180000, "2 d 2 h"), (7, "7 s")],
)
def test_time_in_words(seconds, words):
    assert logging.in_words(seconds) == words


class Step:
    """In place of a device array: ready when the event is set."""

    def __init__(self):
        self.ended = threading.Event()

    def block_until_ready(self):
        self.ended.wait(10)


def batches(*delays):
    for number, seconds in enumerate(delays):
        time.sleep(seconds)
        yield number


@pytest.fixture
def waits():
    made = monitor.InputWait()
    yield made
    made.close()


def test_waiting_for_data_counts_only_while_no_step_runs(waits):
    made = batches(0.1, 0.0, 0.1, 0.2)
    first, seconds = waits.take(made)
    assert first == 0 and seconds >= 0.1  # nothing runs yet
    running = Step()
    waits.dispatched(running)
    assert waits.take(made) == (1, 0.0)
    assert waits.take(made) == (2, 0.0)  # a tenth of a second, beside a step
    running.ended.set()
    time.sleep(0.1)
    assert waits.take(made)[1] >= 0.2  # the step had ended before


def test_only_the_time_after_the_steps_end_counts(waits):
    running = Step()
    waits.dispatched(running)
    threading.Timer(0.2, running.ended.set).start()
    number, seconds = waits.take(batches(0.6))
    assert number == 0 and 0.1 < seconds < 0.55


def test_memory_of_the_host(monkeypatch, tmp_path):
    found = monitor.memory_metrics()
    assert 0.01 < found["host_memory_gb"] < 1000
    monkeypatch.setattr(monitor, "_STATUS", tmp_path / "absent")  # as on macOS: the peak instead
    assert monitor.host_memory() > 10**7


def test_memory_of_devices_where_they_tell(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    monkeypatch.setattr(monitor.jax, "local_devices", lambda: [Device(2 * 10**9), Device(3 * 10**9)])
    assert monitor.memory_metrics()["device_memory_gb"] == 3.0


def train(monkeypatch, workdir, steps, spoil_step=None, **changes):
    """A run of the tiny model -> its traces, each the set of the steps in it."""
    monkeypatch.setattr(setup, "multiply_adds", lambda model: 1000)
    config = tiny_config(steps=steps, eval_every_steps=100, checkpoint_every_steps=3, **changes)
    run = setup.prepare(config, workdir, TinyPipeline(config, spoil_step))
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
    noted(loop.Trainer, "_evaluate_and_save")
    train(monkeypatch, tmp_path, steps=3, profile_steps=(2, 10))
    assert order == ["stop_trace", "_evaluate_and_save"]


@pytest.mark.parametrize("value, words", [((3,), r"\(first, count\)"), ((0, 1), "at least 1"), ((3, 0), "at least 1")])
def test_impossible_values(value, words):
    with pytest.raises(ValueError, match=f"config.profile_steps=.*{words}"):
        check_config(tiny_config(profile_steps=value))


def test_a_first_step_behind_the_end():
    with pytest.raises(ValueError, match="begins at step 30 of a run of 20. Begin earlier"):
        make_plan(check_config(tiny_config(steps=20, profile_steps=(30, 1))), steps_per_epoch=5)
