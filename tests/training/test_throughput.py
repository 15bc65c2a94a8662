"""Speed, share of the peak and time left."""

import pytest

from tnt_jax.training import throughput


def test_peaks_by_device_kind():
    assert throughput.peak_flops("TPU v5 lite") == 197e12
    assert throughput.peak_flops("TPU v5") == 459e12
    assert throughput.peak_flops("TPU v4") == 275e12
    assert throughput.peak_flops("TPU v6 lite") == 918e12
    assert throughput.peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert throughput.peak_flops("NVIDIA H200") == throughput.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert throughput.peak_flops("cpu") is None


def test_share_of_the_peak():
    """A TNT-S of 5.24 G multiply-adds at 1,000 images/s on a v5e: 6 x 5.24e9 x 1000 of 197e12."""
    share = throughput.model_flops_utilization(1000, 5_240_000_000, 197e12)
    assert share == pytest.approx(0.1596, abs=1e-4)


def test_the_meter_leaves_out_compilation_and_everything_else():
    times = iter([100.0, 102.0, 104.0, 150.0, 152.0, 154.0])
    meter = throughput.Meter(batch_size=10, clock=lambda: next(times))
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
    meter = throughput.Meter(batch_size=10, clock=lambda: next(times))
    meter.wait(30.0)  # for the very first batch: start-up
    meter.tick()
    meter.wait(1.0)
    assert meter.tick() == throughput.Interval(1, 4.0, 1.0)
    meter.wait(2.0)
    meter.tick()
    assert meter.take().input_wait_share == pytest.approx(3 / 8)
    assert meter.take().input_wait_share == 0.0


def test_slow_steps_are_told_from_the_usual_ones():
    slow = throughput.SlowSteps(factor=10.0)
    usual, long = throughput.Interval(1, 0.2, 0.0), throughput.Interval(1, 4.0, 3.0)
    assert slow.message(1, None) is None  # the first of a session is not timed
    assert slow.message(2, long) is None  # nothing is usual yet
    assert all(slow.message(step, usual) is None for step in range(3, 20))
    assert slow.message(20, throughput.Interval(1, 2.5, 0.0)) is None  # 12 times as long, but not a second more
    message = slow.message(21, long)
    for word in ("Step 21", "4.0 s", "0.2 s", "75%"):
        assert word in message
    never = throughput.SlowSteps(factor=0.0)
    assert all(never.message(step, usual) is None for step in range(20)) and never.message(20, long) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.6, "1 min 0 s"), (80, "1 min 20 s"), (3700, "1 h 1 min"), (180000, "2 d 2 h"), (7, "7 s")],
)
def test_time_in_words(seconds, words):
    assert throughput.in_words(seconds) == words
