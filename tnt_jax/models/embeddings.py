"""From pixels to words and sentences: the two stems, and the position encodings at any image size."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.models.layers import dense, layer_norm

KERNEL_SIZE = 7  # of the convolution that makes words
PADDING = 3


def uniform_fan_in_init(fan_in: int) -> nn.initializers.Initializer:
    """-> initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for a convolution's weights and bias."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def cut_into_cells(images: jax.Array, patch_size: int, word_size: int) -> jax.Array:
    """images [B, H, W, 3] -> cells [B, gh, gw, h, w, s * s * 3]: gh x gw patches of h x w cells of s x s pixels."""
    batch, height, width, channels = images.shape
    grid, words = (height // patch_size, width // patch_size), patch_size // word_size
    cells = images.reshape(batch, grid[0], words, word_size, grid[1], words, word_size, channels)
    return cells.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *grid, words, words, word_size**2 * channels)


def convolution_as_matrix(kernel: jax.Array, patch_size: int, word_size: int) -> jax.Array:
    """kernel [7, 7, 3, C] -> matrix [p * p * 3, M * C] from the pixels of a patch to all of its words.

    The word in row i of a patch takes pixel row y by the kernel's row y - s * i + 3, where it has one; columns alike.
    So the convolution inside a patch is one product with a matrix of shifted kernels, most of it zeros. It multiplies
    five times as often as the convolution, 1% of TNT-S, in a product of a good shape, and nothing is gathered: half
    the time of a product of gathered cells on a CPU, and on a TPU no copies into and out of small cells.
    """
    count = patch_size // word_size
    for pixel_axis in (0, 2):  # [7, ...] -> [words, pixels, ...], rows and then columns
        padding = [(0, 0)] * kernel.ndim
        padding[pixel_axis] = (patch_size, patch_size)
        padded = jnp.pad(kernel, padding)
        starts = [patch_size + PADDING - word_size * index for index in range(count)]
        shifted = [jax.lax.slice_in_dim(padded, start, start + patch_size, axis=pixel_axis) for start in starts]
        kernel = jnp.stack(shifted, axis=pixel_axis)
    _, channels, features = kernel.shape[-3:]
    return kernel.transpose(1, 3, 4, 0, 2, 5).reshape(patch_size**2 * channels, count**2 * features)


class WordEmbedding(nn.Module):
    """images [B, H, W, 3] -> words [B * N, M, C]: a 7 x 7 convolution inside each patch on its own (eq. 1 and 5).

    Zeros surround every patch, so no pixel of one sentence reaches another one's words. With `legacy` the convolution
    runs over the whole image before it is cut, as in the older published weights.
    """

    features: int
    patch_size: int
    word_size: int
    legacy: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images [B, H, W, 3] -> words [B * N, M, C]; words and sentences in row-major order."""
        channels = images.shape[-1]
        init = uniform_fan_in_init(KERNEL_SIZE**2 * channels)
        kernel = self.param("kernel", init, (KERNEL_SIZE, KERNEL_SIZE, channels, self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        images, kernel, bias = (x.astype(self.dtype) for x in (images, kernel, bias))
        if self.legacy:
            words = jax.lax.conv_general_dilated(
                images,
                kernel,
                window_strides=(self.word_size, self.word_size),
                padding=((PADDING, PADDING), (PADDING, PADDING)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            words = cut_into_cells(words, self.patch_size // self.word_size, 1)  # a cell is now one word
        else:
            matrix = convolution_as_matrix(kernel, self.patch_size, self.word_size)
            words = cut_into_cells(images, self.patch_size, self.patch_size) @ matrix
        return words.reshape(-1, (self.patch_size // self.word_size) ** 2, self.features) + bias


class SentenceEmbedding(nn.Module):
    """words [B * N, M, C] -> sentences [B, N, D]: norm, dense with a bias, norm (the published form of Z_0)."""

    features: int
    epsilon: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, words: jax.Array, batch: int) -> jax.Array:
        """words [B * N, M, C], B -> sentences [B, N, D]."""
        sentences = words.reshape(batch, words.shape[0] // batch, -1)
        sentences = layer_norm("norm1", self.epsilon, self.dtype)(sentences)
        sentences = dense("dense", self.features, self.dtype)(sentences)
        return layer_norm("norm2", self.epsilon, self.dtype)(sentences)


class PatchEmbedding(nn.Module):
    """images [B, H, W, 3] -> sentences [B, N, D]: one dense layer on the pixels of each patch (DeiT's stem)."""

    features: int
    patch_size: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images [B, H, W, 3] -> sentences [B, N, D]."""
        side, channels = self.patch_size, images.shape[-1]
        init = uniform_fan_in_init(side**2 * channels)
        kernel = self.param("kernel", init, (side, side, channels, self.features), jnp.float32)
        bias = self.param("bias", init, (self.features,), jnp.float32)
        patches = cut_into_cells(images.astype(self.dtype), side, side)
        patches = patches.reshape(images.shape[0], -1, side**2 * channels)
        return patches @ kernel.reshape(-1, self.features).astype(self.dtype) + bias.astype(self.dtype)


def grid_of(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(H, W) in pixels -> (rows, columns) of patches.

    Raises:
      ValueError: a side is not a multiple of the patch size.
    """
    for side in image_size:
        if side % patch_size or side < patch_size:
            low = max(side // patch_size, 1) * patch_size
            mend = f"{low}" if low > side else f"{low} or {low + patch_size}"
            raise ValueError(f"image_size={side} is not a multiple of patch_size={patch_size}; use {mend}")
    return image_size[0] // patch_size, image_size[1] // patch_size


def num_sentences(image_size: tuple[int, int], patch_size: int) -> int:
    """(H, W) in pixels -> N, the number of patches."""
    return int(np.prod(grid_of(image_size, patch_size)))
