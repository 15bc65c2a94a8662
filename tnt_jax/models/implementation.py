"""Which program computes the inner blocks: the readable one, XLA's best or the fused kernel, by device and sizes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from tnt_jax.models.pallas.layout import Sizes

IMPLEMENTATIONS = ("auto", "reference", "xla", "pallas")
INTERPRETED = "interpreter"  # a device kind for tests: the kernel as Pallas' interpreter runs it on a TPU's behalf


@dataclasses.dataclass(frozen=True)
class Forms:
    """What a TNT block is computed with; `layers.attend` has the forms of attention."""

    fused: bool  # the inner block is the Pallas kernel, and words are [M * C, B * N] from block to block
    inner: str  # form of the inner attention where it is not
    outer: str  # form of the outer attention
    interpret: bool = False  # the kernel's Python runs, on any device

    @classmethod
    def of(cls, implementation: str, device_kind: str | None, sizes: Sizes, dtype: Any) -> "Forms":
        """A model's `inner_implementation` and `device_kind`, and its inner block -> its forms.

        Raises:
          ValueError: the kernel is asked for and cannot be had, with the reason.
        """
        kind = device_kind or default_device_kind()
        on_tpu = kind.startswith("TPU") or kind == INTERPRETED
        reason = obstacle(kind, sizes, dtype) if implementation in ("auto", "pallas") else None
        if implementation == "pallas" and reason:
            raise ValueError(f"inner_implementation='pallas' is not possible: {reason}; use 'auto' or 'xla'")
        if implementation == "auto" and reason and on_tpu:
            _say_once(reason)
        plain = "broadcast" if on_tpu else "dot"
        return cls(
            fused=implementation == "pallas" or (implementation == "auto" and reason is None),
            inner="einsum" if implementation == "reference" else plain,
            outer="einsum" if on_tpu else "dot",
            interpret=kind == INTERPRETED,
        )


@functools.cache  # a model asks many times
def _say_once(reason: str) -> None:
    logging.warning("inner_implementation='auto' is 'xla' here: %s", reason)


def default_device_kind() -> str:
    """-> the kind of the device that jax computes on unless it is told otherwise, such as "TPU v5 lite" or "cpu"."""
    device = jax.config.jax_default_device
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    return device.device_kind


def obstacle(device_kind: str, sizes: Sizes, dtype: Any) -> str | None:
    """-> why the kernel cannot compute this inner block on this device; None if it can."""
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        return f"the kernel takes dtype bfloat16 or float32, not {jnp.dtype(dtype)}"
    try:
        sizes.check()
    except ValueError as error:
        return str(error)
    if device_kind == INTERPRETED:
        return None
    return sizes.does_not_fit(device_kind, jnp.dtype(dtype).itemsize)


def keep_products(primitive: Any, *arguments: Any, **settings: Any) -> bool:
    """A policy for jax.checkpoint: outputs of dense layers and of the kernel are kept, attention's scores are not."""
    if primitive.name == "pallas_call":
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **settings)
