"""Whole runs of a tiny model, for the tests of the loop."""

import dataclasses

import flax.traverse_util

from tests.training.helpers import (
    TinyModel,
    TinyPipeline,
    tiny_config,
)
from tnt_jax.training import setup

INTERVALS = {"log_every_steps": 3, "checkpoint_every_steps": 4, "eval_every_steps": 10, "keep_checkpoints": 2}


def make_run(workdir, pipeline=None, **changes):
    config = tiny_config(**INTERVALS | changes)
    run = setup.prepare(config, workdir, pipeline or TinyPipeline(config))
    return dataclasses.replace(run, model=TinyModel())


def tiny_parameters(weights, model):
    """Stands in for pretrained.load.fit, for TinyModel."""
    assert isinstance(model, TinyModel)
    return flax.traverse_util.unflatten_dict(weights.arrays, sep="/")


class Killed(Exception):
    """Stands for the death of the process."""


class DyingPipeline(TinyPipeline):
    """Raises Killed after `batches` batches."""

    def __init__(self, config, batches):
        super().__init__(config)
        self.batches = batches

    def train(self, start_step):
        for count, made in enumerate(super().train(start_step)):
            if count == self.batches:
                raise Killed
            yield made
