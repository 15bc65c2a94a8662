"""Whether a model and its batches can fit at all, by arithmetic; and one message for those that turn out not to."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from tnt_jax.models.complexity import by_formula
from tnt_jax.training.config import Experiment
from tnt_jax.training.errors import RunError

GIB = 2**30
MEND = (
    "Take a smaller config.batch_size (or more config.accumulation_steps, which leave the result as it is), "
    "config.model.remat=True, or a smaller model."
)


def least_bytes(experiment: Experiment, model: Any, devices: int) -> float:
    """What training holds at once on each of `devices`, at the very least: less than half of what it will be.

    Weights, gradient, AdamW's two moments and the average; the images of a step and of those that wait; of one block
    the tokens, the words and the attention of a forward pass.
    """
    size, item = experiment.model.image_size, jnp.dtype(model.dtype).itemsize
    share = experiment.batch_size // devices // experiment.accumulation_steps
    waiting = experiment.prefetch_batches * experiment.batch_size // devices + experiment.eval_batch_size // devices
    sentences, width = model.grid[0] * model.grid[1], model.outer_dim
    weights = by_formula(model).parameters + (model.num_classes + sentences) * width
    activations = sentences * width + model.outer_num_heads * sentences**2
    if model.inner_blocks:
        words = model.num_words
        activations += sentences * (words * model.inner_dim + model.inner_num_heads * words**2)
    pixels = 3 * size**2
    copies = 5 if experiment.ema_decay else 4
    return 4.0 * copies * weights + item * share * activations + (4 * share + waiting) * pixels


def check_memory(experiment: Experiment, model: Any) -> None:
    """Raises ValueError where training cannot fit the devices, however it is compiled."""
    statistics = jax.local_devices()[0].memory_stats() or {}  # a CPU has none
    held = statistics.get("bytes_limit") or _host_bytes() / jax.local_device_count()
    least = least_bytes(experiment, model, jax.device_count())
    if least > held:
        sizes = ("image_size", "patch_size", "word_size", "inner_dim", "outer_dim", "mlp_ratio", "depth", "num_classes")
        sizes = ", ".join(f"{name}={getattr(model, name)}" for name in sizes)
        raise ValueError(
            f"config.model ({sizes}, {model.inner_num_heads} and {model.outer_num_heads} heads) with config.batch_size="
            f"{experiment.batch_size}, config.eval_batch_size={experiment.eval_batch_size} and config.prefetch_batches="
            f"{experiment.prefetch_batches} needs at least {least / GIB:,.0f} GiB on each device; there are "
            f"{held / GIB:,.0f}. {MEND}"
        )


@contextlib.contextmanager
def enough() -> Iterator[None]:
    """Inside it, a device's or the host's memory that is full becomes a RunError."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            first = (str(error).strip() or "MemoryError").splitlines()[0]
            raise RunError(f"The memory does not suffice: {first}. {MEND}") from error
        raise


def _host_bytes() -> float:
    """The machine's memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
