"""Cutting images into patches, and the convolution that turns patches into words."""

import jax

KERNEL_SIZE = 7  # of the convolution from pixels to words
PADDING = 3


def grid_of(image_size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(H, W) in pixels -> (rows, columns) of patches.

    Raises:
      ValueError: a side is not a multiple of the patch size.
    """
    for side in image_size:
        if side % patch_size or side < patch_size:
            low = max(side // patch_size, 1) * patch_size
            fix = f"{low}" if low > side else f"{low} or {low + patch_size}"
            raise ValueError(f"image_size={side} is not a multiple of patch_size={patch_size}; use {fix}")
    return image_size[0] // patch_size, image_size[1] // patch_size


def cut_into_cells(images: jax.Array, patch_size: int, word_size: int) -> jax.Array:
    """images [B, H, W, F] -> cells [B, gh, gw, h, w, s * s * F]: gh x gw patches of h x w cells of s x s pixels."""
    batch, height, width, channels = images.shape
    grid, words = (height // patch_size, width // patch_size), patch_size // word_size
    cells = images.reshape(batch, grid[0], words, word_size, grid[1], words, word_size, channels)
    return cells.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *grid, words, words, word_size**2 * channels)


def convolve_patches(images: jax.Array, kernel: jax.Array, patch_size: int, word_size: int) -> jax.Array:
    """images [B, H, W, F], kernel [7, 7, F, C] -> [B * N, M, C]: a convolution of each patch on its own.

    Words and sentences are in row-major order. Each patch is padded with zeros, so its words see no other patch.
    """
    channels, features = kernel.shape[-2:]
    patches = cut_into_cells(images, patch_size, patch_size).reshape(-1, patch_size, patch_size, channels)
    return convolve(patches, kernel, word_size).reshape(patches.shape[0], -1, features)


def convolve(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """images [n, h, w, F], kernel [7, 7, F, C] -> [n, h / stride, w / stride, C]."""
    padding = ((PADDING, PADDING), (PADDING, PADDING))
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (stride, stride), padding, dimension_numbers=layout)
