"""The train state: everything a run needs to go on as if it had never stopped."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from tnt_jax.models.fast.stacking import stack_blocks
from tnt_jax.training import metrics
from tnt_jax.training.config import Experiment

# What a training step sums up between two lines of the log.
TRAIN_METRICS = ("loss", "accuracy", "gradient_norm")


@flax.struct.dataclass
class TrainState:
    """One copy; replicated over the devices it has a leading axis [devices]. Every leaf is an array or absent."""

    step: jax.Array  # int32 [], optimizer updates made
    params: Any  # float32
    opt_state: Any
    ema_params: Any  # like params; None where ema_decay is 0
    key: jax.Array  # uint32 [2], the run's base key; every draw is a function of it and of the step
    metrics: metrics.Sums  # running sums since the last line of the log, so that a resumed run logs the same line


def initial_state(
    experiment: Experiment, model: nn.Module, optimizer: optax.GradientTransformation, params: Any = None
) -> TrainState:
    """The state before the first step; traceable. With `params`, training starts from these weights."""
    size = experiment.model.image_size
    init_key, train_key = jax.random.split(jax.random.key(experiment.seed))
    if params is None:
        params = model.init(init_key, jnp.zeros((1, size, size, 3), jnp.float32))["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=jax.tree.map(jnp.copy, params) if experiment.ema_decay else None,
        key=jax.random.key_data(train_key),
        metrics=metrics.zeros(TRAIN_METRICS),
    )


def create_state(
    experiment: Experiment, model: nn.Module, optimizer: optax.GradientTransformation, params: Any = None
) -> TrainState:
    """`initial_state` on the host's CPU, so that every accelerator starts from the same bits.

    One jitted call, compiled without optimisation: it runs once, and compiling some hundred random draws is what it
    costs (12 s for four small blocks with XLA's default, 5 s like this).
    """

    def create(params: Any) -> TrainState:
        return initial_state(experiment, model, optimizer, params)

    host = _host_device()
    if host is None:
        return jax.jit(create)(params)
    with jax.default_device(host):
        return jax.jit(create, compiler_options={"xla_backend_optimization_level": 0})(params)


def _host_device() -> jax.Device | None:
    """The CPU as a jax device; None where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def training_form(state: Any, experiment: Experiment) -> Any:
    """A state, or parameters -> as the training step has them: with config.model.scan, like blocks stacked.

    Checkpoints, and all that is not a step, have them block by block: `unstack_blocks` is the way back.
    """
    return stack_blocks(state) if experiment.model.scan else state


def replicate(state: Any, devices: list[jax.Device] | None = None) -> Any:
    """A tree -> the same with a leading axis [local devices], one copy on each."""
    devices = devices or jax.local_devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))

    def copies(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.device_put(np.broadcast_to(leaf, (len(devices), *leaf.shape)), sharding)

    return jax.tree.map(copies, state)


# One copy as numpy arrays, whatever the number of devices and processes.
unreplicate = metrics.to_host
