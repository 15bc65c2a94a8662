"""What the class token attends to (paper, appendix A.1, Figure 7)."""

from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from flax.typing import VariableDict

from tnt_jax.analysis.maps import class_attention
from tnt_jax.analysis.panels import draw_over, put_title, show_image, unread
from tnt_jax.analysis.style import RED, save, style
from tnt_jax.data.settings import EvalImages
from tnt_jax.models.tnt import TNT
from tnt_jax.names import figure_label
from tnt_jax.training.device_augment import normalize


def draw_class_token_attention(
    model: TNT,
    variables: VariableDict,
    pixels: np.ndarray,
    labels: Sequence[int] | np.ndarray,
    path: Path,
    *,
    preprocessing: EvalImages,
    class_names: Sequence[str] | None = None,
) -> Path:
    """pixels [B, H, W, C], labels [B] -> a figure of each image and, below it, the attention over it; its path.

    The attention is that of the last block's class token to the sentences, averaged over the heads.

    labels [B, k]: 1 for each of an image's labels; a prediction is right if it is one of them.
    preprocessing: how images are prepared for the model. class_names: names of the labels; None: numbers.
    """
    images = normalize(pixels, preprocessing)
    predictions = np.asarray(jax.jit(model.apply)(variables, images)).argmax(-1)
    weights = [class_attention(model, variables, each[None])[:, 1:].mean(0) for each in images]
    names = [figure_label(name) for name in class_names or range(model.num_classes)]
    with style():
        figure, grid = plt.subplots(2, len(pixels), figsize=(1.15 * len(pixels), 2.9), squeeze=False)
        for axes, image, label, predicted, attention in zip(grid.T, pixels, labels, predictions, weights, strict=True):
            wanted = [label] if np.ndim(label) == 0 else np.flatnonzero(label)
            right, title = predicted in wanted, ", ".join(names[each] for each in wanted) or "no class"
            show_image(axes[0], image, title if right else f"{title}, taken for {names[predicted]}")
            axes[0].title.set_color("black" if right else RED)
            draw_over(axes[1], image, attention.reshape(model.grid))
        looks = "Test images, and where the class token of the last block looks (bright: more)"
        put_title(figure, looks + unread(model))
        return save(figure, Path(path))
