"""One training step and one evaluation step: pure functions of a device's share, and the one place that pmaps them.

Free of TensorFlow and of input pipelines, so that a step can be compiled for any device from shapes alone.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from tnt_jax.models import fast
from tnt_jax.models.tnt import TNT
from tnt_jax.training import crops, losses, metrics, mixing
from tnt_jax.training.config import Experiment
from tnt_jax.training.optimizer import Schedule, average_decay, update_average
from tnt_jax.training.state import TrainState

AXIS = "batch"
Batch = dict[str, jax.Array]


def normalize(images: jax.Array, experiment: Experiment) -> jax.Array:
    """images [b, H, W, 3] uint8, or float32 in 0..255 -> float32, (images / 255 - mean) / std by colour."""
    mean = jnp.array(experiment.data.mean, jnp.float32)
    std = jnp.array(experiment.data.std, jnp.float32)
    return (images.astype(jnp.float32) / 255 - mean) / std


@jax.named_scope("input")
def prepare(
    key: jax.Array, batch: Batch, num_classes: int, experiment: Experiment, axis_name: str | None = AXIS
) -> tuple[jax.Array, jax.Array]:
    """A device's share -> (images [b, H, W, 3] float32, targets [b, K]): normalised, mixed and erased, labels smoothed.

    Normalising first serves both orders: mixing is an average with weights that sum to 1, so it commutes with it.
    """
    mix_key, erase_key = jax.random.split(key)
    if "examples" in batch:  # the data set lies on the device
        side = experiment.model.image_size
        images = crops.take(batch["examples"], batch["index"], batch["seed"], experiment.data, side)
    else:
        images = batch["image"]
    images = normalize(images, experiment)
    targets = losses.smooth_labels(batch["label"], num_classes, experiment.label_smoothing)
    if experiment.mixing.order == "erase_mix":
        images = mixing.random_erase(erase_key, images, experiment.mixing, axis_name)
        return mixing.mix(mix_key, images, targets, experiment.mixing, axis_name)
    images, targets = mixing.mix(mix_key, images, targets, experiment.mixing, axis_name)
    return mixing.random_erase(erase_key, images, experiment.mixing, axis_name), targets


def loss_and_gradients(
    params: Any,
    key: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    model: nn.Module,
    accumulation_steps: int,
) -> tuple[metrics.Sums, Any]:
    """images [b, H, W, 3], targets [b, K], mask [b] -> (sums of loss and accuracy, gradient of the summed loss).

    The share is cut into `accumulation_steps` parts, one after the other: the same sums in a fraction of the memory.
    Accuracy is against the class with the largest target: of a mixed image, the one it holds more of.
    """

    def summed_loss(params: Any, key: jax.Array, images: jax.Array, targets: jax.Array, mask: jax.Array):
        logits = model.apply({"params": params}, images, train=True, rngs={"dropout": key})
        loss = losses.softmax_cross_entropy(logits, targets, mask)
        correct = metrics.accuracy(logits, targets.argmax(-1), mask)
        return loss[0], {"loss": loss, "accuracy": correct}

    def part(params: Any, key: jax.Array, *arrays: jax.Array) -> tuple[metrics.Sums, Any]:
        gradients, sums = jax.grad(summed_loss, has_aux=True)(params, key, *arrays)
        return sums, gradients

    if accumulation_steps == 1:
        return part(params, key, images, targets, mask)
    cut = [x.reshape(accumulation_steps, -1, *x.shape[1:]) for x in (images, targets, mask)]
    keys = jax.random.split(key, accumulation_steps)
    nothing = metrics.zeros(("loss", "accuracy")), jax.tree.map(jnp.zeros_like, params)

    def add_part(so_far: tuple[metrics.Sums, Any], inputs: tuple[jax.Array, ...]):
        return jax.tree.map(jnp.add, so_far, part(params, *inputs)), None

    return lax.scan(add_part, nothing, (keys, *cut))[0]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    experiment: Experiment,
    log_every_steps: int,
    axis_name: str = AXIS,
) -> tuple[TrainState, dict[str, Any]]:
    """A device's share of a batch -> (the next state, what the loop reads), both equal on all devices.

    The state's parameters are block by block or, for a model that scans, stacked (state.training_form).

    batch: image [b, H, W, 3] uint8, label [b] int32, mask [b] float32; of a data set on the device (ResidentFeed) its
    examples [n, h, w, 3] uint8, index [b] and seed [b, 2] in place of image. Read by the loop: `sums`, the running sums
    since the last line of the log (they start anew after every `log_every_steps` updates, in here, so that a resumed
    run sums up the same); `learning_rate`, `loss` and `gradient_norm` of this update; `finite`, whether this step's
    loss, its gradient and the updated parameters are. Where `nonfinite` is "skip", an update that is not finite leaves
    parameters, optimizer, average and running sums as they were; the step counts, so that data and schedule go on.
    """
    step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    batch_key, model_key = jax.random.split(step_key)
    model_key = jax.random.fold_in(model_key, lax.axis_index(axis_name))
    images, targets = prepare(batch_key, batch, model.num_classes, experiment, axis_name)
    local = loss_and_gradients(
        state.params,
        model_key,
        images,
        targets,
        batch["mask"],
        model=model,
        accumulation_steps=experiment.accumulation_steps,
    )
    sums, gradients = lax.psum(local, axis_name)
    with jax.named_scope("optimizer"):  # profiles and tools.tpu_report divide a step by these names
        gradients = jax.tree.map(lambda gradient: gradient / sums["loss"][1], gradients)
        norm = optax.global_norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # The weights too: a step that is much too long ruins them before any loss shows it.
        finite = jnp.isfinite(sums["loss"][0]) & jnp.isfinite(norm) & jnp.isfinite(optax.global_norm(params))
    loss = sums["loss"][0] / sums["loss"][1]

    sums["gradient_norm"] = (norm, jnp.ones((), jnp.float32))
    if experiment.nonfinite == "skip":
        params = where(finite, params, state.params)
        opt_state = where(finite, opt_state, state.opt_state)
        sums = where(finite, sums, jax.tree.map(jnp.zeros_like, sums))
    anew = state.step % log_every_steps == 0
    running = jax.tree.map(lambda before, now: jnp.where(anew, 0.0, before) + now, state.metrics, sums)
    average = None
    if experiment.ema_decay:
        average = update_average(state.ema_params, params, average_decay(experiment, state.step))
    if experiment.nonfinite == "skip" and average is not None:
        average = where(finite, average, state.ema_params)
    next_state = state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, ema_params=average, metrics=running
    )
    results = {"learning_rate": schedule(state.step), "loss": loss, "gradient_norm": norm, "finite": finite}
    return next_state, results | {"sums": running}


@jax.named_scope("optimizer")
def where(condition: jax.Array, new: Any, old: Any) -> Any:
    """condition [] bool and two trees -> the new tree's leaves where it holds, else the old one's.

    The schedule's counter is always the new one: a skipped step has its learning rate, and the next one the next.
    """

    def choose(new: Any, old: Any) -> Any:
        if isinstance(new, optax.ScaleByScheduleState):
            return new
        return jnp.where(condition, new, old)

    return jax.tree.map(choose, new, old, is_leaf=lambda node: isinstance(node, optax.ScaleByScheduleState))


def eval_step(
    params: Any, batch: Batch, *, model: nn.Module, experiment: Experiment, axis_name: str = AXIS
) -> metrics.Sums:
    """A device's share of a batch -> sums of loss, accuracy and accuracy_top5 over the whole batch, without padding."""
    logits = model.apply({"params": params}, normalize(batch["image"], experiment), train=False)
    targets = losses.smooth_labels(batch["label"], model.num_classes, smoothing=0.0)
    sums = {
        "loss": losses.softmax_cross_entropy(logits, targets, batch["mask"]),
        "accuracy": metrics.accuracy(logits, batch["label"], batch["mask"]),
        "accuracy_top5": metrics.accuracy(logits, batch["label"], batch["mask"], top=5),
    }
    return lax.psum(sums, axis_name)


