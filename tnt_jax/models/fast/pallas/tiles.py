"""Building blocks of the kernels: a tile's two layouts, products, norms and GELU, in float32 between products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from tnt_jax.models.fast.gelu import twice_phi_less_one
from tnt_jax.models.fast.pallas.layout import BIAS_ROWS, LANES, PITCH, SUBLANES, TILE, Index, Sizes


def dot(left: jax.Array, right: jax.Array, contract: tuple[int, int] = (1, 0)) -> jax.Array:
    """left, right, contracted axes -> their product in float32; float32 operands are multiplied in full precision."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(left, right, dims, precision=exact, preferred_element_type=jnp.float32)


def spread(registers: jax.Ref, row: Index, values: jax.Array) -> None:
    """values [R, 1024] float32 -> registers ref, rows `row` .. `row` + R - 1."""
    for j in range(SUBLANES):
        part = values[:, j * LANES : (j + 1) * LANES]
        registers[pl.ds(row * PITCH + j, values.shape[0], stride=PITCH), :] = part


def gather(registers: jax.Ref, row: Index, height: int, lanes: tuple[int, int] = (0, SUBLANES)) -> jax.Array:
    """registers ref, rows `row` .. `row` + height - 1 -> [height, 1024] float32, or only some groups of 128 lanes."""
    parts = [registers[pl.ds(row * PITCH + j, height, stride=PITCH), :] for j in range(*lanes)]
    return jnp.concatenate(parts, axis=1)


def register_at(row: Index) -> tuple[pl.Slice, slice]:
    """Returns the index of register `row` in a registers ref."""
    return pl.ds(row * PITCH, SUBLANES), slice(None)


def load_registers(registers: jax.Ref, row: Index, height: int) -> jax.Array:
    """registers ref -> [height, 8, 128]."""
    return jnp.stack([registers[register_at(row + r)] for r in range(height)])


def store_registers(registers: jax.Ref, row: Index, values: jax.Array) -> None:
    """values [height, 8, 128] -> registers ref, from `row` on."""
    for r in range(values.shape[0]):
        registers[register_at(row + r)] = values[r]


def with_bias_rows(rows: jax.Array, dtype: DTypeLike) -> jax.Array:
    """rows [R, n] float32 -> [R + 8, n] in `dtype`, ones below: the operand of a product whose matrix holds a bias."""
    return jnp.concatenate([rows, jnp.ones((BIAS_ROWS, rows.shape[1]), jnp.float32)], axis=0).astype(dtype)


def normalise(values: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """values [C, 8, 128] -> (normalised over C without scale and bias, 1 / standard deviation [8, 128])."""
    centred = values - jnp.mean(values, axis=0, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=0) + epsilon)
    return centred * inverse, inverse


def normalise_in_place(registers: jax.Ref, inverses: jax.Ref | None, index: Index, sizes: Sizes) -> None:
    """Normalises word `index` of registers ref; writes 1 / standard deviation to inverses ref, if any."""
    channels = sizes.inner_dim
    values, inverse = normalise(load_registers(registers, index * channels, channels), sizes.epsilon)
    store_registers(registers, index * channels, values)
    if inverses is not None:
        inverses[register_at(index)] = inverse


def normalise_backward(gradient: jax.Ref, normalised: jax.Ref, inverses: jax.Ref, index: Index, sizes: Sizes) -> None:
    """In gradient ref, replaces the gradient of normalised word `index` by the gradient of the word."""
    channels = sizes.inner_dim
    cotangent = load_registers(gradient, index * channels, channels)
    values = load_registers(normalised, index * channels, channels)
    mean = jnp.mean(cotangent, axis=0, keepdims=True)
    slope = jnp.mean(cotangent * values, axis=0, keepdims=True)
    cotangent_in = (cotangent - mean - values * slope) * inverses[register_at(index)]
    store_registers(gradient, index * channels, cotangent_in)


def gelu_twice(values: jax.Array, dtype: DTypeLike) -> jax.Array:
    """2 x Phi(x); the factor 1/2 is folded into the next layer's weights."""
    return values * (1.0 + twice_phi_less_one(values, dtype))


def gelu_twice_and_slope(values: jax.Array, dtype: DTypeLike) -> tuple[jax.Array, jax.Array]:
    """(2 x Phi(x), its derivative 2 Phi(x) + 2 x phi(x))."""
    above = 1.0 + twice_phi_less_one(values, dtype)
    bell = jnp.exp2(values * values * -0.7213475204444817) * 0.7978845608028654
    return values * above, above + values * bell


def software_pipelined(count: int, *stages: Callable[[Index], None]) -> None:
    """Runs every stage(i) for i < `count`, in order for each i; neighbours share an iteration, so that units overlap.

    An iteration runs stage 1 for i + n - 1, stage 2 for i + n - 2, ... stage n for i, which are independent.
    """
    depth = len(stages) - 1

    def iteration(index):
        for late, stage in enumerate(stages):
            if not isinstance(index, int) or 0 <= index - late < count:
                stage(index - late)

    for index in range(depth):
        iteration(index)
    if count > depth:
        pl.loop(depth, count)(iteration)
    for index in range(max(count, depth), count + depth):
        iteration(index)


def mask_padding(sentences: int, *blocks: jax.Ref) -> None:
    """In the last tile, zeroes the lanes of each ref [..., 1024] beyond the L sentences: their content is undefined."""
    if sentences % TILE == 0:
        return

    @pl.when(pl.program_id(0) == pl.num_programs(0) - 1)
    def _():
        for block in blocks:
            lane = jax.lax.broadcasted_iota(jnp.int32, block.shape, len(block.shape) - 1)
            block[...] = jnp.where(lane < sentences % TILE, block[...], jnp.zeros(block.shape, block.dtype))


def whole(array: jax.Array | jax.ShapeDtypeStruct) -> pl.BlockSpec:
    """Returns the spec of a block that is a whole small array, the same in every grid step."""
    origin = (0,) * len(array.shape)
    return pl.BlockSpec(array.shape, lambda i: origin)
