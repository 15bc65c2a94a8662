"""The stems, which turn pixels into words and sentences, and fixed position encodings for any image size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.models.config import Config
from tnt_jax.models.initialization import stem_init, uniform_fan_in_init
from tnt_jax.models.layers import Ops
from tnt_jax.models.patches import KERNEL_SIZE, convolve, cut_into_cells, grid_of


class WordEmbedding(nn.Module):
    """images [B, H, W, F] -> words [B * N, M, C]: a 7 x 7 convolution of each patch on its own (eq. 5).

    With `legacy` the whole image is convolved before it is cut into patches, as in the older published weights.
    """

    config: Config
    ops: Ops

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images [B, H, W, F] -> words [B * N, M, C]; words and sentences in row-major order."""
        config, channels = self.config, images.shape[-1]
        fan_in = KERNEL_SIZE**2 * channels
        shape = KERNEL_SIZE, KERNEL_SIZE, channels, config.inner_dim
        kernel = self.param("kernel", stem_init(config.initialization, fan_in), shape, jnp.float32)
        bias = self.param("bias", uniform_fan_in_init(fan_in), (config.inner_dim,), jnp.float32)
        images, kernel, bias = (x.astype(config.dtype) for x in (images, kernel, bias))
        if config.legacy:
            words = convolve(images, kernel, config.word_size)
            words = cut_into_cells(words, config.patch_size // config.word_size, 1)  # a cell is now one word
        else:
            words = self.ops.convolve_patches(images, kernel, config.patch_size, config.word_size)
        return words.reshape(-1, config.num_words, config.inner_dim) + bias


class SentenceEmbedding(nn.Module):
    """words [B * N, M, C] -> sentences [B, N, D]: norm, dense with a bias, norm (the published form of Z_0)."""

    config: Config
    ops: Ops

    @nn.compact
    def __call__(self, words: jax.Array, batch: int) -> jax.Array:
        """words [B * N, M, C], B -> sentences [B, N, D]."""
        layers = self.ops.outer
        sentences = layers.norm("norm1")(words.reshape(batch, words.shape[0] // batch, -1))
        return layers.norm("norm2")(layers.dense("dense", self.config.outer_dim)(sentences))


class PatchEmbedding(nn.Module):
    """images [B, H, W, F] -> sentences [B, N, D]: one dense layer on the pixels of each patch (DeiT's stem)."""

    config: Config

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """images [B, H, W, F] -> sentences [B, N, D]."""
        side, channels, features = self.config.patch_size, images.shape[-1], self.config.outer_dim
        fan_in, shape = side**2 * channels, (side, side, channels, features)
        kernel = self.param("kernel", stem_init(self.config.initialization, fan_in), shape, jnp.float32)
        bias = self.param("bias", uniform_fan_in_init(fan_in), (features,), jnp.float32)
        images, kernel, bias = (x.astype(self.config.dtype) for x in (images, kernel, bias))
        patches = cut_into_cells(images, side, side).reshape(images.shape[0], -1, side**2 * channels)
        return patches @ kernel.reshape(-1, features) + bias


def sincos_positions(grid: tuple[int, int], width: int) -> jax.Array:
    """(rows, columns) of sentences, D -> fixed encodings [1 + N, D] float32, zero for the class token.

    The quarters of an encoding are the sine and cosine of the sentence's column, then of its row, at D / 4 frequencies
    from 1 down to 1 / 10,000 (as in big_vision; Beyer et al. 2022, arXiv 2205.01580).
    """
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    rows, columns = (axis.reshape(-1, 1) * frequencies for axis in np.mgrid[: grid[0], : grid[1]])
    encodings = np.concatenate([np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)], axis=1)
    return jnp.asarray(np.pad(encodings, ((1, 0), (0, 0))), jnp.float32)


def num_sentences(image_size: tuple[int, int], patch_size: int) -> int:
    """(H, W) in pixels -> N, the number of patches."""
    return int(np.prod(grid_of(image_size, patch_size)))
