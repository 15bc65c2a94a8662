"""The train state: everything that a run needs to resume as if it had never stopped."""

from typing import TypeVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tnt_jax.models.config import Params
from tnt_jax.models.fast.stacking import stack_blocks
from tnt_jax.training.config import Config
from tnt_jax.training.freezing import split

T = TypeVar("T")  # a pytree
Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, weight), both float32 []; ten examples weigh 10
TRAIN_METRICS = ("loss", "accuracy", "gradient_norm")  # summed between two log lines


@flax.struct.dataclass
class TrainState:
    """A single copy; `replicate` adds a leading axis [devices]. Every leaf is an array or absent."""

    step: jax.Array  # int32 [], optimizer updates so far
    params: Params
    opt_state: optax.OptState
    ema_params: Params | None  # like params; None where ema_decay is 0
    key: jax.Array  # uint32 [2], the run's base key; every draw is a function of it and the step
    metrics: Sums  # running sums since the last log line, so that a resumed run logs the same line


def zero_sums(*names: str) -> Sums:
    """Returns an empty running sum for each name."""
    return {name: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)) for name in names}


def initial_params(config: Config, model: nn.Module) -> Params:
    """Draws the initial parameters from the config's seed; traceable."""
    init_key, _ = jax.random.split(jax.random.key(config.seed))
    image = jnp.zeros((1, *config.model.input_size, config.model.in_channels), jnp.float32)
    return model.init(init_key, image)["params"]


def initial_state(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation, params: Params | None = None
) -> TrainState:
    """Returns the state before the first step; traceable. With `params`, training starts from these weights."""
    if params is None:
        params = initial_params(config, model)
    _, train_key = jax.random.split(jax.random.key(config.seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(split(params, config.freeze)[0]),
        ema_params=jax.tree.map(jnp.copy, params) if config.ema_decay else None,
        key=jax.random.key_data(train_key),
        metrics=zero_sums(*TRAIN_METRICS),
    )


def create_state(
    config: Config, model: nn.Module, optimizer: optax.GradientTransformation, params: Params | None = None
) -> TrainState:
    """`initial_state` on the host's CPU, so that every accelerator starts from the same bits.

    One jitted call, compiled without optimisation: it runs once, and compiling some hundred random draws dominates
    (four small blocks: 12 s with XLA's default, 5 s like this).
    """

    def create(params: Params | None) -> TrainState:
        return initial_state(config, model, optimizer, params)

    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS excludes the CPU
        return jax.jit(create)(params)
    with jax.default_device(host):
        return jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})(params)


def stack_layers(tree: T, config: Config) -> T:
    """Stacks the like blocks of a state or of parameters for the training step, if config.model.scan.

    Checkpoints and everything else keep them block by block; `unstack_blocks` is the inverse.
    """
    return stack_blocks(tree) if config.model.scan else tree


def per_device_sharding(devices: list[jax.Device] | None = None) -> jax.NamedSharding:
    """Returns the sharding that pmap expects: leading axis [devices] (None: the local ones), one slice per device."""
    mesh = jax.sharding.Mesh(np.array(devices or jax.local_devices()), ("batch",))
    return jax.NamedSharding(mesh, jax.P("batch"))


def replicate(tree: T, devices: list[jax.Device] | None = None) -> T:
    """A tree -> the same tree with a leading axis [devices] (None: the local ones), one copy on each."""
    devices = devices or jax.local_devices()
    copies = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (len(devices), *np.shape(leaf))), tree)
    return jax.device_put(copies, per_device_sharding(devices))


def unreplicate(tree: T) -> T:
    """A replicated tree [devices, ...] -> numpy arrays of this process's first device, in one transfer.

    Reads one shard instead of indexing, which would start a computation and, with several processes, fail.
    """
    shards = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, tree)
    return jax.tree.map(lambda leaf: np.asarray(leaf)[0], jax.device_get(shards))
