"""config.freeze: patterns over the names of the parameters that training does not update.

A parameter tree is split into a trained and a frozen one: each is the whole tree with an optax.MaskedNode, which has no
leaves, in place of the other's parameters. Only the trained tree has gradients and optimizer state.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

import jax
import optax
from flax.traverse_util import flatten_dict, path_aware_map

from tnt_jax.models.config import Params
from tnt_jax.models.fast.stacking import is_stack, stack_blocks, unstack_blocks
from tnt_jax.training.config import Config

_NAMED = 20  # most names in a message


def is_frozen(name: str, patterns: Sequence[str]) -> bool:
    """A parameter's name, such as "block_1/inner/norm1/scale" -> whether a pattern matches the whole name."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def split(params: Params, patterns: Sequence[str]) -> tuple[Params, Params | None]:
    """Parameters, stacked or not -> (the trained ones, the frozen ones; None without patterns).

    If a parameter is frozen in only some of the stacked blocks, each tree gets stacks of its own.
    """
    if not patterns:
        return params, None

    def part(frozen: bool) -> Params:
        kept = path_aware_map(
            lambda path, leaf: leaf if is_frozen("/".join(path), patterns) == frozen else optax.MaskedNode(),
            unstack_blocks(params),
        )
        return stack_blocks(kept) if _stacked(params) else kept

    return part(frozen=False), part(frozen=True)


def join(trained: Params, frozen: Params | None) -> Params:
    """Inverse of `split`."""
    if frozen is None:
        return trained
    masked = lambda node: isinstance(node, optax.MaskedNode)  # noqa: E731
    parts = unstack_blocks(trained), unstack_blocks(frozen)
    whole = jax.tree.map(lambda ours, theirs: theirs if masked(ours) else ours, *parts, is_leaf=masked)
    return stack_blocks(whole) if _stacked(trained) else whole


def check_freeze(config: Config, params: Params) -> None:
    """Raises ValueError for a pattern that matches no parameter, with similar names, or if none is left to train."""
    names = list(flatten_dict(params, sep="/"))
    for pattern in config.freeze:
        if not any(is_frozen(name, (pattern,)) for name in names):
            raise ValueError(f"config.freeze: {pattern!r} matches no parameter. {_near(pattern, names)}")
    if all(is_frozen(name, config.freeze) for name in names):
        raise ValueError(f"config.freeze={config.freeze} matches every parameter: nothing is left to train.")


def frozen_note(config: Config, params: Params) -> str:
    """Returns a note: how many parameters are trained, and which are not."""
    sizes = {name: leaf.size for name, leaf in flatten_dict(params, sep="/").items()}
    trained = [name for name in sizes if not is_frozen(name, config.freeze)]

    def module(name: str) -> str:
        """Returns the outermost completely frozen module around a frozen parameter, or else its own name."""
        parts = name.split("/")
        around = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        return next((each for each in around if not any(n.startswith(f"{each}/") for n in trained)), name)

    told = list(dict.fromkeys(module(name) for name in sizes if is_frozen(name, config.freeze)))
    names = ", ".join(told[:_NAMED]) + (f" and {len(told) - _NAMED} more" if len(told) > _NAMED else "")
    start = "" if config.pretrained else " at random values (config.pretrained is empty)"
    count = sum(sizes[name] for name in trained)
    return f"{count:,} of {sum(sizes.values()):,} parameters are trained; frozen{start}: {names}"


def _near(pattern: str, names: Iterable[str]) -> str:
    """Returns a hint at what a pattern that matches nothing may have meant."""
    under = pattern.rstrip("/") + "/.*"
    if any(is_frozen(name, (under,)) for name in names):
        return f"A pattern must match a whole name: {under!r} matches everything under it."
    modules = {"/".join(name.split("/")[:depth]) for name in names for depth in range(1, name.count("/") + 2)}
    near = difflib.get_close_matches(pattern.replace(".*", "").strip("/"), sorted(modules), n=3)
    return f"Similar names: {', '.join(near)}." if near else f"Names look like {', '.join(sorted(modules)[:3])}."


def _stacked(params: Params) -> bool:
    return any(map(is_stack, params))
