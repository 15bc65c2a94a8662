"""Parameters and multiply-adds of a model: exactly, from its parameter tree, and by the paper's eq. 14 to 18."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.models.tnt import TNT

# Parts of a model in the order of the computation: title, and how the paths of its parameters begin ("block" is any).
PARTS = (
    ("word embedding", ("word_embedding",)),
    ("patch embedding", ("patch_embedding",)),
    ("sentence embedding", ("sentence_embedding",)),
    ("class token, positions", ("class_token", "word_position", "sentence_position")),
    ("inner attention", ("block/inner/norm1", "block/inner/attention")),
    ("inner MLP", ("block/inner/norm2", "block/inner/mlp")),
    ("projection", ("block/projection",)),
    ("outer attention", ("block/outer/norm1", "block/outer/attention")),
    ("outer MLP", ("block/outer/norm2", "block/outer/mlp")),
    ("squeeze and excitation", ("block/outer/squeeze_excitation",)),
    ("final norm", ("norm",)),
    ("head", ("head",)),
)
# Multiply-adds for each number of a parameter and each vector it is applied to. A bias is one more term of its sum. A
# norm takes four for each number: mean, variance, scaling by the deviation, and scale with bias.
_COST = {"kernel": 1, "bias": 1, "scale": 3, "class_token": 0, "word_position": 1, "sentence_position": 1}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model, all its blocks together, and what it costs for one image.

    `products` are the multiply-adds of matrix products and convolutions, with their biases, and of attention: what
    published FLOPs count. `others` are those of norms, position encodings and gates.
    """

    name: str
    parameters: int
    products: int
    others: int

    @property
    def multiply_adds(self) -> int:
        """All of them."""
        return self.products + self.others


