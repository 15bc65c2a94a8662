"""The paper's six figures (section 3.4, appendix A.1): each function takes models and an image, and draws one.

Every function returns (matplotlib Figure, {name: array} of the numbers that it shows). Names of arrays begin with the
model's title. `panels.save_figure` writes both. The same models, image and seed give the same bytes.
"""

from collections.abc import Callable, Iterator, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from tnt_jax.analysis import maps
from tnt_jax.analysis.inner_figure import inner_attention
from tnt_jax.analysis.panels import Drawn, check_inner, chosen_blocks, draw_over, named, put_title, show_image, unread
from tnt_jax.analysis.queries import Query, parse_query
from tnt_jax.analysis.style import BLUE, ORANGE, hide_axes, style
from tnt_jax.analysis.subject import Subject, centre_crop, map_size
from tnt_jax.models.patches import grid_of
from tnt_jax.models.variants import nearest
from tnt_jax.names import figure_label

CHANNELS = 12
AVERAGED = {"interpolation": "antialiased", "interpolation_stage": "data"}  # where cells are smaller than a pixel


def feature_maps(
    subjects: Sequence[Subject],
    pixels: np.ndarray,
    *,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
) -> Drawn:
    """Figure 3a: pixels [H, W, C] -> sentences by position, after the first, the middle and the last block.

    image_size: (height, width) of the input, with interpolated positions; None: map_size, the paper's 1024 for a model
    of 224. `seed` draws CHANNELS of each model's D channels at random.
    Arrays: maps [blocks, channels, rows, columns], channels, blocks.
    """
    rows = [(subject, block) for subject in subjects for block in chosen_blocks(subject.model.depth)]
    arrays: dict[str, np.ndarray] = {}
    with style():
        figure = plt.figure(figsize=(CHANNELS * 0.8 + 1.6, len(rows) * 0.86 + 0.75 + 0.2 * len(subjects)))
        parts = np.atleast_1d(figure.subfigures(len(subjects), 1, hspace=0.02))
        for subject, part in zip(subjects, parts, strict=True):
            size = image_size or map_size(subject.model)
            image, blocks = centre_crop(pixels, size), chosen_blocks(subject.model.depth)
            found = maps.sentence_maps(subject.model, subject.variables, subject.inputs(image), blocks)
            picks = pick_channels(subject.model.outer_dim, seed)
            arrays |= named(subject, maps=found[:, picks], channels=picks, blocks=np.asarray(blocks))
            grid = part.subplots(len(blocks), 1 + len(picks), squeeze=False)
            for i, block in enumerate(blocks):
                show_image(grid[i, 0], image if i == 0 else None, "input" if i == 0 else "")
                grid[i, 1].set_ylabel(f"block {block}")
                for j, pick in enumerate(picks):
                    grid[i, 1 + j].imshow(found[i, pick], cmap="viridis")
                    hide_axes(grid[i, 1 + j])
                    if i == 0:
                        grid[i, 1 + j].set_title(f"ch. {pick}", fontsize=8)
            cells = "{} x {}".format(*found.shape[-2:])
            put_title(
                part,
                f"{subject.heading}: {len(picks)} of {subject.model.outer_dim} channels of the sentence embeddings, "
                f"{cells} sentences; each map from its least to its greatest value",
            )
        return figure, arrays


def pick_channels(width: int, seed: int) -> np.ndarray:
    """Draws CHANNELS different channels of `width` at random, in ascending order."""
    return np.sort(np.random.default_rng(seed).choice(width, size=min(CHANNELS, width), replace=False))


