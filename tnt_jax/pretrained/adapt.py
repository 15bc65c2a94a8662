"""Adapts a source's arrays to a model with another image size or number of channels than in training."""

import math

import numpy as np
from absl import logging

from tnt_jax.models.resize import resize_sentence_positions
from tnt_jax.pretrained.names import Entry, from_file, to_file
from tnt_jax.pretrained.sources import Weights

COLOURS = 3  # channels of published stems
STEMS = (("word_embedding", "kernel"), ("patch_embedding", "kernel"))


def without_outer_tokens(weights: Weights) -> dict[str, np.ndarray]:
    """Removes the official files' `outer_tokens` [1, N, D], which are frozen at zero and never used.

    Raises:
      ValueError: they are not zero, so the file is not from the published code.
    """
    arrays = dict(weights.arrays)
    tokens = arrays.pop("outer_tokens", None)
    if tokens is not None and np.any(tokens):
        raise ValueError(
            f"{weights.source}: outer_tokens should be zero (the published code never uses them) but reach "
            f"{np.abs(tokens).max():.3g}; these weights belong to another model"
        )
    return arrays


def resize_positions(
    arrays: dict[str, np.ndarray], entries: list[Entry], weights: Weights, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Resizes the sentence positions to the model's grid, unless they are on it already.

    Positions that match no grid stay unchanged, and are reported later with the other misshapen arrays.
    """
    entry = next((entry for entry in entries if entry.path == ("sentence_position",)), None)
    positions = arrays.get(entry.name) if entry else None
    if positions is None or positions.ndim != len(entry.file_shape) or positions.shape[-1] != entry.shape[-1]:
        return arrays
    if positions.shape != entry.file_shape:
        positions = _with_class_position(positions, weights)
        arrays = arrays | {entry.name: positions}
    count = positions.shape[-2] - 1
    side = round(count**0.5)
    if weights.grid is not None:
        old = weights.grid
    elif side * side == count:
        old = (side, side)
    else:
        old = grid  # a count that is not a square can only belong to the model's own grid
    if old == grid or old[0] * old[1] != count or count < 1:
        return arrays
    logging.info("Resizing the sentence positions of %s from %s to %s", weights.source, old, grid)
    flat = resize_sentence_positions(positions.reshape(1 + count, -1), old, grid)
    return arrays | {entry.name: np.asarray(flat).reshape(entry.file_shape)}


def _with_class_position(positions: np.ndarray, weights: Weights) -> np.ndarray:
    """DeiT III's positions [1, N, D], none for the class token -> [1, 1 + N, D]: zeros for it give the same function.

    A square number of rows alone could also be a 6 x 8 grid with the class token, so LayerScale must be present too.
    """
    rows, scaled = positions.shape[-2], any(name.endswith("ls1.gamma") for name in weights.arrays)
    if not scaled or weights.grid is not None or rows < 2 or math.isqrt(rows) ** 2 != rows:
        return positions
    logging.info("%s has no position for the class token, like DeiT III: it is set to zeros", weights.source)
    return np.concatenate([np.zeros_like(positions[:, :1]), positions], axis=1)


def adapt_channels(
    arrays: dict[str, np.ndarray], entries: list[Entry], weights: Weights, channels: int
) -> dict[str, np.ndarray]:
    """Adapts a three-channel stem kernel to images with another number of channels.

    timm's rule (timm.models.adapt_input_conv): one channel gets the sum of the three kernels; other numbers repeat them
    in turn, times 3 / channels, to keep the words' magnitudes. A stem of another number is never changed.
    """
    entry = next(entry for entry in entries if entry.path in STEMS)
    array = arrays.get(entry.name)
    if channels == COLOURS or array is None or array.ndim != 4:
        return arrays
    kernel = from_file(array, entry.path, weights.scheme)  # [h, w, inputs, outputs]
    if kernel.shape[2] != COLOURS:
        return arrays
    if channels == 1:
        words, kernel = "summed for one channel", kernel.sum(2, keepdims=True)
    else:
        words = f"repeated for {channels} channels and scaled by {COLOURS} / {channels}"
        kernel = kernel[:, :, np.arange(channels) % COLOURS] * np.float32(COLOURS / channels)
    logging.warning("The three-channel stem of %s is %s", weights.source, words)
    return arrays | {entry.name: to_file(kernel, entry.path, weights.scheme)}
