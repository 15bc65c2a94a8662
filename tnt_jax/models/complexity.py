"""Parameters and multiply-adds of a model: counted in its program, and by the paper's equations 14 to 18."""

import dataclasses
import re
from collections.abc import Iterator

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from tnt_jax.models.layers import Ops
from tnt_jax.models.tnt import TNT


@dataclasses.dataclass(frozen=True)
class Part:
    """A module of a model, summed over all blocks, and its cost for one image.

    `multiply_adds` counts matrix products, attention's included, and convolutions, with their biases, as published
    FLOPs do. Norms, positions, softmax, GELU and residual additions (together about 2%) are left out.
    """

    name: str  # such as "inner/attention", "projection", "head"
    parameters: int
    multiply_adds: int


def parameter_shapes(model: TNT) -> dict[tuple[str, ...], tuple[int, ...]]:
    """model -> parameter shapes by path, such as ("block_1", "inner", "norm1", "scale"). Nothing is computed."""
    tree = jax.eval_shape(model.init, jax.random.key(0), _image(model))["params"]
    return {path: tuple(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(tree).items()}


def count_parameters(model: TNT) -> int:
    """model -> the exact number of its trainable parameters."""
    return sum(int(np.prod(shape)) for shape in parameter_shapes(model).values())


def multiply_adds(model: TNT) -> int:
    """model -> multiply-adds for one image of its input size."""
    return sum(part.multiply_adds for part in count_parts(model))


def count_parts(model: TNT) -> list[Part]:
    """model -> its modules, counted in the traced definition, so that modules unknown to this file count too.

    Padding zeros count like pixels.
    """
    model = model.clone(ops=Ops.definition)
    trace = jax.make_jaxpr(model.init_with_output, return_shape=True)  # program and parameter shapes in one trace
    program, (_, variables) = trace(jax.random.key(0), _image(model))
    products: dict[str, int] = {}
    for scopes, count in _products(program.jaxpr):
        name = "/".join(scopes)
        products[name] = products.get(name, 0) + count
    counts: dict[str, list[int]] = {}
    for path, leaf in flax.traverse_util.flatten_dict(variables["params"]).items():
        counts.setdefault(_module_of(path), [0, 0])[0] += int(np.prod(leaf.shape))
    for name, count in products.items():
        holders = [part for part in counts if part and f"{name}/".startswith(f"{part}/")]
        counts.setdefault(max(holders, key=len, default=name), [0, 0])[1] += count
    return [Part(name, *count) for name, count in counts.items()]


def _module_of(path: tuple[str, ...]) -> str:
    """A parameter's path -> the module that holds its layer, without the block: "inner/attention", "head"."""
    path = path[1:] if len(path) > 1 and re.fullmatch(r"block_\d+", path[0]) else path
    return "/".join(path[:-2] or path[:1])


def _products(jaxpr: Jaxpr, outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """A traced program -> for each product, the modules around it, outermost first, and its multiply-adds."""
    producers = {id(output): equation for equation in jaxpr.eqns for output in equation.outvars}
    for equation in jaxpr.eqns:
        scopes = (*outer, *module_scopes(str(equation.source_info.name_stack)))
        size = int(np.prod(equation.outvars[0].aval.shape)) if equation.outvars else 0
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            yield scopes, size * int(np.prod([shape[axis] for axis in contracted]))
        elif equation.primitive.name == "conv_general_dilated":
            kernel, layout = equation.invars[1].aval.shape, equation.params["dimension_numbers"].rhs_spec
            yield scopes, size * int(np.prod(kernel)) // kernel[layout[0]]
        elif equation.primitive.name == "add" and _adds_bias(equation, producers):
            yield scopes, size
        turns = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(value, "jaxpr", value)  # of a ClosedJaxpr
            if hasattr(inner, "eqns"):
                yield from ((path, turns * count) for path, count in _products(inner, scopes))


def _adds_bias(equation: JaxprEqn, producers: dict[int, JaxprEqn]) -> bool:
    """Whether an addition adds a vector, reshaped or not, to a product: one more term in the product's sums."""
    names, ranks = [], []
    for variable in equation.invars:
        producer = producers.get(id(variable))
        while (
            len(variable.aval.shape) > 1
            and producer is not None
            and producer.primitive.name in ("reshape", "broadcast_in_dim", "transpose")
        ):
            variable = producer.invars[0]
            producer = producers.get(id(variable))
        names.append(producer.primitive.name if producer is not None else "")
        ranks.append(len(variable.aval.shape))
    return 1 in ranks and ("dot_general" in names or "conv_general_dilated" in names)


def module_scopes(source: str) -> tuple[str, ...]:
    """An operation's name stack -> the scopes inside the model or block, outermost first; () outside a model.

    "jit(step)/jvp(TNT)/block_1/vmap(inner)/norm1/mul" -> ("inner", "norm1", "mul").
    """
    scopes = re.findall(r"[\w.]+", re.sub(r"\w+\(", "", source))  # "vmap(inner)" -> "inner"
    starts = [i for i, scope in enumerate(scopes) if re.fullmatch(r"TNT(\.\w+)?|TNTBlock|block_\d+", scope)]
    return tuple(scopes[starts[-1] + 1 :]) if starts else ()


def _image(model: TNT) -> jax.ShapeDtypeStruct:
    """Returns the shape and type of a batch of one image."""
    return jax.ShapeDtypeStruct((1, *model.config.input_shape), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Formula:
    """Counts by the paper's formulas, which leave out biases, norms, stem, head and class token."""

    parameters: float
    multiply_adds: float


def standard_block(n: int, d: int, r: float = 4.0) -> Formula:
    """n sentences of width d, MLP ratio r -> a standard block, eq. 14 and 15: 12 d d, 2 n d (6 d + n) at r = 4."""
    return Formula((4 + 2 * r) * d * d, n * d * ((4 + 2 * r) * d + 2 * n))


def tnt_block(n: int, d: int, m: int, c: int, r: float = 4.0) -> Formula:
    """n sentences of width d, each of m words of width c, MLP ratio r -> a TNT block, eq. 16 to 18.

    12 c c + m c d + 12 d d parameters; 2 n m c (6 c + m) + n m c d + 2 n d (6 d + n) multiply-adds at r = 4.
    """
    inner, outer = standard_block(m, c, r), standard_block(n, d, r)
    return Formula(
        inner.parameters + m * c * d + outer.parameters,
        n * inner.multiply_adds + n * m * c * d + outer.multiply_adds,
    )


def by_formula(model: TNT) -> Formula:
    """model -> the sum of the paper's formulas over its blocks."""
    parts = formula_parts(model).values()
    return Formula(sum(part.parameters for part in parts), sum(part.multiply_adds for part in parts))


def formula_parts(model: TNT) -> dict[str, Formula]:
    """model -> the paper's formulas for each part that they cover, summed over all blocks.

    Of a standard block's 12 d d parameters and 2 n d (6 d + n) multiply-adds (eq. 14, 15), attention has 4 d d and
    2 n d (2 d + n), and the MLP has the rest. An inner block has the same in m and c, with its multiply-adds for each
    of the n sentences. The projection has m c d and n m c d (eq. 16 to 18).
    """
    config = model.config
    n, d, r = config.grid[0] * config.grid[1], config.outer_dim, config.mlp_ratio
    m, c, inner = config.num_words, config.inner_dim, len(config.inner_blocks)
    parts = {
        "outer/attention": Formula(config.depth * 4 * d * d, config.depth * 2 * n * d * (2 * d + n)),
        "outer/mlp": Formula(config.depth * 2 * r * d * d, config.depth * 2 * n * r * d * d),
    }
    if inner:
        parts |= {
            "inner/attention": Formula(inner * 4 * c * c, inner * n * 2 * m * c * (2 * c + m)),
            "inner/mlp": Formula(inner * 2 * r * c * c, inner * n * 2 * m * r * c * c),
            "projection": Formula(inner * m * c * d, inner * n * m * c * d),
        }
    return parts


def inner_path_ratio(model: TNT) -> Formula:
    """model -> the ratio of its TNT block to a standard block of the same n and d, by formula.

    TNT-S: 1.08 in parameters and 1.14 in multiply-adds (section 3.3 of the paper).
    """
    config = model.config
    n, d, r = config.grid[0] * config.grid[1], config.outer_dim, config.mlp_ratio
    standard, tnt = standard_block(n, d, r), tnt_block(n, d, config.num_words, config.inner_dim, r)
    return Formula(tnt.parameters / standard.parameters, tnt.multiply_adds / standard.multiply_adds)


def frozen_outer_tokens(model: TNT) -> int:
    """model -> N * D, the size of `outer_tokens`: frozen zeros that the official TNT code never uses but counts.

    They are why the paper gives TNT-B 65.6 M parameters, of which 65.43 M are trainable. DeiT: 0.
    """
    if not model.config.inner_blocks:
        return 0
    return model.config.grid[0] * model.config.grid[1] * model.config.outer_dim
