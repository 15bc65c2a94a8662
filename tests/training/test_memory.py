"""A config that can never fit is refused; running out of memory ends a run with one message."""

import logging
import re
import types

import jax
import pytest

from tests.training.helpers import TinyModel, batch, checked_config
from tnt_jax.models.complexity import count_parameters
from tnt_jax.training import memory, setup, steps
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.runtime import RunError
from tnt_jax.training.state import initial_state, replicate


def model_of(settings, num_classes=1000):
    return setup.make_model(settings, num_classes)


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "tnt_b_patch16_224", "deit_tiny_patch16_224"])
def test_the_least_is_less_than_the_weights_and_their_copies_alone_can_explain(name):
    sizes = dict.fromkeys(("patch_size", "word_size", "inner_dim", "outer_dim", "inner_num_heads", "outer_num_heads"))
    changes = {f"model__{key}": None for key in (*sizes, "depth")} | {"model__name": name, "model__image_size": 224}
    settings = checked_config(batch_size=1, eval_batch_size=1, **changes, data__repeated_augmentation=1)
    model = model_of(settings)
    least, weights = memory.least_bytes(settings, model, 1), 20 * count_parameters(model)
    assert 0.95 * weights < least < 1.05 * weights + 2**26


def test_the_least_counts_what_an_optimizer_keeps():
    def least(**changes):
        settings = checked_config(model__outer_dim=1024, **changes)
        return memory.least_bytes(settings, model_of(settings), 1)

    assert least() == pytest.approx(least(optimizer="lamb"), rel=1e-6)
    assert least() > least(optimizer="lion") > least(optimizer="sgd", momentum=0.0) > least(freeze=("x",))
    weights = 4 * count_parameters(model_of(checked_config(model__outer_dim=1024)))
    assert least() - least(optimizer="sgd", momentum=0.0) == pytest.approx(2 * weights, rel=0.05)


def test_published_sizes_are_not_refused():
    settings = checked_config(batch_size=1024, eval_batch_size=1024, model__image_size=224, model__patch_size=16)
    memory.check_memory(settings, model_of(settings))


def make_step(model=None, **changes):
    """Makes the training step of a tiny model on one device -> (step, state, batch, config)."""
    settings = checked_config(**changes)
    model = model or model_of(settings, num_classes=4)
    schedule = make_schedule(settings, steps_per_epoch=5)
    optimizer = make_optimizer(settings, schedule)
    devices = jax.local_devices()[:1]
    step = steps.make_train_step(settings, model, optimizer, schedule, log_every_steps=5, devices=devices)
    state = replicate(jax.device_get(jax.jit(lambda: initial_state(settings, model, optimizer))()), devices)
    return step, state, batch(0, settings.batch_size), settings


def test_to_know_what_a_step_needs_nothing_is_compiled_twice(caplog):
    step, state, images, settings = make_step(TinyModel())
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        assert memory.need_message(step.lower(state, images).compile(), settings).startswith("A training step needs ")
        for _ in range(3):
            state, results = step(state, images)
    assert int(state.step[0]) == 3 and bool(results["finite"][0])
    assert caplog.text.count("Finished XLA compilation of jit(train_step)") <= 1  # 0 if another test has compiled it


def test_the_need_is_what_the_compiler_plans_and_this_process_holds(monkeypatch):
    """Activations grow with the images per pass: the same batch in eight parts needs much less memory."""
    monkeypatch.setattr(memory, "host_memory", lambda: 0)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    needs = {}
    for parts in (1, 8):
        step, state, images, settings = make_step(batch_size=512, accumulation_steps=parts)
        plan = step.lower(state, images).compile()
        message = memory.need_message(plan, settings)
        needs[parts] = plan.memory_analysis().temp_size_in_bytes
        assert float(re.search(r"needs ([0-9.]+) GiB on this machine", message)[1]) == pytest.approx(
            needs[parts] / 2**30, abs=0.06
        )
    tokens = 512 * 4 * (4 * 2 * 10 + 4 * 10)  # images, sentences, (words, channels, tensors kept) + (channels, tensors)
    assert needs[1] > 4 * tokens and needs[1] > 3 * needs[8]


@pytest.mark.parametrize(
    ("scratch", "words"),
    [
        (7.5, []),
        (
            30,
            [
                "Note: A training step needs 31.0 GiB on this machine, which has 10.0 GiB.",
                "accumulation_steps=8",
                "4.8 GiB",
            ],
        ),
        (1e6, ["Note: A training step needs", "config.model.remat=True"]),
    ],
)
def test_a_step_that_is_too_large_comes_with_what_to_lower(monkeypatch, scratch, words):
    monkeypatch.setattr(memory, "host_memory", lambda: 2**30)
    monkeypatch.setattr(memory, "machine_bytes", lambda: 10 * 2**30)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    plan = types.SimpleNamespace(
        temp_size_in_bytes=scratch * 2**30, argument_size_in_bytes=0, output_size_in_bytes=0, alias_size_in_bytes=0
    )
    compiled = types.SimpleNamespace(memory_analysis=lambda: plan)
    message = memory.need_message(compiled, checked_config(batch_size=64 * jax.device_count()))
    assert message.startswith("Note: ") == bool(words)
    for word in words:
        assert word in message


def test_a_containers_limit_is_the_machines(tmp_path, monkeypatch):
    whole = memory.machine_bytes()
    limits = [tmp_path / "memory.max", tmp_path / "absent"]
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", limits)
    for text, bytes_ in (("max", None), (str(2**30), 2**30), ("9" * 19, None)):
        limits[0].write_text(text + "\n")
        assert memory.machine_bytes() == bytes_ if bytes_ else memory.machine_bytes() >= whole


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), MemoryError()])
def test_a_full_memory_ends_the_run_with_the_fix(error):
    with pytest.raises(RunError, match="Out of memory: .*accumulation_steps"), memory.enough():
        raise error


def test_other_errors_pass():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.enough():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
