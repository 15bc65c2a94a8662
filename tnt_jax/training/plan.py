"""How long a run is and when the loop does what, in optimizer steps; and whether the devices divide the batches."""

import dataclasses
import math

from tnt_jax.training.config import Experiment, nearest_multiples


@dataclasses.dataclass(frozen=True)
class Plan:
    """Steps are counted from 1 here: step s is the s-th optimizer update, and a checkpoint of step s comes after it."""

    steps_per_epoch: int
    total_steps: int
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int

    def logs(self, step: int) -> bool:
        """Whether the running sums are written after this step."""
        return step % self.log_every_steps == 0 or step == self.total_steps

    def evaluates(self, step: int) -> bool:
        """Whether the test split is evaluated after this step."""
        return step % self.eval_every_steps == 0 or step == self.total_steps

    def checkpoints(self, step: int) -> bool:
        """Whether the state is saved after this step, whatever the evaluation says."""
        return step % self.checkpoint_every_steps == 0 or step == self.total_steps


def make_plan(experiment: Experiment, steps_per_epoch: int) -> Plan:
    """Intervals of 0 become an epoch; the length comes from `steps`, or else from epochs + cooldown_epochs."""
    if steps_per_epoch < 1:
        raise ValueError(
            f"The training split {experiment.data.train_split!r} of {experiment.data.name} is smaller than one batch: "
            f"config.batch_size={experiment.batch_size}. Use a smaller batch."
        )
    epochs = experiment.epochs + experiment.cooldown_epochs
    total_steps = experiment.steps or max(1, math.ceil(epochs * steps_per_epoch))
    if experiment.profile_steps and experiment.profile_steps[0] > total_steps:
        raise ValueError(
            f"config.profile_steps={experiment.profile_steps} begins at step {experiment.profile_steps[0]:,} of a run "
            f"of {total_steps:,}. Begin earlier."
        )
    return Plan(
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
        log_every_steps=experiment.log_every_steps or steps_per_epoch,
        eval_every_steps=experiment.eval_every_steps or steps_per_epoch,
        checkpoint_every_steps=experiment.checkpoint_every_steps or steps_per_epoch,
    )


def check_training_devices(experiment: Experiment, device_count: int) -> None:
    """Raises ValueError where the devices of all processes do not divide a batch, with batches that they do divide."""
    shares = device_count * experiment.accumulation_steps
    if experiment.batch_size % shares:
        accumulated = f" x config.accumulation_steps={experiment.accumulation_steps}" * (
            experiment.accumulation_steps > 1
        )
        raise ValueError(
            f"config.batch_size={experiment.batch_size} is not a multiple of the {device_count} devices{accumulated}; "
            f"use {nearest_multiples(experiment.batch_size, shares)}."
        )


def check_evaluation_devices(experiment: Experiment, device_count: int) -> None:
    """The same for the batches of the evaluation."""
    if experiment.eval_batch_size % device_count:
        raise ValueError(
            f"config.eval_batch_size={experiment.eval_batch_size} is not a multiple of the {device_count} devices; "
            f"use {nearest_multiples(experiment.eval_batch_size, device_count)}."
        )