def for_platform(model: nn.Module, devices: Sequence[jax.Device]) -> nn.Module:
    """The model told which devices it is compiled for, so that a step gets a TPU's form of the blocks on any host.

    Raises:
      ValueError: config.model.inner_implementation is not possible there, with the reason.
    """
    if not isinstance(model, TNT):
        return model
    try:
        return fast.replace(model, device_kind=devices[0].device_kind)
    except ValueError as error:
        raise ValueError(f"config.model.{error}") from error


def over_devices(
    step: Callable[..., Any],
    *,
    devices: Sequence[jax.Device] | None = None,
    in_axes: int | tuple[int | None, ...] = 0,
    donate_argnums: int | tuple[int, ...] = (),
) -> Callable[..., Any]:
    """A function of a device's share -> the same over the devices (None: all): leaves get a leading axis [devices].

    The one place that pmaps. Inside, the devices are the axis AXIS; an argument with None in `in_axes` has no such axis
    and goes to all of them; arguments in `donate_argnums` are gone after a call.
    """
    return jax.pmap(step, axis_name=AXIS, in_axes=in_axes, donate_argnums=donate_argnums, devices=devices)


def make_train_step(
    experiment: Experiment,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    *,
    log_every_steps: int,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Any]]]:
    """`train_step` over the devices (all of them unless given): leaves have a leading axis [local devices].

    The state's buffers are donated: the argument is gone after the call.
    """
    step = functools.partial(
        train_step,
        model=for_platform(model, jax.devices() if devices is None else devices),
        optimizer=optimizer,
        schedule=schedule,
        experiment=experiment,
        log_every_steps=log_every_steps,
        axis_name=AXIS,
    )
    return over_devices(step, devices=devices, donate_argnums=0)


def make_eval_step(
    experiment: Experiment, model: nn.Module, *, devices: Sequence[jax.Device] | None = None
) -> Callable[[Any, Batch], metrics.Sums]:
    """`eval_step` over the devices (all of them unless given): leaves have a leading axis [local devices]."""
    model = for_platform(model, jax.devices() if devices is None else devices)
    step = functools.partial(eval_step, model=model, experiment=experiment, axis_name=AXIS)
    return over_devices(step, devices=devices)
