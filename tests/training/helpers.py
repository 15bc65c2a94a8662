"""A tiny config, a model that compiles in a second, and batches without a data set."""

import collections
import functools
import itertools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from tensorboard.backend.event_processing import event_accumulator

from configs import default
from tnt_jax import workdir as workdirs
from tnt_jax.data.faulty import FaultyImages
from tnt_jax.training import setup, steps
from tnt_jax.training.config import check_config
from tnt_jax.training.optimizer import make_optimizer, make_schedule
from tnt_jax.training.state import initial_state, replicate

NUM_CLASSES = 4
SIZE = 8
# Values that depend on machine and time. The rest of metrics.jsonl is the same, digit for digit, in a run that was
# stopped and resumed (on the same devices); these may differ, or be absent from a line whose steps were not timed.
TIME_LIKE = (
    "seconds",
    "train/images_per_second",
    "train/images_per_second_per_device",
    "train/model_flops_utilization",
    "train/input_wait_share",
    "train/host_memory_gb",
    "train/device_memory_gb",
)


class TinyModel(nn.Module):
    """images [B, H, W, 3] -> logits [B, num_classes]; has the two attributes of a TNT that training reads."""

    num_classes: int = NUM_CLASSES
    device_kind: str | None = None

    @nn.compact
    def __call__(self, images, train=False):
        x = images[:, ::2, ::2].reshape(images.shape[0], -1)
        x = jnp.tanh(nn.Dense(8, name="dense")(x) + self.param("class_token", nn.initializers.zeros, (8,)))
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm(name="norm")(x))


def tiny_config(**changes):
    """Returns configs/default.py with the smallest TNT and no mixing; changes are keys with __ in place of dots."""
    config = default.get_config()
    config.batch_size = config.eval_batch_size = 16
    config.epochs, config.cooldown_epochs, config.warmup_epochs = 4.0, 0.0, 1.0
    config.learning_rate = 1e-2
    config.ema_decay = 0.9
    config.model.image_size = SIZE
    config.model.patch_size, config.model.word_size = 4, 2
    config.model.inner_dim, config.model.outer_dim = 2, 4
    config.model.inner_num_heads, config.model.outer_num_heads = 1, 1
    config.model.depth = 1
    config.model.drop_path_rate = 0.0
    config.model.dtype = "float32"
    config.mixing.mixup_alpha = config.mixing.cutmix_alpha = config.mixing.erase_probability = 0.0
    with config.unlocked():
        for key, value in changes.items():
            *groups, leaf = key.split("__")
            group = config
            for name in groups:
                group = group[name]
            group[leaf] = value
    return config


def checked_config(**changes):
    return check_config(tiny_config(**changes))


def resolved(config, num_classes):
    """Returns a checked config with all sizes filled in, as config.json has it."""
    return setup.fill_in(config, setup.make_model(config, num_classes))


