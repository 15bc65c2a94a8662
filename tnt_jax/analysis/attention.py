"""Where the class token looks (paper, appendix A.1, Figure 7)."""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from tnt_jax.analysis.style import hide_axes, save, style
from tnt_jax.models.tnt import TNT
from tnt_jax.names import figure_label


def class_token_attention(model: TNT, variables: dict, images: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """images [B, H, W, 3], normalised -> (logits [B, K], maps [B, rows, columns]): the last block's class token.

    A map is the attention of the class token over the sentences, averaged over the heads; with what the token gives
    to itself it sums to one.
    """
    apply = jax.jit(lambda v, x: model.apply(v, x, return_features=("outer_attention",)))
    logits, features = apply(variables, images)
    attention = features["outer_attention"][-1][:, :, 0, 1:].mean(axis=1)
    rows, columns = (side // model.patch_size for side in images.shape[1:3])
    return np.asarray(logits), np.asarray(attention).reshape(-1, rows, columns)


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """maps [B, rows, columns] -> [B, height, width], bilinear, each scaled from its minimum to its maximum, 0 to 1."""
    maps = np.asarray(jax.image.resize(jnp.asarray(maps), (maps.shape[0], height, width), "bilinear"))
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def draw_class_token_attention(
    model: TNT,
    variables: dict,
    pixels: np.ndarray,
    labels: Sequence[int],
    path: Path,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    class_names: Sequence[str] | None = None,
) -> Path:
    """pixels [B, H, W, 3] uint8 and labels [B] -> a figure of each image and, under it, the attention over it.

    mean, std: the normalisation that the model was trained with. class_names: what the labels mean; None: the numbers.
    """
    images = (jnp.asarray(pixels, jnp.float32) / 255 - jnp.asarray(mean)) / jnp.asarray(std)
    logits, maps = class_token_attention(model, variables, images)
    heat = enlarge(maps, *pixels.shape[1:3])
    predicted = logits.argmax(-1)
    names = [figure_label(name) for name in class_names or range(logits.shape[-1])]
    with style():
        count = len(pixels)
        figure, grid = plt.subplots(2, count, figsize=(1.15 * count, 2.9), squeeze=False)
        for i in range(count):
            right = predicted[i] == labels[i]
            grid[0, i].imshow(pixels[i])
            grid[1, i].imshow(pixels[i].mean(-1), cmap="gray", vmin=0, vmax=255)
            grid[1, i].imshow(heat[i], cmap="inferno", alpha=0.65, vmin=0, vmax=1)
            title = names[labels[i]] if right else f"{names[labels[i]]}, taken for {names[predicted[i]]}"
            grid[0, i].set_title(title, fontsize=8, color="black" if right else "#D55E00")
            hide_axes(grid[0, i])
            hide_axes(grid[1, i])
        figure.suptitle("Test images, and where the class token of the last block looks (bright: more)", fontsize=10)
        return save(figure, Path(path), dpi=150)
