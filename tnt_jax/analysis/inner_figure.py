"""Figure 5 of the paper: what chosen query words attend to inside their sentence."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from tnt_jax.analysis import maps
from tnt_jax.analysis.panels import Drawn, check_inner, chosen_blocks, named, put_title, show_image, visible
from tnt_jax.analysis.queries import Query, centre, corner, default_queries
from tnt_jax.analysis.style import RED, hide_axes, style
from tnt_jax.analysis.subject import Subject, centre_crop


def inner_attention(
    subjects: Sequence[Subject], pixels: np.ndarray, *, queries: Sequence[Query] | None = None
) -> Drawn:
    """Figure 5: pixels [H, W, C] -> inner attention of query words over their sentence's words, on the image.

    At the model's own input size, in its first, middle and last TNT block, averaged over the heads. queries: (sentence,
    word) from 0 (queries.py reads them from text); None: four words of high contrast. Arrays: attention [queries,
    blocks, heads, M], rows sum to one; queries [queries, 2]; blocks. Raises ValueError if a model has no inner path.
    """
    check_inner(subjects, "the inner attention")
    arrays: dict[str, np.ndarray] = {}
    images = [centre_crop(pixels, subject.model.input_size) for subject in subjects]
    asked = [
        default_queries(image, subject.model) if queries is None else list(queries)
        for subject, image in zip(subjects, images, strict=True)
    ]
    counts = [len(each) for each in asked]
    with style():
        figure = plt.figure(figsize=(9.0, sum(max(1.35 * count, 2.7) + 0.6 for count in counts)))
        parts = np.atleast_1d(figure.subfigures(len(subjects), 1, height_ratios=counts))
        for subject, image, queried, part in zip(subjects, images, asked, parts, strict=True):
            blocks = _blocks(subject)
            found = maps.inner_attention(subject.model, subject.variables, subject.inputs(image), queried, blocks)
            arrays |= named(subject, attention=found, queries=np.asarray(queried), blocks=np.asarray(blocks))
            whole, panels = part.subfigures(1, 2, width_ratios=(3.3, 1.35 * (1 + len(blocks)) + 0.6))
            _show_queries(whole.subplots(), subject, image, queried)
            _show_panels(panels, subject, image, queried, found.mean(2))
            put_title(
                part,
                f"{subject.heading}: attention of query words (red crosses) over the {subject.model.num_words} words "
                "of their sentence; mean of the heads",
            )
        return figure, arrays


def _blocks(subject: Subject) -> tuple[int, ...]:
    """Returns the first, middle and last block with an inner path, 1-based."""
    inner = subject.model.inner_blocks
    return tuple(inner[i - 1] for i in chosen_blocks(len(inner)))


def _show_queries(axes, subject: Subject, image: np.ndarray, queries: Sequence[Query]) -> None:
    """Draws the whole image, with each query's sentence framed and numbered."""
    show_image(axes, image, "input")
    side = subject.model.patch_size
    for i, query in enumerate(queries):
        top, left = corner(query, subject.model)
        frame = Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=RED, linewidth=1.5)
        axes.add_patch(frame)
        inside = left + side < image.shape[1] * 0.93  # the number goes beside its frame if there is room
        axes.annotate(
            str(i + 1),
            (left + side if inside else left, top),
            xytext=(2 if inside else -2, 0),
            textcoords="offset points",
            ha="left" if inside else "right",
            va="top",
            fontsize=9,
            color="white",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": RED, "edgecolor": "none"},
        )


def _show_panels(part, subject: Subject, image: np.ndarray, queries: Sequence[Query], attention: np.ndarray) -> None:
    """Draws attention [queries, blocks, M], a row per query: its sentence, then the attention over it in each block."""
    model, blocks = subject.model, _blocks(subject)
    grid = part.subplots(len(queries), 1 + len(blocks), squeeze=False)
    side = model.patch_size // model.word_size
    colors = ScalarMappable(Normalize(0, float(attention.max())), "inferno")
    for i, query in enumerate(queries):
        top, left = corner(query, model)
        extent = (left - 0.5, left + model.patch_size - 0.5, top + model.patch_size - 0.5, top - 0.5)
        row, column = centre(query, model)
        for j, axes in enumerate(grid[i]):
            axes.imshow(visible(image))
            if j:
                # A pale image: with a stronger one the colours would not match the colour bar.
                axes.imshow(visible(image).mean(-1), cmap="gray", vmin=-255, vmax=255)
                words = attention[i, j - 1].reshape(side, side)
                axes.imshow(words, cmap=colors.cmap, norm=colors.norm, alpha=0.9, extent=extent)
            axes.plot(column, row, marker="x", color="white", markersize=10, markeredgewidth=3.5)
            axes.plot(column, row, marker="x", color="red", markersize=9, markeredgewidth=2)
            axes.set(xlim=extent[:2], ylim=extent[2:])
            hide_axes(axes)
            if i == 0:
                axes.set_title(f"block {blocks[j - 1]}" if j else "sentence", fontsize=8)
        grid[i, 0].set_ylabel(str(i + 1), rotation=0, labelpad=8, va="center", fontweight="bold", color=RED)
    part.colorbar(colors, ax=grid[:, 1:], shrink=0.8, label=f"attention (even: {1 / model.num_words:.3f})")
