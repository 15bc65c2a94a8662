"""The input pipeline, from the data package to the devices."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from tests.training.helpers import TinyModel, assert_same_end, batch, checked_config, compiled, tiny_config
from tnt_jax import workdir as workdirs
from tnt_jax.training import loop, setup
from tnt_jax.training.config import check_config
from tnt_jax.training.input_pipeline import InputPipeline, ResidentPipeline, make_input_pipeline, prefetch
from tnt_jax.training.state import unreplicate


def test_prefetched_batches_are_the_same_and_lie_on_all_devices():
    out = [batch(seed, devices=8) for seed in range(5)]
    found = list(prefetch(iter(out), 2))
    assert len(found) == 5
    for one, other in zip(out, found, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert len(other["image"].sharding.device_set) == 8
    assert list(prefetch(iter([]), 2)) == []


@pytest.mark.parametrize("size", [1, 3])
def test_so_many_batches_wait(size):
    read = []

    def counting():
        for seed in itertools.count():
            read.append(seed)
            yield batch(seed, devices=8)

    batches = prefetch(counting(), size)
    next(batches)
    assert len(read) == size
    next(batches)
    assert len(read) == size + 1  # the next one is read while a step runs on this one


def test_the_pipeline_gives_what_the_step_takes():
    settings = checked_config(
        data__name="synthetic", data__synthetic_examples=40, data__eval_split="test", data__repeated_augmentation=1
    )
    pipeline = InputPipeline(settings)
    assert pipeline.steps_per_epoch == pipeline.train_examples // 16 == 2 and pipeline.num_classes > 1
    like = batch(0, devices=8)
    out = next(pipeline.train(0))
    assert {name: (x.shape, x.dtype) for name, x in out.items()} == {
        name: (x.shape, x.dtype) for name, x in like.items()
    }
    resumed = next(pipeline.train(3))
    for name, value in next(itertools.islice(pipeline.train(0), 3, None)).items():
        np.testing.assert_array_equal(resumed[name], value)
    masks = [out["mask"].sum() for out in pipeline.evaluation()]
    assert sum(masks) == 40 and len(masks) == 3


def resident_config(**changes):
    return tiny_config(
        data__name="synthetic",
        data__synthetic_examples=40,
        data__eval_split="test",
        data__on_device=True,
        data__randaugment="",
        data__color_jitter=0.0,
        model__num_classes=1000,
        **changes,
    )


def resident_settings():
    return check_config(resident_config())


def test_a_set_on_the_devices_is_sent_once_and_evaluated_as_ever():
    settings = resident_settings()
    pipeline = make_input_pipeline(settings)
    assert isinstance(pipeline, ResidentPipeline)
    first, second = itertools.islice(prefetch(pipeline.train(0), 2), 2)
    assert first["examples"].shape == (8, 40, 8, 8, 3) and "image" not in first
    pointers = [
        {shard.data.unsafe_buffer_pointer() for shard in each["examples"].addressable_shards}
        for each in (first, second)
    ]
    assert pointers[0] == pointers[1]
    for seen in (pipeline.evaluation(), pipeline.evaluation()):  # the second pass reads from the devices
        for kept, out in zip(seen, InputPipeline(settings).evaluation(), strict=True):
            jax.tree.map(np.testing.assert_array_equal, kept, out)


def test_a_killed_run_with_its_set_on_the_devices_resumes_bit_for_bit(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    class Dying(ResidentPipeline):
        def train(self, start_step):
            for count, out in enumerate(super().train(start_step)):
                if count == 6:  # two batches wait on the devices, so four steps are done
                    raise Killed
                yield out

    monkeypatch.setattr(setup, "multiply_adds", lambda model: 1000)
    settings = {"steps": 8, "log_every_steps": 2, "checkpoint_every_steps": 2, "eval_every_steps": 8}
    config = resident_config(**settings)

    def train(name, pipeline=None):
        run = setup.prepare(config, tmp_path / name, pipeline)
        loop.train(dataclasses.replace(run, model=TinyModel(1000)))

    train("whole")
    with pytest.raises(Killed):
        train("killed", Dying(check_config(config)))
    assert workdirs.checkpoint_steps(tmp_path / "killed")[-1] < 8
    train("killed")
    assert_same_end(tmp_path / "killed", tmp_path / "whole")


def test_training_on_a_set_on_the_devices_is_the_same_on_one_and_eight_and_after_a_resume():
    settings = resident_settings()
    model = TinyModel(1000)
    pipeline = make_input_pipeline(settings)
    batches = list(itertools.islice(pipeline.train(0), 3))
    np.testing.assert_array_equal(next(pipeline.train(2))["seed"], batches[2]["seed"])
    losses = []
    for devices in (1, 8):
        start, step = compiled(settings, model, tuple(jax.local_devices()[:devices]), 1)
        state = start()
        for out in batches:
            cut = {name: np.asarray(value).reshape(devices, -1, *value.shape[2:]) for name, value in out.items()}
            cut["examples"] = np.broadcast_to(out["examples"][0], (devices, *out["examples"].shape[1:]))
            state, results = step(state, cut)
        losses.append(unreplicate(results["sums"]["loss"])[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
