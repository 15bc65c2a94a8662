"""The length of a run, its intervals, and batches that the devices divide."""

import pytest

from tests.training.helpers import experiment
from tnt_jax.training.plan import check_evaluation_devices, check_training_devices, make_plan


def test_the_recipes_length():
    settings = experiment(epochs=300.0, cooldown_epochs=10.0)
    assert make_plan(settings, 1251).total_steps == 310 * 1251


def test_steps_take_precedence_and_parts_of_epochs_round_up():
    assert make_plan(experiment(steps=7), 5).total_steps == 7
    assert make_plan(experiment(epochs=1.5), 5).total_steps == 8
    assert make_plan(experiment(epochs=0.01, warmup_epochs=0.0), 5).total_steps == 1


def test_intervals_of_0_are_an_epoch_and_the_end_is_always_due():
    plan = make_plan(experiment(steps=12, log_every_steps=2, eval_every_steps=0, checkpoint_every_steps=7), 5)
    steps = range(1, 13)
    assert [step for step in steps if plan.logs(step)] == [2, 4, 6, 8, 10, 12]
    assert [step for step in steps if plan.evaluates(step)] == [5, 10, 12]
    assert [step for step in steps if plan.checkpoints(step)] == [7, 12]


def test_less_than_a_batch_is_an_error():
    with pytest.raises(ValueError, match="smaller than one batch"):
        make_plan(experiment(), 0)


def test_batches_that_devices_do_not_divide():
    check_training_devices(experiment(batch_size=48, accumulation_steps=2), 8)
    check_evaluation_devices(experiment(eval_batch_size=24), 8)
    with pytest.raises(ValueError, match=r"batch_size=20 is not a multiple of the 8 devices; use 16 or 24"):
        check_training_devices(experiment(batch_size=20), 8)
    with pytest.raises(ValueError, match=r"8 devices x config.accumulation_steps=3; use 24 or 48"):
        check_training_devices(experiment(batch_size=36, accumulation_steps=3), 8)
    with pytest.raises(ValueError, match=r"eval_batch_size=20 .* use 16 or 24"):
        check_evaluation_devices(experiment(eval_batch_size=20), 8)
