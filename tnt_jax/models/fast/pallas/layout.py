"""Array layouts of the fused inner block on a TPU, and its weight matrices in these layouts.

Outside the kernels words are [M * C, L]: the L sentences lie on the 128 lanes, so nothing is padded. A tile is 1,024
sentences. Inside a kernel an array has one of two layouts:

- rows [R, 1024]: channels on the sublanes. Dense layers are W^T [out, in] times rows, on the matrix unit.
- registers [9 * R, 128]: row r of the first layout as one full register [8, 128] (rows 9 r .. 9 r + 7 of the scratch
  array, see PITCH), eight groups of 128 sentences below each other. Attention, softmax and norms are then register
  arithmetic between whole channels, without a broadcast or a sum across sublanes.

Strided loads and stores convert between the two layouts (`tiles.spread`, `tiles.gather`).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

LANES = 128
SUBLANES = 8
TILE = LANES * SUBLANES  # sentences in a tile
BIAS_ROWS = SUBLANES  # constant rows below a product's inputs: the first carries the bias, the others fill the register
PITCH = 9  # rows from one register to the next in scratch: with 8, a strided access hits one memory bank eight times
SPILLS = 8 << 20  # bytes of vector memory left to the compiler, for the matrices and register spills
LOG2_E = 1.4426950408889634
Index = int | jax.Array  # of a word, a group of words or a step; traced in a loop
# Bytes of a core's vector memory that a program may use, nine tenths of it, by jax's device kind.
VECTOR_MEMORY = {
    kind: int(0.9 * mebibytes * 2**20)
    for kinds, mebibytes in ((("TPU v5 lite", "TPU v5e", "TPU v6 lite", "TPU v6e"), 128), (("TPU v5", "TPU v5p"), 64))
    for kind in kinds
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Static sizes of one inner block; hashable, so that custom_vjp can carry it."""

    num_words: int  # M
    inner_dim: int  # C
    num_heads: int
    hidden_dim: int  # r * C
    epsilon: float  # of both layer norms
    interpret: bool  # run the kernels' Python on any platform, for tests

    @property
    def head_dim(self) -> int:
        """Channels per head."""
        return self.inner_dim // self.num_heads

    @property
    def rows(self) -> int:
        """Rows M * C of words [M * C, L]."""
        return self.num_words * self.inner_dim

    @property
    def unit(self) -> int:
        """Words that go through a dense layer together: the fewest whose channels fill whole float32 registers."""
        return SUBLANES // math.gcd(SUBLANES, self.inner_dim)

    @property
    def group(self) -> int:
        """Words read or written together: the fewest units whose channels fill whole bfloat16 registers."""
        return 2 * SUBLANES // math.gcd(2 * SUBLANES, self.inner_dim)

    def check(self) -> None:
        """Raises ValueError for sizes that the kernels do not support."""
        if self.inner_dim % self.num_heads:
            raise ValueError(
                f"inner_dim={self.inner_dim} is not a multiple of inner_num_heads={self.num_heads}; "
                "choose a number of heads that divides it"
            )
        if self.num_words % self.group:
            raise ValueError(
                f"the Pallas inner block takes words in groups of {self.group} at inner_dim={self.inner_dim}, "
                f"and a sentence has {self.num_words}; the xla implementation takes any number"
            )
        if self.unit * self.hidden_dim % (2 * SUBLANES):
            raise ValueError(
                f"the Pallas inner block needs hidden channels (inner_dim times mlp_ratio) in multiples of "
                f"{2 * SUBLANES // self.unit}, not {self.hidden_dim}; the xla implementation takes any number"
            )

    def vector_memory(self, item: int) -> int:
        """Bytes of vector memory for the backward kernel, the larger one, with words of `item` bytes per number."""
        row, scores = TILE * 4 * PITCH // SUBLANES, self.num_words * self.num_heads
        operand = self.num_words // self.unit * (self.unit * self.inner_dim + BIAS_ROWS) * TILE * item
        scratch = (9 * self.rows + 2 * self.num_words) * row + self.rows * TILE * 4 + operand
        blocks = 2 * (4 * self.rows * TILE * item + scores * TILE * 4)  # double-buffered
        return scratch + blocks + SPILLS

    def does_not_fit(self, device_kind: str, item: int) -> str | None:
        """Returns why a device of this kind cannot run the kernels, or None if it can."""
        if not device_kind.startswith("TPU"):
            return f"the kernel is for TPUs, and the device is {device_kind}"
        if device_kind not in VECTOR_MEMORY:
            return f"the kernel needs the vector memory of a TPU v5e, v5p or v6e, and the device is {device_kind}"
        needed, there = self.vector_memory(item), VECTOR_MEMORY[device_kind]
        if needed > there:
            return (
                f"the kernel needs {needed / 2**20:.0f} MiB of vector memory for {self.num_words} words of "
                f"{self.inner_dim} channels, and {device_kind} gives {there / 2**20:.0f}"
            )
        return None


def block_diagonal(weight: jax.Array, unit: int, dtype, bias: jax.Array | None = None) -> jax.Array:
    """weight [K, R] -> [unit * R, unit * K], one block per word; with bias [R] -> [unit * R, unit * K + 8]."""
    matrix = jnp.kron(jnp.eye(unit, dtype=weight.dtype), weight.T) if unit > 1 else weight.T
    if bias is not None:
        column = jnp.tile(bias, unit)[:, None]
        matrix = jnp.concatenate([matrix, column, jnp.zeros((matrix.shape[0], BIAS_ROWS - 1), matrix.dtype)], axis=1)
    return matrix.astype(dtype)


def block_diagonal_gradient(matrix: jax.Array, unit: int, inputs: int, outputs: int) -> jax.Array:
    """Transpose of `block_diagonal` without bias: matrix [>= unit * K, unit * R] -> [K, R], the sum of its blocks."""
    blocks = matrix[: unit * inputs].reshape(unit, inputs, unit, outputs)
    return jnp.einsum("akar->kr", blocks) if unit > 1 else blocks[0, :, 0]


def bias_gradient(matrix: jax.Array, unit: int, inputs: int, outputs: int) -> jax.Array:
    """Transpose of `block_diagonal` for the bias: matrix [unit * K + 8, unit * R] -> [R]."""
    return matrix[unit * inputs].reshape(unit, outputs).sum(axis=0)