def random_variables(model, size=SIZE, seed=0):
    """Draws random variables of the right shapes; compiling model.init would take seconds."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


def batch(seed, size=16, real=None, devices=1):
    """Returns a batch [devices, size / devices, ...] whose red channel shows the labels; after `real` it is padding."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, NUM_CLASSES, size)
    images = rng.integers(0, 64, (size, SIZE, SIZE, 3))
    images[..., 0] += labels[:, None, None] * 60
    mask = np.arange(size) < (size if real is None else real)
    fields = {
        "image": images.astype(np.uint8),
        "label": labels.astype(np.int32),
        "mask": mask.astype(np.float32),
        "index": np.where(mask, np.arange(size), -1).astype(np.int32),
    }
    return {name: field.reshape(devices, size // devices, *field.shape[1:]) for name, field in fields.items()}


def read_state(workdir, step=None):
    """Reads a checkpoint (None means the newest) -> (state as nested dicts of NumPy arrays, metadata)."""
    step = workdirs.checkpoint_steps(workdir)[-1] if step is None else step
    parts = {"state": ocp.args.StandardRestore(), "metadata": ocp.args.JsonRestore()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        folder = (workdir / workdirs.FOLDER / str(step)).absolute()
        restored = checkpointer.restore(folder, args=ocp.args.Composite(**parts))
    return restored.state, restored.metadata


def points(workdir):
    """Counts the points in the event files, read as TensorBoard reads them -> {(tag, step): count}."""
    found = event_accumulator.EventAccumulator(str(workdir), size_guidance={event_accumulator.TENSORS: 0}).Reload()
    return collections.Counter((tag, event.step) for tag in found.Tags()["tensors"] for event in found.Tensors(tag))


def lines(workdir):
    """Reads metrics.jsonl -> a dict per line."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def untimed(found):
    return [{name: value for name, value in line.items() if name not in TIME_LIKE} for line in found]


def assert_same_end(workdir, other):
    """Compares weights, optimizer, average, key, sums, metadata, the checkpoints kept, metrics and event points."""
    (state, metadata), (other_state, other_metadata) = read_state(workdir), read_state(other)
    jax.tree.map(np.testing.assert_array_equal, state, other_state)
    for found in (metadata, other_metadata):
        for name in ("seconds", "metadata_checksum"):
            del found[name]
    assert metadata == other_metadata
    assert workdirs.checkpoint_steps(workdir) == workdirs.checkpoint_steps(other)
    assert untimed(lines(workdir)) == untimed(lines(other))
    drawn, other_drawn = (
        {place: count for place, count in points(folder).items() if place[0] not in TIME_LIKE}
        for folder in (workdir, other)
    )
    assert drawn == other_drawn and set(drawn.values()) == {1}


def assert_same_summary(workdir, other):
    """Compares summary.json except for times, speed and the coordinator's address."""
    found = [json.loads((folder / "summary.json").read_text()) for folder in (workdir, other)]
    for summary in found:
        for name in ("seconds", "images_per_second"):
            del summary[name]
        del summary["config"]["distributed"]["coordinator_address"]
    assert found[0] == found[1]


class TinyPipeline:
    """Stands in for training.input_pipeline.InputPipeline: 5 steps per epoch, 35 examples to evaluate."""

    num_classes = NUM_CLASSES
    class_names = ("red", "green", "blue", "grey")
    steps_per_epoch = 5
    train_examples = 80
    found = ()
    identity = "tiny"
    several_labels = False
    labels_at_hand, class_counts = True, np.array([21, 20, 20, 19])
    eval_examples = 35

    def __init__(self, config, spoil_step=None):
        self.config, self.spoil_step, self.started = config, spoil_step, []
        self.faulty = FaultyImages()

    def train(self, start_step):
        self.started.append(start_step)
        devices = jax.local_device_count()
        for step in itertools.count(start_step):
            out = batch((1, step), self.config.batch_size, devices=devices)
            if step == self.spoil_step:
                out["mask"] = out["mask"] * np.nan
            yield out

    def evaluation(self):
        size = self.config.eval_batch_size
        for number in range(-(-self.eval_examples // size)):
            real = min(size, self.eval_examples - number * size)
            yield batch((2, number), size, real, jax.local_device_count())


@functools.cache  # compiling takes longer than the tests
def compiled(settings, model, devices, log_every_steps):
    """Returns (a function that makes the replicated initial state, the pmapped step)."""
    schedule = make_schedule(settings, steps_per_epoch=5)
    optimizer = make_optimizer(settings, schedule)
    state = jax.device_get(jax.jit(lambda: initial_state(settings, model, optimizer))())
    step = steps.make_train_step(settings, model, optimizer, schedule, log_every_steps=log_every_steps, devices=devices)
    return lambda: replicate(state, devices), step


def train_some(settings, batches, model=None, devices=None, log_every_steps=5):
    """Runs the pmapped step over batches [devices, ...] -> (replicated state, results of each step)."""
    start, step = compiled(settings, model or TinyModel(), tuple(devices or jax.local_devices()[:1]), log_every_steps)
    state, results = start(), []
    for each in batches:
        state, result = step(state, each)
        results.append(result)
    return state, results
