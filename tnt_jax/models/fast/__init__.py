"""How a device computes a TNT fast: the same function of the same parameters as models/tnt.py, which knows none of it.

Two rules. Parameters are always made by the definition. What computes with them knows their exact names and shapes, and
refuses others. `pytest tests/models -k implementations` holds every implementation to the definition.
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
    """How a model is computed, and why the kernel is not part of it (None where it is)."""

    ops: Ops
    reason: str | None


@dataclasses.dataclass(frozen=True)
class Backend:
    """TNT.ops: how to compute a model, decided when it is traced.

    Raises:
      ValueError: an unknown implementation or policy. When called: the kernel is asked for and cannot be had.
    """

    implementation: str = "auto"  # of the inner blocks, one of IMPLEMENTATIONS; see `choose`
    outer: str = "auto"  # implementation of the outer attention, one of OUTER_IMPLEMENTATIONS; see `choose_outer`
    device_kind: str | None = None  # that the model is compiled for, as jax names it; None: the default device
    scan: bool = False  # like blocks are compiled once, in a loop; their parameters may come stacked (stacking.py)
    remat: bool = False  # activations of a block are computed again in the backward pass
    remat_policy: str = "nothing_saveable"  # what is not: a block's inputs alone, or its dense layers' outputs too

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
    """A model's config, an implementation and a kind of device -> its ops and why they are without the kernel.

    "reference" is the definition, "xla" the same by operations that suit the device, "pallas" that with the inner
    blocks as one TPU kernel, "auto" the kernel where it can be had, else xla. On a TPU the log says once where auto
    does without. "dot" and "broadcast" are the two inner attentions of xla, a CPU's and a TPU's; "cudnn" is an NVIDIA
    GPU's kernel in their place. Which is a GPU's best is not yet measured, and "xla" takes "dot" there by a guess.

    Args:
      device_kind: as jax names it ("TPU v5 lite", "cpu"); None: the default device; "interpreter" runs the kernel on
        any device, slowly, for tests.

    Raises:
      ValueError: "pallas" or "cudnn" is not possible, with the reason.
    """
    kind = device_kind or default_device_kind()
    on_tpu = kind.startswith("TPU") or kind == fused.INTERPRETER
    if implementation == "reference":
        return Choice(Ops.definition(config), "inner_implementation='reference' is the definition")
    ops = tpu_ops(config) if on_tpu else cpu_ops(config)
    head_dim = config.inner_dim // config.inner_num_heads
    if implementation == "cudnn" and (reason := flash.cudnn_obstacle(config.dtype, head_dim, kind)):
        raise ValueError(f"inner_implementation='cudnn' is not possible: {reason}; use 'auto' or 'xla'")
    if implementation in NAMED_OPS:
        ops = dataclasses.replace(ops, inner=NAMED_OPS[implementation](config).inner)
    if difference := _different_layers(config, ops):
        if implementation != "auto":
            raise ValueError(f"inner_implementation={implementation!r} is not possible: {difference}; use 'reference'")
        fused.log_once(f"inner_implementation='auto' is 'reference' here: {difference}")
        return Choice(Ops.definition(config), difference)
    if implementation in ("xla", *NAMED_OPS):
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
    """A model's config, its ops, and an implementation of the outer attention -> the ops with that one.

    "xla" is attention as the ops have it, "flash" a kernel that keeps the scores on the chip (flash.py), "auto" that
    kernel on a TPU from flash.LEAST_TOKENS tokens on. Attention maps always come from the definition.

    Raises:
      ValueError: "flash" is not possible, with the reason.
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
    """What a CPU computes fastest; a GPU's until one has been measured."""
    layers = _layers(config)
    return Ops(
        inner=dataclasses.replace(layers, dense_layer=MappedDense, attend=dot_attention),
        projection=layers,
        outer=dataclasses.replace(layers, dense_layer=FlatDense, attend=dot_attention),
        convolve_patches=stem.convolve_patches,
    )


def tpu_ops(config: Config) -> Ops:
    """What a TPU computes fastest without a kernel."""
    layers = _layers(config)
    return Ops(
        inner=dataclasses.replace(layers, attend=broadcast_attention),
        projection=layers,
        outer=dataclasses.replace(layers, attend=einsum_attention),
        convolve_patches=stem.convolve_patches,
    )


def cudnn_ops(config: Config) -> Ops:
    """`cpu_ops` with the words' attention by cuDNN, on an NVIDIA GPU."""
    ops = cpu_ops(config)
    return dataclasses.replace(ops, inner=dataclasses.replace(ops.inner, attend=flash.cudnn_attention))


# inner_implementation -> the ops that it names
NAMED_OPS = {"dot": cpu_ops, "broadcast": tpu_ops, "cudnn": cudnn_ops}


def kernel_ops(config: Config, interpret: bool = False, strict: bool = True) -> Ops:
    """`tpu_ops` with the inner blocks as one kernel, and projections that read words as it leaves them.

    strict: another class than InnerBlock is a ValueError; else it is computed without the kernel.
    """
    ops = tpu_ops(config)
    ops = dataclasses.replace(ops, over_sentences=fused.over_sentences(interpret, strict))
    if config.legacy:  # norms of single words
        return ops
    layers = dataclasses.replace(ops.outer, norm_layer=feature_major_norm, dense_layer=feature_major_dense)
    return dataclasses.replace(ops, projection=layers)


def _layers(config: Config) -> Layers:
    """In bfloat16 the backward pass of a norm starts from its inputs: kept float32 numbers would double the memory."""
    recomputed = {"norm_layer": RecomputedLayerNorm} if jnp.dtype(config.dtype) == jnp.bfloat16 else {}
    return Layers.of(config, gelu=gelu, **recomputed)


def _different_layers(config: Config, ops: Ops) -> str | None:
    """-> how the parameters of a fast layer differ from those of its definition; None: not at all."""
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
    """A layer on its own."""

    make: Callable[[], Callable[[jax.Array], jax.Array]]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [n, F] -> what the layer makes of it."""
        return self.make()(x)


def _parameters(make: Callable[[], Callable[[jax.Array], jax.Array]]) -> dict[str, tuple[int, ...]]:
    """A function that makes a layer -> names and shapes of its parameters, on x [2, 3]."""
    tree = jax.eval_shape(_Layer(make).init, jax.random.key(0), jnp.zeros((2, 3)))["params"]
    return {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items()}


def default_device_kind() -> str:
    """-> the kind of the device that jax computes on unless it is told otherwise, such as "TPU v5 lite" or "cpu"."""
    device = jax.config.jax_default_device
    if device is None or isinstance(device, str):
        device = jax.devices(device)[0]
    return device.device_kind


def replace(model: TNT, **changes: object) -> TNT:
    """A model and attributes of its Backend to change -> the model, computed in another way.

    Raises:
      ValueError: the kernel is asked of a named device that cannot have it, with the reason.
    """
    backend = model.ops if isinstance(model.ops, Backend) else Backend("reference")
    backend = dataclasses.replace(backend, **changes)
    if backend.device_kind is not None:
        ops = choose(model.config, backend.implementation, backend.device_kind).ops
        choose_outer(model.config, ops, backend.outer, backend.device_kind)
    return model.clone(ops=backend)