def channel_tsne(
    subjects: Sequence[Subject], pixels: np.ndarray, *, seed: int = 0, image_size: tuple[int, int] | None = None
) -> Drawn:
    """Figure 3b: pixels [H, W, C] -> t-SNE of all D feature maps of the last block, one point per channel.

    A channel's vector is its map of rows x columns numbers; input size as in feature_maps. scikit-learn's t-SNE starts
    from the first two principal components. Arrays: points [D, 2], correlation: mean |r| over pairs of channels' maps.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    arrays: dict[str, np.ndarray] = {}
    with style():
        figure, grid = plt.subplots(1, len(subjects), figsize=(3.6 * len(subjects), 3.9), squeeze=False)
        for i, (subject, axes) in enumerate(zip(subjects, grid[0], strict=True)):
            model = subject.model
            inputs = subject.inputs(centre_crop(pixels, image_size or map_size(model)))
            found = maps.sentence_maps(model, subject.variables, inputs, (model.depth,))[0].reshape(model.outer_dim, -1)
            # "exact" takes seconds for some hundred points. One thread, because more sum in another order and move the
            # points.
            tsne = TSNE(
                init="pca",
                method="exact",
                random_state=seed,
                perplexity=min(30.0, (len(found) - 1) / 3),
            )
            with threadpool_limits(1):
                points, alike = tsne.fit_transform(found), mean_correlation(found)
            arrays |= named(subject, points=points, correlation=np.asarray(alike, np.float32))
            axes.scatter(*points.T, s=10, color=(BLUE, ORANGE)[i % 2], alpha=0.75, linewidths=0)
            title = f"{figure_label(subject.heading)}, block {model.depth}"
            axes.set_title(f"{title}\nmean |correlation| of two maps: {alike:.2f}")
            axes.set_box_aspect(1)
            axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
        put_title(figure, "One point for each channel's feature map: far apart where maps differ")
        return figure, arrays


def mean_correlation(vectors: np.ndarray) -> float:
    """vectors [n, k] -> the mean of |r| over all pairs of different vectors; 0: nothing alike, 1: all the same map."""
    centred = vectors - vectors.mean(1, keepdims=True)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
    correlation = np.abs(unit @ unit.T)
    count = len(vectors)
    return float((correlation.sum() - np.trace(correlation)) / max(count * (count - 1), 1))


def word_maps(subjects: Sequence[Subject], pixels: np.ndarray) -> Drawn:
    """Figure 4: pixels [H, W, C] -> word embeddings by position after each TNT block, averaged over channels.

    At the model's own input size: 14 x 14 sentences of 4 x 4 words make a map of 56 x 56. Arrays: maps [blocks, rows,
    columns], blocks. Raises ValueError if a model has no inner path.
    """
    check_inner(subjects, "the word embeddings")
    arrays: dict[str, np.ndarray] = {}
    columns = min(6, max(len(subject.model.inner_blocks) for subject in subjects))
    lines = [-(-len(subject.model.inner_blocks) // columns) for subject in subjects]
    with style():
        figure = plt.figure(figsize=(1.35 * (columns + 1) + 0.3, 1.65 * sum(lines) + 0.5 * len(subjects)))
        parts = np.atleast_1d(figure.subfigures(len(subjects), 1, height_ratios=lines))
        for subject, part, count in zip(subjects, parts, lines, strict=True):
            model, image = subject.model, centre_crop(pixels, subject.model.input_size)
            found = maps.word_maps(model, subject.variables, subject.inputs(image))
            arrays |= named(subject, maps=found, blocks=np.asarray(model.inner_blocks))
            grid = part.subplots(count, 1 + columns, squeeze=False)
            for axes in grid.flat:
                hide_axes(axes)
            show_image(grid[0, 0], image, "input")
            for i, (block, each) in enumerate(zip(model.inner_blocks, found, strict=True)):
                axes = grid[i // columns, 1 + i % columns]
                axes.imshow(each, cmap="viridis")
                axes.set_title(f"block {block}\n{each.min():.2f} to {each.max():.2f}", fontsize=8)
            put_title(part, f"{subject.heading}: word embeddings, averaged over their {model.inner_dim} channels")
        return figure, arrays


def outer_attention(subjects: Sequence[Subject], pixels: np.ndarray) -> Drawn:
    """Figure 6: pixels [H, W, C] -> attention from each sentence to all, every block, averaged over heads.

    At the models' own input size. Colours are logarithmic and the same in all panels. Arrays: attention
    [blocks, 1 + N, 1 + N], class token first (not drawn), rows sum to one.
    """
    found = []
    for subject in subjects:
        inputs = subject.inputs(centre_crop(pixels, subject.model.input_size))
        found.append(maps.outer_attention(subject.model, subject.variables, inputs))
    strongest = max(float(each[:, 1:, 1:].max()) * each.shape[-1] for each in found)
    norm = LogNorm(0.1, 10.0 ** max(np.ceil(np.log10(strongest)), 1), clip=True)
    columns = min(6, max(len(each) for each in found))
    lines = [-(-len(each) // columns) for each in found]
    arrays: dict[str, np.ndarray] = {}
    with style():
        figure = plt.figure(figsize=(1.45 * columns + 0.9, 1.6 * sum(lines) + 0.5 * len(subjects)))
        parts = np.atleast_1d(figure.subfigures(len(subjects), 1, height_ratios=lines))
        for subject, part, count, each in zip(subjects, parts, lines, found, strict=True):
            arrays |= named(subject, attention=each)
            grid = part.subplots(count, columns, squeeze=False)
            for axes in grid.flat:
                hide_axes(axes)
            for i, block in enumerate(each):
                relative = block[1:, 1:] * len(block)
                drawn = grid.flat[i].imshow(relative, cmap="magma", norm=norm, **AVERAGED)
                grid.flat[i].set_title(f"block {i + 1}", fontsize=8)
            bar = part.colorbar(drawn, ax=grid, shrink=0.85, extend="min", format="{x:g}")
            bar.set_label(f"times 1/{each.shape[-1]}")
            put_title(
                part,
                f"{subject.heading}: from each of {each.shape[-1] - 1} sentences (row) to all (column), "
                f"numbered row by row; mean of the heads; even attention is 1/{each.shape[-1]}",
            )
        return figure, arrays


def class_attention(subjects: Sequence[Subject], pixels: np.ndarray) -> Drawn:
    """Figure 7: pixels [H, W, C] -> attention of the last block's class token to the sentences, over the image.

    At the models' own input size. The mean of the heads, then up to six heads. Arrays: attention
    [heads, 1 + N], the class token itself first, a row sums to one; maps [heads, rows, columns].
    """
    arrays: dict[str, np.ndarray] = {}
    heads = max(subject.model.outer_num_heads for subject in subjects)
    num_shown = min(heads, 6)
    with style():
        figure = plt.figure(figsize=(1.35 * (2 + num_shown) + 0.2, 1.95 * len(subjects)))
        parts = np.atleast_1d(figure.subfigures(len(subjects), 1))
        for subject, part in zip(subjects, parts, strict=True):
            model = subject.model
            image = centre_crop(pixels, model.input_size)
            found = maps.class_attention(model, subject.variables, subject.inputs(image))
            rows, columns = (side // model.patch_size for side in image.shape[:2])
            over = found[:, 1:].reshape(-1, rows, columns)
            arrays |= named(subject, attention=found, maps=over)
            grid = part.subplots(1, 2 + num_shown, squeeze=False)[0]
            for axes in grid:
                hide_axes(axes)
            show_image(grid[0], image, "input")
            drawn = [("mean of heads", over.mean(0)), *((f"head {i + 1}", each) for i, each in enumerate(over))]
            for axes, (title, each) in zip(grid[1:], drawn, strict=False):
                draw_over(axes, image, each)
                axes.set_title(f"{title}\n{each.min():.1%} to {each.max():.1%}", fontsize=8)
            itself = found[:, 0].mean()
            put_title(
                part,
                f"{subject.heading}: what the class token attends to in block {model.depth} "
                f"(bright: more; {itself:.1%} goes to itself){unread(model)}",
            )
        return figure, arrays


# In the paper's order.
FIGURES: dict[str, Callable[..., Drawn]] = {
    "feature_maps": feature_maps,
    "tsne": channel_tsne,
    "words": word_maps,
    "inner_attention": inner_attention,
    "outer_attention": outer_attention,
    "class_attention": class_attention,
}
MAP_FIGURES = ("feature_maps", "tsne")  # drawn at a larger input, with a seed
INNER_FIGURES = ("words", "inner_attention")  # only for models with an inner path


def chosen_figures(text: str, subjects: Sequence[Subject] | None = None) -> list[str]:
    """ "all", or comma-separated numbers from 1 or names -> names, in the paper's order.

    "all" leaves out INNER_FIGURES if models are given and none has an inner path.
    """
    names = list(FIGURES)
    if text == "all":
        words = subjects is None or any(subject.model.inner_blocks for subject in subjects)
        return [name for name in names if words or name not in INNER_FIGURES]
    chosen = set()
    for part in map(str.strip, text.split(",")):
        name = names[int(part) - 1] if part.isdecimal() and 1 <= int(part) <= len(names) else part
        if name not in names:
            raise ValueError(f"there is no figure {part!r}; {nearest(part, names)}, all, or 1 to {len(names)}")
        chosen.add(name)
    return [name for name in names if name in chosen]


def draw(
    subjects: Sequence[Subject],
    pixels: np.ndarray,
    figures: Sequence[str],
    *,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    attention_size: tuple[int, int] | None = None,
    queries: Sequence[str] = (),
) -> Iterator[tuple[str, Drawn]]:
    """Models and an image -> (name, figure with its arrays), one at a time.

    image_size: for figures 1 and 2; attention_size: for the others; both (height, width) in pixels. queries: as in
    queries.parse_query; empty: chosen by contrast. Figures of words leave out models without words. Raises ValueError
    for sizes, queries or figures that a model does not support.
    """
    for size in filter(None, (image_size, attention_size)):
        for subject in subjects:
            grid_of(size, subject.model.patch_size)
    resized = [subject.at(attention_size) for subject in subjects] if attention_size else subjects
    with_words = [subject for subject in resized if subject.model.inner_blocks]
    asked = ask(with_words, queries)
    for name in figures:
        if name in MAP_FIGURES:
            yield name, FIGURES[name](subjects, pixels, seed=seed, image_size=image_size)
        else:
            options = {"queries": asked} if name == "inner_attention" else {}
            yield name, FIGURES[name](with_words if name in INNER_FIGURES else resized, pixels, **options)


def ask(subjects: Sequence[Subject], queries: Sequence[str]) -> list[Query] | None:
    """Queries as text -> (sentence, word), the same for all models; None without queries or models."""
    if not queries or not subjects:
        return None
    for text in queries:
        if len({parse_query(text, subject.model) for subject in subjects}) > 1:
            raise ValueError(f"--query={text} is another word in each of these models; draw them one by one")
    return [parse_query(text, subjects[0].model) for text in queries]
