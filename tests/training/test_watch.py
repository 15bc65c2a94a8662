"""What a run is watched for."""

import threading
import time

import pytest

from tnt_jax.training import watch


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
    made = watch.InputWait()
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
    found = watch.memory_metrics()
    assert 0.01 < found["host_memory_gb"] < 1000
    monkeypatch.setattr(watch, "_STATUS", tmp_path / "absent")  # as on macOS: the peak instead
    assert watch.host_memory() > 10**7


def test_memory_of_devices_where_they_tell(monkeypatch):
    class Device:
        def __init__(self, peak):
            self.peak = peak

        def memory_stats(self):
            return {"peak_bytes_in_use": self.peak}

    monkeypatch.setattr(watch.jax, "local_devices", lambda: [Device(2 * 10**9), Device(3 * 10**9)])
    assert watch.memory_metrics()["device_memory_gb"] == 3.0
