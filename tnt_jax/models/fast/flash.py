"""Attention with kernels from jax and cuDNN: scores never leave the chip, forward or backward.

XLA writes scores, weights and their gradients, float32 [B, H, n, n], to memory and reads them back: at 577 sentences
this takes nearly all the time of an outer block. docs/tpu.md has estimates by size.
"""

import functools

import jax
import jax.numpy as jnp

from tnt_jax.models.fast.fused import INTERPRETER

_TILE = 128  # sentences: the lanes of a TPU's registers
_WHOLE = 768  # up to this many sentences form one block; float32 scores of more do not fit the vector memory ...
_BLOCK = 512  # ... and are computed in blocks of this many
_NVIDIA = ("NVIDIA", "TESLA", "GEFORCE", "QUADRO")  # prefixes of the device kinds
LEAST_TOKENS = 577  # (384 pixels) from here on an outer block is estimated to be faster with the TPU kernel


def obstacle(dtype: jnp.dtype, head_dim: int, device_kind: str) -> str | None:
    """Returns why neither kernel is possible, or None if one is."""
    if device_kind.startswith("TPU") or device_kind == INTERPRETER:
        return None
    if not device_kind.upper().startswith(_NVIDIA):
        return f"the kernels are for TPUs and NVIDIA GPUs, and the device is {device_kind}"
    return cudnn_obstacle(dtype, head_dim, device_kind)


def cudnn_obstacle(dtype: jnp.dtype, head_dim: int, device_kind: str) -> str | None:
    """Returns why cuDNN's kernel is not possible, or None if it is."""
    if not device_kind.upper().startswith(_NVIDIA):
        return f"cuDNN's kernel is for NVIDIA GPUs, and the device is {device_kind}"
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or head_dim > 128:
        return f"cuDNN's kernel takes bfloat16 in heads of at most 128, not {jnp.dtype(dtype)} of {head_dim}"
    return None


def splash_attention(query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool = False) -> jax.Array:
    """query, key, value [B, n, H, d] -> [B, n, H, d] on a TPU, by jax's splash attention.

    n is padded to whole tiles, and no sentence attends to the padding. The kernel takes operands as [B, H, d, n], with
    sentences on the lanes: heads of 64 would fill only half of them.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    count, heads = query.shape[-3:-1]
    block = -(-count // _TILE) * _TILE if count <= _WHOLE else _BLOCK
    length = -(-count // block) * block
    sizes = {f"block_{name}": block for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute")}
    layouts = dict.fromkeys(("q_layout", "k_layout", "v_layout"), splash.QKVLayout.SEQ_MINOR)
    kernel = splash.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((length, length))] * heads),
        block_sizes=splash.BlockSizes(**sizes, **layouts, use_fused_bwd_kernel=True),
        interpret=interpret,
    )
    padding = (jnp.arange(length) >= count).astype(jnp.int32)
    segments = splash.SegmentIds(q=jnp.zeros_like(padding), kv=padding)

    def padded(x: jax.Array) -> jax.Array:
        return jnp.pad(jnp.moveaxis(x, -3, -2), ((0, 0), (0, 0), (0, length - count), (0, 0)))

    query = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)  # exact for heads of 64
    mixed = jax.vmap(functools.partial(kernel, segment_ids=segments))(*map(padded, (query, key, value)))
    return jnp.moveaxis(mixed[:, :, :count], -2, -3)


def cudnn_attention(query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "cudnn") -> jax.Array:
    """query, key, value [n, H, d] or [B, n, H, d] in 16 bits -> the same shape, on an NVIDIA GPU, by cuDNN.

    cuDNN needs heads with a multiple of 8 channels: others are padded with zeros, which change no score.
    `implementation` is jax.nn.dot_product_attention's: "xla" computes the same on any device, for tests.
    """
    channels = query.shape[-1]
    padding = [(0, 0)] * (query.ndim - 1) + [(0, -channels % 8)]
    query, key, value = (jnp.pad(x, padding) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(query, key, value, scale=channels**-0.5, implementation=implementation)
    return mixed[..., :channels]
