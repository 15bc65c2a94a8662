"""Learning rate schedule, weight decay mask, optimizers by name, and the moving average of the weights."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tnt_jax.models.config import Params
from tnt_jax.models.fast.stacking import block_runs, is_stack
from tnt_jax.training.config import Config, peak_learning_rate

Path = tuple[jax.tree_util.DictKey, ...]
Schedule = Callable[[jax.typing.ArrayLike], jax.Array]

# Weight decay applies to matrices and convolutions, not to vectors (biases, norms, scales, the class token), nor to:
NO_WEIGHT_DECAY = ("word_position", "sentence_position")
# Parameters before the blocks.
STEM = ("patch_embedding", "word_embedding", "sentence_embedding", "class_token", *NO_WEIGHT_DECAY)


def make_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Returns a function: update number (from 0) -> learning rate, float32 []; traceable.

    As in timm, with e the epoch (an integer for schedule_unit "epoch", the recipe's staircase; fractional for "step"):
    for e < warmup_epochs, linear from warmup_learning_rate to the peak; afterwards, for "cosine",
    min + (peak - min) / 2 * (1 + cos(pi * e / epochs)), so it starts below the peak, and min once e >= epochs (the
    cool-down); for "constant", the peak.
    """
    peak, floor = peak_learning_rate(config), config.min_learning_rate
    start, warmup = config.warmup_learning_rate, config.warmup_epochs
    staircase = config.schedule_unit == "epoch"

    def after_warmup(epoch: jax.Array) -> jax.Array:
        match config.schedule:
            case "cosine":
                turn = jnp.pi * jnp.minimum(epoch / config.epochs, 1.0)
                return floor + (peak - floor) / 2 * (1 + jnp.cos(turn))
            case "constant":
                return jnp.float32(peak)
        raise NotImplementedError(f"config.schedule={config.schedule}: make_schedule has no case for it.")

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(step)
        epoch = (step // steps_per_epoch if staircase else step / steps_per_epoch).astype(jnp.float32)
        rate = after_warmup(epoch)
        if warmup:
            rate = jnp.where(epoch < warmup, start + (peak - start) * epoch / warmup, rate)
        return rate.astype(jnp.float32)

    return schedule


def decay_mask(params: Params) -> Any:
    """Parameter tree -> tree of bools, True where weight decay applies: rank 2 or more and not in NO_WEIGHT_DECAY.

    The leading axis of stacked blocks does not count.
    """

    def decays(path: Path, leaf: jax.Array) -> bool:
        return leaf.ndim - _in_stack(path) >= 2 and path[-1].key not in NO_WEIGHT_DECAY

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(config: Config, schedule: Schedule) -> optax.GradientTransformation:
    """Returns the config's optimizer with its schedule and decay mask; its state is stacked as the parameters are.

    The gradient's global norm is clipped first if gradient_clip_norm is not 0; layer_decay scales the final updates.
    """
    parts = [named_optimizer(config, schedule)]
    if config.gradient_clip_norm:
        parts.insert(0, optax.clip_by_global_norm(config.gradient_clip_norm))
    if config.layer_decay != 1:
        parts.append(_scale_by_layer(config.layer_decay))
    return optax.chain(*parts) if len(parts) > 1 else parts[0]


def named_optimizer(config: Config, schedule: Schedule) -> optax.GradientTransformation:
    """Returns the gradient transformation that config.optimizer names. A new optimizer is a new case here.

    Weight decay is decoupled and multiplied by the learning rate (arXiv 1711.05101), except for sgd, where it is added
    to the gradient, as in PyTorch's and timm's SGD.
    """
    decay = {"weight_decay": config.weight_decay, "mask": decay_mask}
    betas = {"b1": config.adam_beta1, "b2": config.adam_beta2}
    match config.optimizer:
        case "adamw":  # as in PyTorch
            return optax.adamw(schedule, **betas, eps=config.adam_epsilon, **decay)
        case "sgd":
            sgd = optax.sgd(schedule, momentum=config.momentum or None, nesterov=True)
            return optax.chain(optax.add_decayed_weights(**decay), sgd)
        case "lamb":  # arXiv 1904.00962; no trust ratio for parameters without decay, as in timm and apex
            return optax.chain(
                optax.scale_by_adam(**betas, eps=config.adam_epsilon),
                optax.add_decayed_weights(**decay),
                optax.masked(_scale_by_trust_ratio(), decay_mask),
                optax.scale_by_learning_rate(schedule),
            )
        case "lion":  # arXiv 2302.06675
            return optax.lion(schedule, **betas, **decay)
        case "muon":  # updates of AdamW's size (arXiv 2502.16982): one learning rate and decay serve both
            muon = optax.contrib.muon(
                learning_rate=-1.0,  # sign and rate are applied last
                beta=config.momentum,
                eps=config.adam_epsilon,
                adam_b1=config.adam_beta1,
                adam_b2=config.adam_beta2,
                muon_weight_dimension_numbers=_muon_axes,
                consistent_rms=0.2,
            )
            return optax.chain(muon, optax.add_decayed_weights(**decay), optax.scale_by_learning_rate(schedule))
    raise NotImplementedError(f"config.optimizer={config.optimizer}: named_optimizer has no case for it.")


def layer_multipliers(params: Params, decay: float) -> Any:
    """Parameter tree -> each one's factor of the learning rate; for stacked blocks an array [blocks, 1, ...].

    BEiT's rule (arXiv 2106.08254) as in timm: decay ** (depth + 1 - layer), with layer 0 for the parameters before the
    blocks (STEM), i for block i, depth for the last norm, and depth + 1 for the head.
    """
    runs = {name: run for name, run in block_runs(params)}
    runs |= {name: range(int(name[6:]), int(name[6:]) + 1) for name in params if re.fullmatch(r"block_\d+", name)}
    depth = max((run[-1] for run in runs.values()), default=0)

    def multiplier(path: Path, leaf: jax.Array) -> float | np.ndarray:
        name = path[0].key
        if is_stack(name):
            factors = [decay ** (depth + 1 - layer) for layer in runs[name]]
            return np.array(factors, np.float32).reshape(-1, *(1,) * (leaf.ndim - 1))
        if name in runs:
            return decay ** (depth + 1 - runs[name][0])
        return decay ** {**dict.fromkeys(STEM, depth + 1), "norm": 1}.get(name, 0)

    return jax.tree_util.tree_map_with_path(multiplier, params)


def _scale_by_layer(decay: float) -> optax.GradientTransformation:
    def scale(updates: Params, params: Params) -> Params:
        return jax.tree.map(lambda update, factor: update * factor, updates, layer_multipliers(params, decay))

    return optax.stateless(scale)


def _scale_by_trust_ratio() -> optax.GradientTransformation:
    """optax.scale_by_trust_ratio with a ratio for each block, even of stacked blocks."""
    trust = optax.scale_by_trust_ratio()

    def scale(path: Path, update: jax.Array, param: jax.Array) -> jax.Array:
        one = lambda update, param: trust.update(update, optax.EmptyState(), param)[0]  # noqa: E731
        return (jax.vmap(one) if _in_stack(path) else one)(update, param)

    return optax.stateless(functools.partial(jax.tree_util.tree_map_with_path, scale))


def _muon_axes(params: Params) -> Any:
    """Parameter tree -> input and output axes of each matrix that Muon updates; None for what AdamW updates.

    Muon is for dense layers; AdamW updates the head, convolutions and parameters without decay
    (https://kellerjordan.github.io/posts/muon).
    """

    def axes(path: Path, leaf: jax.Array, decays: bool) -> optax.contrib.MuonDimensionNumbers | None:
        dense = decays and leaf.ndim - _in_stack(path) == 2 and path[0].key != "head"
        return optax.contrib.MuonDimensionNumbers(-2, -1) if dense else None

    return jax.tree_util.tree_map_with_path(axes, params, decay_mask(params))


def _in_stack(path: Path) -> bool:
    """Whether a parameter belongs to stacked blocks and so has a leading axis of blocks."""
    return any(is_stack(str(entry.key)) for entry in path)


def average_decay(config: Config, step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
    """Update number (from 0) -> decay of the weights' average in that update; traceable.

    With `ema_warmup`, min(ema_decay, (1 + t) / (10 + t)) as in TensorFlow's ExponentialMovingAverage, so that the
    initial weights are soon forgotten.
    """
    if not config.ema_warmup:
        return config.ema_decay
    return jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))


def start_in_average(config: Config, steps: int) -> float:
    """Returns the share (0..1) of the initial weights in their average after `steps` updates."""
    decays = np.broadcast_to(average_decay(config, np.arange(steps)), steps)
    return float(np.prod(decays, dtype=np.float64))


@jax.named_scope("optimizer")
def update_average(average: Params, params: Params, decay: jax.typing.ArrayLike) -> Params:
    """The exponential moving average of the weights: average * decay + params * (1 - decay), leaf by leaf."""
    return jax.tree.map(lambda old, new: old * decay + new * (1 - decay), average, params)
