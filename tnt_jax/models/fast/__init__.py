"""Fast ways to compute a TNT, by device: the same function of the same parameters as models/tnt.py.

models/tnt.py does not depend on this package. Two rules: the definition always creates the parameters, and every
implementation knows their exact names and shapes and rejects others. `pytest tests/models -k implementations` checks
every implementation against the definition.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from tnt_jax.models.checks import IMPLEMENTATIONS, OUTER_IMPLEMENTATIONS, REMAT_POLICIES
from tnt_jax.models.config import Config
from tnt_jax.models.fast import flash, fused, scan, stem
from tnt_jax.models.fast.attention import broadcast_attention, dot_attention, einsum_attention
from tnt_jax.models.fast.dense import (
    FlatDense,
    MappedDense,
    RecomputedLayerNorm,
    feature_major_dense,
    feature_major_norm,
)
from tnt_jax.models.fast.gelu import gelu
from tnt_jax.models.layers import Layers, Ops
from tnt_jax.models.tnt import TNT


class Choice(NamedTuple):
    """A model's ops, and why they do not use the kernel (None if they do)."""

    ops: Ops
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Backend:
    """TNT.ops: chooses how to compute a model, when it is traced.

    Raises:
      ValueError: an unknown implementation or policy; when called, a requested kernel that is not possible.
    """

    implementation: str = "auto"  # of the inner blocks, one of IMPLEMENTATIONS; see `choose`
    outer: str = "auto"  # implementation of the outer attention, one of OUTER_IMPLEMENTATIONS; see `choose_outer`
    device_kind: str | None = None  # to compile for, by jax's name; None: the default device
    scan: bool = False  # compile identical blocks once, in a loop; parameters may be stacked (stacking.py)
    remat: bool = False  # recompute a block's activations in the backward pass
    remat_policy: str = "nothing_saveable"  # what to save: only a block's inputs, or its dense layers' outputs too

    def __post_init__(self) -> None:
        """Checks the names."""
        if self.implementation not in IMPLEMENTATIONS:
            names = ", ".join(IMPLEMENTATIONS)
            raise ValueError(f"inner_implementation={self.implementation!r} is not known; use one of {names}")
        if self.outer not in OUTER_IMPLEMENTATIONS:
            names = ", ".join(OUTER_IMPLEMENTATIONS)
            raise ValueError(f"outer_implementation={self.outer!r} is not known; use one of {names}")
        if self.remat_policy not in REMAT_POLICIES:
            names = " or ".join(REMAT_POLICIES)
            raise ValueError(f"remat_policy={self.remat_policy!r} is not known; use {names}")

    def __call__(self, config: Config) -> Ops:
        """A model's config -> its ops."""
        ops, reason = choose(config, self.implementation, self.device_kind)
        if self.implementation != "reference" or self.outer == "flash":
            ops = choose_outer(config, ops, self.outer, self.device_kind)
        if not self.scan and not self.remat:
            return ops
        policy = scan.POLICIES[self.remat_policy] if self.remat else None
        run = functools.partial(scan.run_blocks, scan=self.scan, policy=policy, feature_major=reason is None)
        return dataclasses.replace(ops, run_blocks=run)


def choose(config: Config, implementation: str = "auto", device_kind: str | None = None) -> Choice:
    """A model's config, an implementation, a device kind -> its ops, and why they do not use the kernel.

    "reference" is the definition; "xla" uses the operations that suit the device; "pallas" also computes the inner
    blocks by one TPU kernel; "auto" is "pallas" where possible, else "xla", which it logs once on a TPU. "dot" and
    "broadcast" are the inner attentions of "xla" on CPUs and TPUs; "cudnn" is an NVIDIA GPU kernel in their place. The
    best for GPUs has not been measured; "xla" uses "dot" there as a guess.

    Args:
      device_kind: jax's name ("TPU v5 lite", "cpu"); None means the default device; "interpreter" runs the kernel on
        any device, slowly, for tests.

    Raises:
      ValueError: the implementation is not possible; the message has the reason.
    """
    kind = device_kind or default_device_kind()
    on_tpu = kind.startswith("TPU") or kind == fused.INTERPRETER
    if implementation == "reference":
        return Choice(Ops.definition(config), "inner_implementation='reference' is the definition")
    ops = tpu_ops(config) if on_tpu else cpu_ops(config)
    head_dim = config.inner_dim // config.inner_num_heads
    if implementation == "cudnn" and (reason := flash.cudnn_obstacle(config.dtype, head_dim, kind)):
        raise ValueError(f"inner_implementation='cudnn' is not possible: {reason}; use 'auto' or 'xla'")
    if implementation in INNER_ATTENTION:
        ops = dataclasses.replace(ops, inner=dataclasses.replace(ops.inner, attend=INNER_ATTENTION[implementation]))
    if difference := _different_layers(config, ops):
        if implementation != "auto":
            raise ValueError(f"inner_implementation={implementation!r} is not possible: {difference}; use 'reference'")
        fused.log_once(f"inner_implementation='auto' is 'reference' here: {difference}")
        return Choice(Ops.definition(config), difference)
    if implementation in ("xla", *INNER_ATTENTION):
        return Choice(ops, f"inner_implementation={implementation!r}")
    if not config.inner_blocks:
        return Choice(ops, "there is no inner block")
    reason = fused.obstacle(config, kind)
    if reason is None:
        return Choice(kernel_ops(config, kind == fused.INTERPRETER, strict=implementation == "pallas"), None)
    if implementation == "pallas":
        raise ValueError(f"inner_implementation='pallas' is not possible: {reason}; use 'auto' or 'xla'")
    if on_tpu:
        fused.log_once(f"inner_implementation='auto' is 'xla' here: {reason}")
    return Choice(ops, reason)


