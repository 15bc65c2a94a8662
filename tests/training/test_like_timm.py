"""The training step against timm's: the same weights, batches and settings (fixtures/make_timm_training.py)."""

import pathlib

import jax
import numpy as np
import pytest

import tnt_jax
from tests.fixtures.training_batches import EPOCHS, NUM_CLASSES, SIZE, STEPS_PER_EPOCH, training_batch
from tests.training.helpers import checked_config
from tnt_jax.models.fast.stacking import unstack_blocks
from tnt_jax.pretrained.names import to_arrays
from tnt_jax.training import steps
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.state import initial_state, replicate, stack_layers, unreplicate

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
MODEL = {"outer_dim": 16, "inner_dim": 4, "depth": 2, "outer_num_heads": 2, "inner_num_heads": 2}
SCHEDULE = {"warmup_epochs": 2.0, "warmup_learning_rate": 1e-4, "min_learning_rate": 1e-5, "label_smoothing": 0.1}
RUNS = {
    "adamw": {"learning_rate": 2e-3, "weight_decay": 0.05, "ema_decay": 0.95},
    "lamb": {"learning_rate": 5e-3, "weight_decay": 0.02, "adam_epsilon": 1e-6, "gradient_clip_norm": 1.0},
    "sgd": {"learning_rate": 0.05, "weight_decay": 1e-3, "momentum": 0.9},
}


def train(name, count, **changes):
    """Trains `count` steps -> (losses, learning rates, the state, block by block)."""
    settings = checked_config(
        optimizer=name,
        epochs=float(EPOCHS),
        model__num_classes=NUM_CLASSES,
        model__image_size=SIZE,
        model__patch_size=8,
        **{f"model__{key}": value for key, value in MODEL.items()},
        **SCHEDULE | {"ema_decay": 0.0} | RUNS[name] | changes,
    )
    model = tnt_jax.create_model(**settings.model.arguments())
    params = tnt_jax.load_pretrained(FIXTURES / "training.safetensors", model, image_size=SIZE)["params"]
    schedule = make_schedule(settings, STEPS_PER_EPOCH)
    optimizer = make_optimizer(settings, schedule)
    devices = jax.local_devices()[:1]
    state = replicate(stack_layers(initial_state(settings, model, optimizer, params), settings), devices)
    step = steps.make_train_step(settings, model, optimizer, schedule, log_every_steps=1, devices=devices)
    losses, rates = [], []
    for number in range(count):
        images, labels = training_batch(number)
        fields = {"image": images, "label": labels.astype(np.int32), "mask": np.ones(len(labels), np.float32)}
        fields["index"] = np.arange(len(labels), dtype=np.int32)
        state, results = step(state, {key: value[None] for key, value in fields.items()})
        losses.append(float(results["loss"][0]))
        rates.append(float(results["learning_rate"][0]))
    return losses, rates, unstack_blocks(unreplicate(state))


def assert_weights(params, found, group):
    paths = {tuple(entry.key for entry in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    ours = to_arrays(paths, "timm")
    assert {f"{group}/{name}" for name in ours} == {name for name in found if name.startswith(group)}
    worst = {name: np.abs(array - found[f"{group}/{name}"]).max() for name, array in ours.items()}
    assert max(worst.values()) < 1e-4, sorted(worst.items(), key=lambda each: -each[1])[:3]


@pytest.mark.parametrize("name", RUNS)
def test_steps_are_timms(name):
    """100 steps of AdamW (smoothing, staircase cosine, moving average), 20 of LAMB and SGD.

    Measured: losses within 4e-6 and weights within 3e-6 for AdamW, both within 1e-6 for the others.
    """
    with np.load(FIXTURES / f"training_{name}.npz") as file:
        found = dict(file)
    losses, rates, state = train(name, len(found["loss"]))
    np.testing.assert_allclose(rates, found["rate"], rtol=1e-5)
    np.testing.assert_allclose(losses, found["loss"], atol=1e-4)
    assert_weights(state.params, found, "weights")
    if name == "adamw":
        assert_weights(state.ema_params, found, "average")
