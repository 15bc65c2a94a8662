"""The training and evaluation steps: pure functions of a device's shard, and the only place that pmaps them.

Imports neither TensorFlow nor the data package's readers, so a step can be compiled for any device from shapes alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from tnt_jax.models import fast
from tnt_jax.models.config import Params
from tnt_jax.models.tnt import TNT
from tnt_jax.training.config import Config
from tnt_jax.training.device_augment import mix, normalize, random_erase, random_resized_crops
from tnt_jax.training.distillation import Teacher
from tnt_jax.training.evaluation import EvalStep, batch_sums, sigmoid_sums, top_k_correct
from tnt_jax.training.freezing import join, split
from tnt_jax.training.losses import batch_loss, multi_hot, smooth_labels
from tnt_jax.training.optimizer import Schedule, average_decay, update_average
from tnt_jax.training.state import Sums, TrainState, zero_sums

AXIS = "batch"
T = TypeVar("T")  # a pytree
Batch = dict[str, jax.Array]
Results = dict[str, Any]  # what train_step returns to the loop
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Results]]


def labels_of(batch: Batch) -> jax.Array:
    """Returns the labels: [b] int32, or multi-hot [b, classes] where an image has several."""
    return batch["labels"] if "labels" in batch else batch["label"]


@jax.named_scope("input")
def augment(key: jax.Array, batch: Batch, num_classes: int, config: Config) -> tuple[jax.Array, jax.Array]:
    """A device's shard -> (images [b, H, W, C] float32, targets [b, K]): normalised, mixed and erased, labels smoothed.

    Normalising first works for both orders: mixing is an average with weights that sum to 1, so the two commute.
    """
    mix_key, erase_key = jax.random.split(key)
    if "examples" in batch:  # the data set is on the device
        size = config.model.input_size
        images = random_resized_crops(batch["examples"], batch["index"], batch["seed"], config.data, size)
    else:
        images = batch["image"]
    images = normalize(images, config.data)
    targets = smooth_labels(labels_of(batch), num_classes, config.label_smoothing)
    if config.mixing.order == "erase_mix":
        images = random_erase(erase_key, images, config.mixing, AXIS)
        return mix(mix_key, images, targets, config.mixing, AXIS)
    images, targets = mix(mix_key, images, targets, config.mixing, AXIS)
    return random_erase(erase_key, images, config.mixing, AXIS), targets


def loss_and_gradients(
    params: Params,
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    model: nn.Module,
    config: Config,
    several_labels: bool = False,
    class_weights: np.ndarray | None = None,
    frozen: Params | None = None,
    teach: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[Params, Sums]:
    """images [b, H, W, C], targets [b, K], mask [b] -> (gradient of the summed loss, sums of loss and accuracy).

    The gradient is with respect to `params`; `frozen` holds the model's other parameters (freezing.split), if any.
    The shard is processed in config.accumulation_steps parts, one after another: the same sums in a fraction of the
    memory. Accuracy counts the classes with the largest target as correct: in a mixed image, those with the larger
    share. Where images have several labels, an image without any is never correct, as in an evaluation.
    class_weights [K]: see losses.py. teach: images -> a teacher's logits [b, K].
    """
    accumulation_steps = config.accumulation_steps

    def summed_loss(params: Params, key: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array):
        logits = model.apply({"params": join(params, frozen)}, images, train=True, rngs={"dropout": key})
        loss = batch_loss(logits, targets, mask, config, class_weights, teach(images) if teach else None)
        largest = targets.max(-1, keepdims=True)
        wanted = targets == largest
        if several_labels:  # the target of an absent class is half the smoothing, up to rounding by mixing
            wanted &= largest > config.label_smoothing / 2 + 1e-6
        correct = top_k_correct(logits, wanted)
        return loss[0], {"loss": loss, "accuracy": ((correct * mask).sum(), mask.sum())}

    gradient = jax.grad(summed_loss, has_aux=True)
    if accumulation_steps == 1:
        return gradient(params, key, images, targets, mask)
    cut = [x.reshape(accumulation_steps, -1, *x.shape[1:]) for x in (images, targets, mask)]
    keys = jax.random.split(key, accumulation_steps)

    def add_part(so_far: tuple[Params, Sums], inputs: tuple[jax.Array, ...]):
        return jax.tree.map(jnp.add, so_far, gradient(params, *inputs)), None

    empty = jax.tree.map(jnp.zeros_like, params), zero_sums("loss", "accuracy")
    return lax.scan(add_part, empty, (keys, *cut))[0]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    config: Config,
    log_every_steps: int,
    class_weights: np.ndarray | None = None,
    teacher: Teacher | None = None,
) -> tuple[TrainState, Results]:
    """A device's shard of a batch -> (next state, results for the loop), both equal on all devices.

    The state's parameters are block by block or, for a model that scans, stacked (state.stack_layers).

    batch: image [b, H, W, C] uint8 or uint16, label [b] int32 (or labels, see labels_of), mask [b] float32. For a data
    set on the device (ResidentPipeline), examples [n, h, w, C], index [b] and seed [b, 2] replace image. With a
    teacher, "teacher" holds its parameters. class_weights [K]: see losses.py.
    results: `sums`, the running sums since the last log line (reset in here every `log_every_steps` updates, so that a
    resumed run has the same sums); `learning_rate`, `loss` and `gradient_norm` of this update; `finite`, whether loss,
    gradient and updated parameters are finite. With `nonfinite` = "skip", a non-finite update leaves parameters,
    optimizer, average and running sums unchanged; the step still counts, so data and schedule advance.
    """
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    batch_key, model_key = jax.random.split(step_key)
    model_key = jax.random.fold_in(model_key, lax.axis_index(AXIS))
    images, targets = augment(batch_key, batch, model.num_classes, config)
    trained, frozen = split(state.params, config.freeze)
    teach = teacher and functools.partial(teacher.logits, batch["teacher"], data=config.data)
    gradient_of = functools.partial(
        loss_and_gradients,
        model=model,
        config=config,
        several_labels="labels" in batch,
        class_weights=class_weights,
        frozen=frozen,
        teach=teach,
    )
    gradients, sums = lax.psum(gradient_of(trained, model_key, images, targets, batch["mask"]), AXIS)
    with jax.named_scope("optimizer"):  # profiles and tools.tpu_report group operations by these names
        gradients = jax.tree.map(lambda gradient: gradient / sums["loss"][1], gradients)
        norm = optax.global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        params = optax.apply_updates(trained, updates)
        # The weights too: an oversized step ruins them before any loss shows it.
        finite = jnp.isfinite(sums["loss"][0]) & jnp.isfinite(norm) & jnp.isfinite(optax.global_norm(params))
    loss = sums["loss"][0] / sums["loss"][1]

    sums["gradient_norm"] = (norm, jnp.ones((), jnp.float32))
    if config.nonfinite == "skip":
        params = tree_select(finite, params, trained)
        opt_state = tree_select(finite, opt_state, state.opt_state)
        sums = tree_select(finite, sums, jax.tree.map(jnp.zeros_like, sums))
    anew = state.step % log_every_steps == 0
    running = jax.tree.map(lambda before, now: jnp.where(anew, 0.0, before) + now, state.metrics, sums)
    average = None
    if config.ema_decay:
        averaged, _ = split(state.ema_params, config.freeze)
        average = update_average(averaged, params, average_decay(config, state.step))
        if config.nonfinite == "skip":
            average = tree_select(finite, average, averaged)
        average = join(average, frozen)  # the average of frozen weights is the weights, bit-exact
    next_state = state.replace(
        step=state.step + 1, params=join(params, frozen), opt_state=opt_state, ema_params=average, metrics=running
    )
    results = {"learning_rate": schedule(state.step), "loss": loss, "gradient_norm": norm, "finite": finite}
    return next_state, results | {"sums": running}


@jax.named_scope("optimizer")
def tree_select(condition: jax.Array, new: T, old: T) -> T:
    """condition [] bool and two trees -> the new tree's leaves where it is true, else the old one's.

    The schedule's counter is always the new one: a skipped step uses up its learning rate.
    """

    def choose(new: T, old: T) -> T:
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(condition, new, old)

    return jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))


def eval_step(
    params: Params,
    batch: Batch,
    classes: jax.Array,
    *,
    model: nn.Module,
    config: Config,
    calibration_bins: int = 0,
) -> dict[str, jax.Array]:
    """A device's shard of a batch, classes [K] -> evaluation.batch_sums of the whole batch, equal on all devices.

    With config.per_class also sigmoid_sums and, with several labels per image, the scores and labels of all images.
    """
    logits = model.apply({"params": params}, normalize(batch["image"], config.data), train=False)
    labels, mask = labels_of(batch), batch["mask"]
    sums = batch_sums(logits, labels, mask, classes, calibration_bins)
    if not config.per_class:
        return lax.psum(sums, AXIS)
    sums = lax.psum(sums | sigmoid_sums(logits, labels, mask, config.bce_sum_classes), AXIS)
    if labels.ndim == 1:
        return sums
    rows = {"scores": logits.astype(jnp.float32), "present": multi_hot(labels, logits.shape[-1]), "counted": mask}
    return sums | lax.all_gather(rows, AXIS, tiled=True)


def for_platform(model: nn.Module, devices: Sequence[jax.Device]) -> nn.Module:
    """Returns the model with the devices' kind set, so that a step compiled on any host gets a TPU's implementation.

    Raises ValueError with the reason if config.model.inner_implementation is not possible on these devices.
    """
    if not isinstance(model, TNT):
        return model
    try:
        return fast.replace(model, device_kind=devices[0].device_kind)
    except ValueError as error:
        raise ValueError(f"config.model.{error}") from error


def over_devices(
    step: Callable[..., T],
    *,
    devices: Sequence[jax.Device] | None = None,
    in_axes: int | tuple[int | None, ...] = 0,
    donate_argnums: int | tuple[int, ...] = (),
) -> Callable[..., T]:
    """Maps a function of a device's shard over the devices (None: all): leaves get a leading axis [devices].

    The only place that pmaps. Inside, the devices are the axis AXIS. An argument with None in `in_axes` has no such
    axis and is broadcast. Arguments in `donate_argnums` are invalid after a call.
    """
    return jax.pmap(step, axis_name=AXIS, in_axes=in_axes, donate_argnums=donate_argnums, devices=devices)


def make_train_step(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    log_every_steps: int,
    class_weights: np.ndarray | None = None,
    teacher: Teacher | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> TrainStep:
    """Returns `train_step` mapped over the devices (default: all); leaves have a leading axis [local devices].

    The state's buffers are donated: the argument is invalid after the call.
    """
    step = functools.partial(
        train_step,
        model=for_platform(model, devices or jax.devices()),
        optimizer=optimizer,
        schedule=schedule,
        config=config,
        log_every_steps=log_every_steps,
        class_weights=class_weights,
        teacher=teacher and dataclasses.replace(teacher, model=for_platform(teacher.model, devices or jax.devices())),
    )
    return over_devices(step, devices=devices, donate_argnums=0)


def make_eval_step(
    config: Config, model: nn.Module, *, devices: Sequence[jax.Device] | None = None, calibration_bins: int = 0
) -> EvalStep:
    """Returns `eval_step` over the devices (default: all); params and batch have a leading axis [local devices]."""
    model = for_platform(model, devices or jax.devices())
    step = functools.partial(eval_step, model=model, config=config, calibration_bins=calibration_bins)
    return over_devices(step, devices=devices, in_axes=(0, 0, None))