def choose_outer(config: Config, ops: Ops, implementation: str = "auto", device_kind: str | None = None) -> Ops:
    """A model's config, its ops, an implementation of the outer attention -> the ops with that attention.

    "xla" keeps the attention of the ops; "flash" is a kernel that keeps the scores on the chip (flash.py); "auto" is
    "flash" on TPUs from flash.LEAST_TOKENS tokens, else "xla". Attention maps always come from the definition.

    Raises:
      ValueError: "flash" is not possible; the message has the reason.
    """
    kind = device_kind or default_device_kind()
    on_tpu, tokens = kind.startswith("TPU"), 1 + config.grid[0] * config.grid[1]
    if implementation == "xla" or implementation == "auto" and not (on_tpu and tokens >= flash.LEAST_TOKENS):
        return ops
    if reason := flash.obstacle(config.dtype, config.outer_dim // config.outer_num_heads, kind):
        raise ValueError(f"outer_implementation='flash' is not possible: {reason}; use 'auto' or 'xla'")
    interpreted = functools.partial(flash.splash_attention, interpret=kind == fused.INTERPRETER)
    attend = interpreted if on_tpu or kind == fused.INTERPRETER else flash.cudnn_attention
    return dataclasses.replace(ops, outer=dataclasses.replace(ops.outer, attend=attend))


def cpu_ops(config: Config) -> Ops:
    """The fastest ops on CPUs; also for GPUs until one is measured."""
    layers = _layers(config)
    return Ops(
        inner=dataclasses.replace(layers, dense_layer=MappedDense, attend=dot_attention),
        projection=layers,
        outer=dataclasses.replace(layers, dense_layer=FlatDense, attend=dot_attention),
        convolve_patches=stem.convolve_patches,
    )


def tpu_ops(config: Config) -> Ops:
    """The fastest ops on TPUs without a kernel."""
    layers = _layers(config)
    return Ops(
        inner=dataclasses.replace(layers, attend=broadcast_attention),
        projection=layers,
        outer=dataclasses.replace(layers, attend=einsum_attention),
        convolve_patches=stem.convolve_patches,
    )


# inner_implementation -> the inner attention that it names
INNER_ATTENTION = {"dot": dot_attention, "broadcast": broadcast_attention, "cudnn": flash.cudnn_attention}


def kernel_ops(config: Config, interpret: bool = False, strict: bool = True) -> Ops:
    """`tpu_ops` with one kernel for the inner block, and projections that read words in the kernel's layout.

    strict: raise ValueError for inner blocks of another class than InnerBlock, instead of computing without the kernel.
    """
    ops = tpu_ops(config)
    ops = dataclasses.replace(ops, over_sentences=fused.over_sentences(interpret, strict))
    if config.legacy:  # its norm is over each word
        return ops
    layers = dataclasses.replace(ops.outer, norm_layer=feature_major_norm, dense_layer=feature_major_dense)
    return dataclasses.replace(ops, projection=layers)


def _layers(config: Config) -> Layers:
    """In bfloat16 norms are recomputed in the backward pass: saved float32 values would double the memory."""
    recomputed = {"norm_layer": RecomputedLayerNorm} if jnp.dtype(config.dtype) == jnp.bfloat16 else {}
    return Layers.of(config, gelu=gelu, **recomputed)


def _different_layers(config: Config, ops: Ops) -> str | None:
    """Returns how the parameters of a fast layer differ from the definition's, or None."""
    definition = Ops.definition(config)
    for group in ("inner", "projection", "outer"):
        for name, arguments in (("dense", ("dense", 4)), ("norm", ("norm",))):
            layers = [functools.partial(getattr(getattr(each, group), name), *arguments) for each in (definition, ops)]
            defined, computed = map(_parameters, layers)
            if defined != computed:
                return (
                    f"a {name} layer has the parameters {defined}, and its fast implementation computes with {computed}"
                )
    return None


class _Layer(nn.Module):
    """A module with a single layer."""

    make: Callable[[], Callable[[jax.Array], jax.Array]]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [n, F] -> the layer's output."""
        return self.make()(x)


def _parameters(make: Callable[[], Callable[[jax.Array], jax.Array]]) -> dict[str, tuple[int, ...]]:
    """A function that makes a layer -> names and shapes of the layer's parameters for x [2, 3]."""
    tree = jax.eval_shape(_Layer(make).init, jax.random.key(0), jnp.zeros((2, 3)))["params"]
    return {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def default_device_kind() -> str:
    """Returns the kind of jax's default device, such as "TPU v5 lite" or "cpu"."""
    device = jax.config.jax_default_device
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    return device.device_kind


def replace(model: TNT, **changes: object) -> TNT:
    """Returns the model with attributes of its Backend changed.

    Raises:
      ValueError: the named device cannot run the requested kernel; the message has the reason.
    """
    backend = model.ops if isinstance(model.ops, Backend) else Backend("reference")
    backend = dataclasses.replace(backend, **changes)
    if backend.device_kind is not None:
        ops = choose(model.config, backend.implementation, backend.device_kind).ops
        choose_outer(model.config, ops, backend.outer, backend.device_kind)
    return model.clone(ops=backend)
