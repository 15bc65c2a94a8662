"""Resizing of sentence position encodings to another image size."""

import jax
import jax.numpy as jnp


def resize_sentence_positions(positions: jax.Array, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> jax.Array:
    """positions [1 + N, D] on old_grid (rows, columns) -> [1 + N', D] on new_grid.

    Sentences are in row-major order. The class token's encoding, the first row, is kept; the others are resized
    bicubically with antialiasing, like timm's resample_abs_pos_embed (Keys' kernel with a = -0.5, widened when the grid
    shrinks). Computed in float32, returned in the dtype of `positions`. Equal grids return `positions` as they are.
    Differentiable, and works inside jit: the grids are static.

    Raises ValueError if `positions` do not lie on old_grid or a side is not positive.
    """
    for name, grid in (("old_grid", old_grid), ("new_grid", new_grid)):
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(f"{name}={grid} is not a grid of sentences; give (rows, columns), both at least 1")
    if positions.ndim != 2 or positions.shape[0] != 1 + old_grid[0] * old_grid[1]:
        raise ValueError(
            f"positions of shape {tuple(positions.shape)} do not lie on old_grid={tuple(old_grid)}: expected "
            f"[{1 + old_grid[0] * old_grid[1]}, outer_dim], the class token and {old_grid[0]} x {old_grid[1]} sentences"
        )
    if tuple(old_grid) == tuple(new_grid):
        return positions
    width = positions.shape[1]
    on_grid = jnp.asarray(positions[1:], jnp.float32).reshape(*old_grid, width)
    resized = jax.image.resize(on_grid, (*new_grid, width), method="bicubic", antialias=True)
    return jnp.concatenate([positions[:1], resized.reshape(-1, width).astype(positions.dtype)])
