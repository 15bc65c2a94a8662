"""Shared by the paper's figures: panels, names of arrays, and the files of a figure."""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure, FigureBase

from tnt_jax.analysis.style import hide_axes, save, style
from tnt_jax.analysis.subject import Subject
from tnt_jax.models.tnt import TNT
from tnt_jax.names import printable, without_formulas

LETTERS_PER_INCH = 13.5  # of a title of 9 points
Drawn = tuple[Figure, dict[str, np.ndarray]]


def save_figure(drawn: Drawn, folder: Path, name: str) -> list[Path]:
    """Writes a figure and its arrays as folder/name.png, .pdf (vector; maps are images) and .npz; returns the paths."""
    figure, arrays = drawn
    with style():
        paths = [save(figure, Path(folder) / f"{name}{ending}") for ending in (".png", ".pdf")]
    paths.append(Path(folder) / f"{name}.npz")
    np.savez_compressed(paths[-1], **arrays)
    return paths


def chosen_blocks(depth: int) -> tuple[int, ...]:
    """Returns the first, the middle and the last of `depth` blocks, 1-based: 1, 6 and 12 of twelve, as in the paper."""
    return tuple(sorted({1, max(depth // 2, 1), depth}))


def put_title(part: FigureBase, text: str) -> None:
    """Puts a title above a figure or a part of one, wrapped to its width."""
    inches = part.bbox.width / part.get_figure(root=True).dpi
    lines = textwrap.fill(printable(text), max(int(inches * LETTERS_PER_INCH), 20))
    part.suptitle(without_formulas(lines), fontsize=9)


def unread(model: TNT) -> str:
    """Returns a note for titles of class token figures if the head does not read the class token."""
    return "; the head reads the mean of the sentences instead" if model.pooling == "mean" else ""


def enlarge(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """maps [B, rows, columns] -> [B, height, width], bilinear, each scaled from its minimum to its maximum, 0 to 1."""
    maps = np.asarray(jax.image.resize(jnp.asarray(maps), (maps.shape[0], height, width), "bilinear"))
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    return (maps - low) / np.maximum(high - low, 1e-12)


def visible(pixels: np.ndarray) -> np.ndarray:
    """[..., C], uint8 or uint16 -> uint8 [..., 3]: the first three of three or four channels, else their mean in grey.

    16-bit pixels show their upper eight bits.
    """
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[-1] not in (3, 4):
        pixels = np.repeat(pixels.mean(-1, keepdims=True).round().astype(np.uint8), 3, axis=-1)
    return pixels[..., :3]


def draw_over(axes, image: np.ndarray, attention: np.ndarray) -> None:
    """Draws attention [rows, columns] over the image [H, W, C] in grey, scaled from its minimum to its maximum."""
    axes.imshow(visible(image).mean(-1), cmap="gray", vmin=0, vmax=255)
    axes.imshow(enlarge(attention[None], *image.shape[:2])[0], cmap="inferno", alpha=0.65, vmin=0, vmax=1)
    hide_axes(axes)


def show_image(axes, image: np.ndarray | None, title: str) -> None:
    """Draws the image under its title; None leaves the place empty."""
    if image is not None:
        axes.imshow(visible(image))
    axes.set_title(title, fontsize=8)
    hide_axes(axes)


def check_inner(subjects: Sequence[Subject], what: str) -> None:
    """Raises ValueError if a model has no words."""
    without = [subject.title for subject in subjects if not subject.model.inner_blocks]
    if without or not subjects:
        raise ValueError(
            f"{', '.join(without) or 'no model'} has no inner path, so there is no figure of {what}; give a TNT"
        )


def slug(title: str) -> str:
    """A model's title -> the prefix of its arrays' names: "TNT-S" -> "tnt_s"."""
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def named(subject: Subject, **arrays: np.ndarray) -> dict[str, np.ndarray]:
    """Adds the model's title to the names of arrays: maps of "TNT-S" -> tnt_s_maps."""
    return {f"{slug(subject.title)}_{name}": array for name, array in arrays.items()}
