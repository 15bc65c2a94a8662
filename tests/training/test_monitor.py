"""Monitoring a run: speed and time left, waiting for data, memory, and profiler traces."""

import dataclasses
import gzip
import json
import threading
import types

import jax
import pytest

from tests.training.helpers import TinyModel, TinyPipeline, checked_config, tiny_config
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


class Clock:
    """A clock that advances only when a test says so."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def timer(clock):
    made = monitor.StepTimer(batch_size=10, slow_step_factor=10.0, clock=clock)
    yield made
    made.close()


def run_step(timer, clock, seconds, step=1):
    clock.now += seconds
    return timer.ended(step)


def test_compilation_and_everything_else_is_left_out(timer, clock):
    run_step(timer, clock, 100.0)  # the first step's end, after compiling
    assert timer.take().images_per_second is None and timer.seconds_left(5) is None
    for _ in range(2):
        run_step(timer, clock, 2.0)
    assert timer.take().images_per_second == pytest.approx(5.0)  # 2 steps of 10 images in 4 seconds
    clock.now += 46.0  # an evaluation
    timer.resume()
    for _ in range(2):
        run_step(timer, clock, 4.0)
    assert timer.take().images_per_second == pytest.approx(2.5)
    assert timer.take() == monitor.Interval()
    assert timer.images_per_second() == pytest.approx(40 / 12)
    assert timer.seconds_left(5) == pytest.approx(15)
    assert timer.seconds_left(5, pauses=2) == pytest.approx(15 + 2 * 46)


def test_a_long_run_says_so_after_its_first_steps_and_once(timer, clock):
    run_step(timer, clock, 100.0)
    clock.now += 30.0  # an evaluation
    timer.resume()
    assert timer.first_estimate(99) is None
    run_step(timer, clock, 50.0)
    assert timer.first_estimate(7) is None  # 350 s
    assert timer.first_estimate(98) == "A step takes 50 s: about 1 h 21 min left, evaluations not counted."
    assert timer.seconds_left(98, pauses=3) == 98 * 50.0 + 3 * 30.0
    run_step(timer, clock, 50.0)
    assert timer.first_estimate(97) is None


def test_steps_of_milliseconds_are_not_none(timer, clock):
    run_step(timer, clock, 1.0)
    run_step(timer, clock, 0.045)
    assert timer.first_estimate(10**5).startswith("A step takes 0.045 s: about 1 h 15 min left")


def test_a_cpu_that_will_take_long_is_told_what_to_lower(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1}, raising=False)
    config, tnt_s = checked_config(batch_size=128), 5_227_508_740
    note = monitor.cpu_note(config, tnt_s, 100)  # 2 * 3 * 5.2e9 * 12,800 / 2 / 50e9
    assert "2 CPU cores these 100 steps take about 1 h 6 min" in note and "--config.model.name" in note
    taught = monitor.cpu_note(checked_config(batch_size=128, pretrained="weights.safetensors"), tnt_s, 100)
    assert "--config.freeze='(\"(?!head/).*\",)'" in taught and "tnt_ti" not in taught
    assert "tnt_ti" not in monitor.cpu_note(config, 10**9, 1000)
    assert monitor.cpu_note(checked_config(batch_size=128, freeze=("head/.*",)), tnt_s, 100) is None
    assert monitor.cpu_note(config, tnt_s, 10) is None
    monkeypatch.setattr(monitor.jax, "devices", lambda: [types.SimpleNamespace(platform="tpu")])
    assert monitor.cpu_note(config, tnt_s, 10**6) is None


class Step:
    """Stands in for a device array: ready once the event is set."""

    def __init__(self):
        self.ended = threading.Event()

    def block_until_ready(self):
        self.ended.wait(10)


def batches(clock, *delays):
    for number, seconds in enumerate(delays):
        clock.now += seconds
        yield number


def end(timer, running):
    running.ended.set()
    timer._running.result(10)  # the thread has read the clock


def test_waiting_for_data_counts_only_while_no_step_runs(timer, clock):
    made, running = batches(clock, 30.0, 1.0, 2.0, 3.0), Step()
    assert timer.next_batch(made) == 0  # nothing runs yet: start-up
    timer.ended(1)
    timer.dispatched(running)
    assert timer.next_batch(made) == 1  # 1 s, while a step runs
    end(timer, running)
    assert timer.next_batch(made) == 2  # the step has already ended
    run_step(timer, clock, 5.0)
    assert timer.take() == monitor.Interval(10, 8.0, 2.0)


def test_only_the_time_after_the_steps_end_counts(timer, clock):
    running = Step()
    timer.ended(1)
    timer.dispatched(running)

    def made():
        clock.now += 2.0
        end(timer, running)
        clock.now += 4.0
        yield 0

    timer.next_batch(made())
    timer.ended(2)
    taken = timer.take()
    assert (taken.seconds, taken.waited) == (6.0, 4.0) and taken.input_wait_share == pytest.approx(2 / 3)


def test_a_step_that_failed_is_not_waited_for(timer, clock):
    class Failed:
        def block_until_ready(self):
            raise RuntimeError("device lost")

    timer.ended(1)
    timer.dispatched(Failed())
    timer._running.exception(10)
    timer.next_batch(batches(clock, 3.0))
    timer.ended(2)
    assert timer.take().waited == 0.0


def test_slow_steps_are_told_from_the_usual_ones(timer, clock):
    assert run_step(timer, clock, 60.0, 1) is None  # the first of a session is not timed
    assert run_step(timer, clock, 4.0, 2) is None  # no usual time is known yet
    assert all(run_step(timer, clock, 0.2, step) is None for step in range(3, 20))
    assert run_step(timer, clock, 2.5, 20) is None  # 12 times as long, but within 1 s of the 10-fold limit
    timer.next_batch(batches(clock, 3.0))
    message = run_step(timer, clock, 1.0, 21)
    for word in ("Step 21", "4.0 s", "0.2 s", "75%"):
        assert word in message


def test_no_step_is_slow_where_the_factor_is_0(clock):
    never = monitor.StepTimer(batch_size=10, slow_step_factor=0.0, clock=clock)
    assert all(run_step(never, clock, 0.2) is None for _ in range(20)) and run_step(never, clock, 9.0) is None
    never.close()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (3700, "1 h 1 min"), (180000, "2 d 2 h"), (7, "7 s")],
)
def test_time_in_words(seconds, words):
    assert logging.in_words(seconds) == words


def test_memory_of_the_host():
    assert 0.01 < monitor.memory_metrics()["host_memory_gb"] < 1000


def test_memory_of_devices_where_they_tell(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    monkeypatch.setattr(monitor.jax, "local_devices", lambda: [Device(2 * 10**9), Device(3 * 10**9)])
    assert monitor.memory_metrics()["device_memory_gb"] == 3.0


def train(monkeypatch, workdir, steps, spoil_step=None, **changes):
    """Trains the tiny model -> its traces, each as the set of steps in it."""
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
    # The run resumes after the profiled steps.
    assert train(monkeypatch, tmp_path, steps=6, profile_steps=(3, 2)) == [{3, 4}]
    assert "is already done" in capsys.readouterr().out


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
