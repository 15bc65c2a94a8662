"""Draws docs/tnt.png: an image, its visual sentences, one sentence's visual words, and the two transformers.

    python docs/draw_tnt.py

The photograph is scikit-learn's sample image "flower.jpg" (CC BY 2.0, dany13).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib.patches as shapes
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from sklearn.datasets import load_sample_image

from tnt_jax.analysis.style import BLUE, ORANGE, as_bytes, hide_axes, style

SIDE, GRID, WORDS = 224, 14, 4
CHOSEN = (4, 4)  # row and column of the sentence that is enlarged
MARK = "#00E5FF"  # its frame, seen on any photograph


def draw_grid(axes: Axes, side: int, cells: int, color: str) -> None:
    """Lines that cut an image of side x side pixels into cells x cells."""
    for i in range(1, cells):
        axes.axhline(i * side / cells - 0.5, color=color, linewidth=0.8)
        axes.axvline(i * side / cells - 0.5, color=color, linewidth=0.8)


def draw_box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    """A box with a text, in the axes' own coordinates."""
    box = shapes.FancyBboxPatch((x, y), 0.94, 0.16, boxstyle="round,pad=0.02", facecolor=color, alpha=0.18)
    axes.add_patch(box)
    axes.text(x + 0.47, y + 0.08, text, ha="center", va="center", fontsize=9)


def main() -> None:
    """Writes the figure."""
    photo = load_sample_image("flower.jpg")  # [427, 640, 3]
    nearest = np.arange(SIDE) * 400 // SIDE
    photo = photo[10 + nearest][:, 150 + nearest]
    patch = SIDE // GRID
    row, column = CHOSEN
    sentence = photo[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    with style():
        figure, grid = plt.subplots(1, 3, figsize=(10, 3.5), width_ratios=(1, 1, 1.15))
        grid[0].imshow(photo)
        draw_grid(grid[0], SIDE, GRID, "white")
        corner = (column * patch - 0.5, row * patch - 0.5)
        grid[0].add_patch(shapes.Rectangle(corner, patch, patch, fill=False, edgecolor=MARK, linewidth=3))
        grid[0].set_title("an image: 14 × 14 visual sentences\n(16 × 16 pixels each)")
        grid[1].imshow(sentence)
        draw_grid(grid[1], patch, WORDS, "white")
        grid[1].set_title("one sentence: 4 × 4 visual words\n(4 × 4 pixels each)")
        for axes in grid:
            hide_axes(axes)
        for spine in grid[1].spines.values():
            spine.set(visible=True, color=MARK, linewidth=3)
        flow = grid[2]
        flow.set(xlim=(0, 1), ylim=(0, 1))
        flow.set_title("one TNT block (of 12)")
        draw_box(flow, 0.03, 0.05, "words of a sentence: 16 × 24 numbers", ORANGE)
        draw_box(flow, 0.03, 0.29, "inner transformer\nwords attend inside their sentence", ORANGE)
        draw_box(flow, 0.03, 0.53, "words flow into their sentence\n(norm, dense, norm, added)", BLUE)
        draw_box(flow, 0.03, 0.77, "outer transformer\nclass token and 196 sentences attend", BLUE)
        for bottom in (0.23, 0.47, 0.71):
            flow.annotate("", (0.5, bottom + 0.045), (0.5, bottom), arrowprops={"arrowstyle": "-|>", "color": "0.3"})
        (Path(__file__).parent / "tnt.png").write_bytes(as_bytes(figure, dpi=110))


if __name__ == "__main__":
    main()
