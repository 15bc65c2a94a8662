"""Memory: a lower bound by arithmetic, the need of a compiled step, and one error for memory that runs out."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from tnt_jax.models.complexity import by_formula
from tnt_jax.models.tnt import TNT
from tnt_jax.training.config import Config
from tnt_jax.training.monitor import host_memory
from tnt_jax.training.optimizer import make_optimizer
from tnt_jax.training.runtime import RunError

GIB = 2**30
ROOM = 0.8  # fraction of the memory that a suggestion may use; other programs need some
CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
FIX = (
    "Take a smaller config.batch_size (or more config.accumulation_steps, which do not change the result), "
    "config.model.remat=True, or a smaller model."
)
EVALUATION_FIX = "Take a smaller config.eval_batch_size, or fewer config.prefetch_batches."


def least_bytes(config: Config, model: TNT, devices: int) -> float:
    """Returns a lower bound on the bytes that training holds on each of `devices`: less than half of the real need.

    Counts weights, gradient, optimizer moments and average; the images of a step and of the batches waiting; and one
    block's tokens, words and attention in a forward pass.
    """
    item = jnp.dtype(model.dtype).itemsize
    images = config.batch_size // devices // config.accumulation_steps
    waiting = config.prefetch_batches * config.batch_size // devices + config.eval_batch_size // devices
    sentences, width = model.grid[0] * model.grid[1], model.outer_dim
    weights = by_formula(model).parameters + (model.num_classes + sentences) * width
    activations = sentences * width + model.outer_num_heads * sentences**2
    if model.inner_blocks:
        words = model.num_words
        activations += sentences * (words * model.inner_dim + model.inner_num_heads * words**2)
    pixels, pixel_bytes = math.prod(model.input_shape), config.data.pixel_bits // 8
    moments = _moments(config)
    # Frozen parameters have no gradient or moments; their number is not known here.
    copies = 1 + bool(config.ema_decay) + (0 if config.freeze else 1 + moments)
    return 4.0 * copies * weights + item * images * activations + (4 * images + pixel_bytes * waiting) * pixels


def _moments(config: Config) -> float:
    """Returns how many numbers the optimizer keeps per element of a kernel."""
    optimizer = make_optimizer(config, optax.constant_schedule(0.0))
    kernel = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    kept = jax.eval_shape(optimizer.init, {"block_1": {"kernel": kernel}})
    return sum(leaf.size for leaf in jax.tree.leaves(kept)) / kernel.size


def check_memory(config: Config, model: TNT) -> None:
    """Raises ValueError if training cannot fit on the devices, however it is compiled."""
    statistics = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    held = statistics.get("bytes_limit") or machine_bytes() / jax.local_device_count()
    least = least_bytes(config, model, jax.device_count())
    if least > held:
        sizes = ("image_size", "patch_size", "word_size", "inner_dim", "outer_dim", "mlp_ratio", "depth", "num_classes")
        sizes = ", ".join(f"{name}={getattr(model, name)}" for name in sizes)
        raise ValueError(
            f"config.model ({sizes}, {model.inner_num_heads} and {model.outer_num_heads} heads) with config.batch_size="
            f"{config.batch_size}, config.eval_batch_size={config.eval_batch_size} and config.prefetch_batches="
            f"{config.prefetch_batches} needs at least {least / GIB:,.0f} GiB on each device; there are "
            f"{held / GIB:,.0f}. {FIX}"
        )


def need_message(compiled: jax.stages.Compiled, config: Config) -> str:
    """A compiled training step -> a line: memory needed and available, and what to lower if it does not fit."""
    plan = compiled.memory_analysis()
    if plan is None:
        return "The memory that a training step needs is not known on this platform."
    new = plan.output_size_in_bytes - plan.alias_size_in_bytes  # donated buffers are reused
    scratch, count = plan.temp_size_in_bytes, jax.local_device_count()
    statistics = jax.local_devices()[0].memory_stats() or {}  # a CPU has none: its devices share the machine's memory
    if limit := statistics.get("bytes_limit"):
        kept, copies, have, where = plan.argument_size_in_bytes + new, 1, float(limit), "on each device"
    else:
        kept = new + host_memory() / count  # libraries, and what the devices already hold
        copies, have, where = count, machine_bytes(), "on this machine"
    need = copies * (kept + scratch)
    text = f"A training step needs {need / GIB:.1f} GiB {where}, which has {have / GIB:.1f} GiB."
    if need <= have:
        return text
    local = config.batch_size // jax.device_count()
    parts = config.accumulation_steps
    more = [parts * 2**i for i in range(1, 17) if local % (parts * 2**i) == 0]
    enough = [each for each in more if copies * (kept + scratch * parts / each) <= ROOM * have]
    if not enough:
        return f"Note: {text} The system may kill the run. {FIX}"
    then = copies * (kept + scratch * parts / enough[0])
    return (
        f"Note: {text} The system may kill the run. --config.accumulation_steps={enough[0]} splits the batch into as "
        f"many parts, one by one, and needs about {then / GIB:.1f} GiB; a smaller config.batch_size or model, or "
        "config.model.remat=True, also needs less."
    )


@contextlib.contextmanager
def enough(fix: str = FIX) -> Iterator[None]:
    """Turns running out of device or host memory in its body into a RunError with the fix."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            first = (str(error).strip() or "MemoryError").splitlines()[0]
            raise RunError(f"Out of memory: {first}. {fix}") from error
        raise


def machine_bytes() -> float:
    """Returns the machine's memory, or the limit of this process's container (control group) if lower."""
    limits = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for file in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # missing, or "max"
            limits.append(float(file.read_text()))
    return min(limits)