def parameter_shapes(model: TNT) -> dict[tuple[str, ...], tuple[int, ...]]:
    """model -> the shape of each parameter by its path in the tree, such as ("block_1", "inner", "norm1", "scale").

    Nothing is computed.
    """
    images = jax.ShapeDtypeStruct((1, *model.input_size, 3), jnp.float32)
    tree = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return {path: tuple(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def count_parameters(model: TNT) -> int:
    """model -> the number of its trainable parameters, exactly."""
    return sum(int(np.prod(shape)) for shape in parameter_shapes(model).values())


def multiply_adds(model: TNT, image_size: int | tuple[int, int] | None = None) -> int:
    """model, image_size in pixels (a side or (H, W); None: the model's own) -> multiply-adds of one image, exactly.

    Stem, positions, inner and outer blocks, projections, norms, biases and head are in; softmax, GELU, the addition of
    residual branches and the resizing of positions are not (together about 1%). A padding zero counts like any pixel.
    """
    return sum(part.multiply_adds for part in count_parts(model, image_size))


def count_parts(model: TNT, image_size: int | tuple[int, int] | None = None) -> list[Part]:
    """model, image_size in pixels (None: the model's own) -> what each part holds and costs for one image (as above).

    Parameters are the model's at that size: sentence positions grow with it. Parts that it does not have are left out.
    """
    if image_size is not None:
        model = model.clone(image_size=image_size)
    sentences = model.grid[0] * model.grid[1]
    counts = {name: [0, 0, 0] for name, _ in PARTS}
    for path, shape in parameter_shapes(model).items():
        count = counts[part_of(path)]
        size = int(np.prod(shape))
        is_product = path[-1] == "kernel" or (path[-1] == "bias" and not path[-2].startswith("norm"))
        count[0] += size
        count[1 if is_product else 2] += size * _vectors(path, sentences, model) * _COST[path[-1]]
    counts["inner attention"][1] += len(model.inner_blocks) * 2 * sentences * model.num_words**2 * model.inner_dim
    counts["outer attention"][1] += model.depth * 2 * (1 + sentences) ** 2 * model.outer_dim
    if model.squeeze_excitation:  # the mean over the tokens, and the gate's multiplication
        counts["squeeze and excitation"][2] += model.depth * 2 * (1 + sentences) * model.outer_dim
    return [Part(name, *count) for name, count in counts.items() if any(count)]


def part_of(path: tuple[str, ...]) -> str | None:
    """The path of a parameter or of a layer -> the title of its part; None for what holds several."""
    name = "/".join("block" if each.startswith("block_") else each for each in path) + "/"
    return next((title for title, starts in PARTS if any(name.startswith(start + "/") for start in starts)), None)


def _vectors(path: tuple[str, ...], sentences: int, model: TNT) -> int:
    """A parameter's path -> the number of vectors that it is applied to for one image."""
    words = sentences * model.num_words
    if path[0] == "word_embedding" or "inner" in path:
        return words
    if "projection" in path and model.legacy and "norm1" in path:
        return words
    if "projection" in path or path[0] in ("word_position", "patch_embedding", "sentence_embedding"):
        return sentences
    if "squeeze_excitation" in path or path[0] in ("head", "sentence_position", "class_token"):
        return 1
    return 1 + sentences


@dataclasses.dataclass(frozen=True)
class Formula:
    """What the paper's formulas give: no biases, norms, stem, head or class token."""

    parameters: float
    multiply_adds: float


def standard_block(n: int, d: int, r: float = 4.0) -> Formula:
    """n sentences of width d, MLP ratio r -> a standard block (eq. 14, 15): 12 d d and 2 n d (6 d + n) at r = 4."""
    return Formula((4 + 2 * r) * d * d, n * d * ((4 + 2 * r) * d + 2 * n))


def tnt_block(n: int, d: int, m: int, c: int, r: float = 4.0) -> Formula:
    """n sentences of width d, each of m words of width c, MLP ratio r -> a TNT block (eq. 16 to 18).

    12 c c + m c d + 12 d d parameters; 2 n m c (6 c + m) + n m c d + 2 n d (6 d + n) multiply-adds at r = 4.
    """
    inner, outer = standard_block(m, c, r), standard_block(n, d, r)
    return Formula(
        inner.parameters + m * c * d + outer.parameters,
        n * inner.multiply_adds + n * m * c * d + outer.multiply_adds,
    )


def by_formula(model: TNT, image_size: int | tuple[int, int] | None = None) -> Formula:
    """model, image_size in pixels (None: the model's own) -> its blocks by the paper's formulas, added up."""
    grid = (model if image_size is None else model.clone(image_size=image_size)).grid
    n, d, r = grid[0] * grid[1], model.outer_dim, model.mlp_ratio
    standard, tnt = standard_block(n, d, r), tnt_block(n, d, model.num_words, model.inner_dim, r)
    inner = len(model.inner_blocks)
    return Formula(
        inner * tnt.parameters + (model.depth - inner) * standard.parameters,
        inner * tnt.multiply_adds + (model.depth - inner) * standard.multiply_adds,
    )


def formula_parts(model: TNT) -> dict[str, Formula]:
    """model -> what the paper's formulas say of each part that they speak of (PARTS), all its blocks together.

    Of a standard block's 12 d d parameters and 2 n d (6 d + n) multiply-adds (eq. 14, 15) attention has 4 d d and
    2 n d (2 d + n), the MLP the rest; inner blocks likewise, with m and c, for each of the n sentences. The projection
    has m c d and n m c d (eq. 16 to 18).
    """
    n, d, r = model.grid[0] * model.grid[1], model.outer_dim, model.mlp_ratio
    m, c, inner = model.num_words, model.inner_dim, len(model.inner_blocks)
    parts = {
        "outer attention": Formula(model.depth * 4 * d * d, model.depth * 2 * n * d * (2 * d + n)),
        "outer MLP": Formula(model.depth * 2 * r * d * d, model.depth * 2 * n * r * d * d),
    }
    if inner:
        parts |= {
            "inner attention": Formula(inner * 4 * c * c, inner * n * 2 * m * c * (2 * c + m)),
            "inner MLP": Formula(inner * 2 * r * c * c, inner * n * 2 * m * r * c * c),
            "projection": Formula(inner * m * c * d, inner * n * m * c * d),
        }
    return parts


def inner_path_ratio(model: TNT) -> Formula:
    """model -> its TNT block over the standard block of the same n and d, by formula: parameters and multiply-adds.

    TNT-S: 1.08 and 1.14 (section 3.3 of the paper).
    """
    n = model.grid[0] * model.grid[1]
    standard = standard_block(n, model.outer_dim, model.mlp_ratio)
    tnt = tnt_block(n, model.outer_dim, model.num_words, model.inner_dim, model.mlp_ratio)
    return Formula(tnt.parameters / standard.parameters, tnt.multiply_adds / standard.multiply_adds)


def frozen_outer_tokens(model: TNT) -> int:
    """model -> N * D: the frozen zeros `outer_tokens` that the official code of TNT keeps, never uses, and counts.

    They are why the paper gives 65.6 M parameters for TNT-B, which has 65.43 M trainable ones. DeiT: 0.
    """
    if not model.inner_blocks:
        return 0
    return model.grid[0] * model.grid[1] * model.outer_dim
