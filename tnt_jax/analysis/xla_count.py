"""What XLA counts: the floating-point operations of a model's program, of all of it and part by part."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.models.complexity import part_of
from tnt_jax.models.tnt import TNT

REST = "positions, residuals"  # what belongs to no part: the additions between them


def xla_multiply_adds(model: TNT) -> float:
    """model -> half the FLOPs that XLA counts in its program for one image of the model's size.

    XLA counts a product and an addition as two, elementwise operations too, exponentials and erf not at all. It counts
    the program as it is handed over; compiled for a CPU, TNT-S has 0.02% more. Nothing is computed.
    """
    images, variables = _shapes(model)
    return _count(_readable(model).apply, variables, images)


def xla_parts(model: TNT) -> dict[str, float]:
    """model -> for each part (models.complexity.PARTS), and REST, half the FLOPs that XLA counts for one image.

    Every layer that the model calls is counted as a program of its own. They add up to xla_multiply_adds.
    """
    model = _readable(model)
    images, variables = _shapes(model)
    calls: list[tuple[nn.Module, tuple[str, ...], tuple[Any, ...], Any]] = []

    def record(call, arguments, keywords, context):
        """Notes the outermost call that lies wholly in one part; what it calls in turn belongs to it."""
        module, path = context.module, tuple(context.module.path)
        part = part_of(path) if context.method_name == "__call__" else None
        if part is not None and not any(path[: len(above)] == above for _, above, _, _ in calls):
            calls.append((module, path, arguments, module.variables["params"]))
        return call(*arguments, **keywords)

    with nn.intercept_methods(record):
        jax.eval_shape(model.apply, variables, images)
    found: dict[str, float] = {}
    known: dict[Any, float] = {}
    for module, path, arguments, params in calls:
        arguments = [_shape_of(argument) for argument in arguments]
        params = jax.tree.map(_shape_of, params)
        alone = module.clone(parent=None, name=None)
        key = (alone, str(arguments))
        if key not in known:
            known[key] = _count(_applied(alone, arguments), {"params": params}, *_arrays(arguments))
        # The map over sentences shows its block one sentence.
        times = model.grid[0] * model.grid[1] if "inner" in path else 1
        part = part_of(path)
        found[part] = found.get(part, 0.0) + times * known[key]
    found[REST] = xla_multiply_adds(model) - sum(found.values())
    return found


def _readable(model: TNT) -> TNT:
    """The model as it is defined: block by block (of a scan, XLA counts one turn), inner blocks mapped."""
    return model.clone(scan=False, inner_implementation="reference")


def _shapes(model: TNT) -> tuple[Any, Any]:
    """model -> shapes of one image and of the variables."""
    images = jax.ShapeDtypeStruct((1, *model.input_size, 3), jnp.float32)
    return images, jax.eval_shape(model.init, jax.random.key(0), images)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct)


def _shape_of(value: Any) -> Any:
    return jax.ShapeDtypeStruct(value.shape, value.dtype) if _is_array(value) else value


def _arrays(arguments: list[Any]) -> list[Any]:
    return [argument for argument in arguments if _is_array(argument)]


def _applied(module: nn.Module, arguments: list[Any]) -> Any:
    """A module and its arguments -> a function of its variables and the arrays among the arguments."""

    def apply(variables, *arrays):
        left = iter(arrays)
        return module.apply(variables, *(next(left) if _is_array(each) else each for each in arguments))

    return apply


def _count(function: Any, *shapes: Any) -> float:
    """A function and its arguments' shapes -> half the FLOPs that XLA counts in it."""
    return jax.jit(function).lower(*shapes).cost_analysis()["flops"] / 2
