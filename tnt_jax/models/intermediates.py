"""Intermediate features under timm's names: forward_features and forward_intermediates."""

import dataclasses
import numbers
from collections.abc import Sequence

import jax
from flax.typing import VariableDict

from tnt_jax.models import fast
from tnt_jax.models.fast.stacking import unstack_blocks
from tnt_jax.models.patches import grid_of
from tnt_jax.models.tnt import TNT


def forward_features(model: TNT, variables: VariableDict, images: jax.Array) -> jax.Array:
    """Normalised images [B, H, W, C] -> [B, 1 + N, D]: the tokens before pooling, after the last block and norm.

    The class token is first. Like timm's method of this name.
    """
    return forward_intermediates(model, variables, images, indices=1, norm=True, maps=False, class_token=True)[0]


def forward_intermediates(
    model: TNT,
    variables: VariableDict,
    images: jax.Array,
    indices: int | Sequence[int] | None = None,
    *,
    norm: bool = False,
    maps: bool = True,
    class_token: bool = False,
) -> list[jax.Array]:
    """Normalised images [B, H, W, C] -> the sentences after each of the chosen blocks, as maps [B, h, w, D].

    Blocks after the last chosen one are not computed (timm's stop_early). Like timm's method of this name, which
    returns [B, D, h, w].

    Args:
      indices: blocks, from 0 as in timm; negative ones count from the end. A number n means the last n, None all.
      norm: whether to apply the model's final norm to each.
      maps: False returns tokens [B, N, D] instead of maps.
      class_token: whether to include the class token, first; only with maps=False.

    Raises:
      ValueError: an index out of range, or a map with a class token.
    """
    if maps and class_token:
        raise ValueError("class_token=True: a map has no place for it; ask for tokens, maps=False")
    chosen = _blocks(model, indices)
    # At least up to the first inner block: a model without any has other parameters. jit drops what nothing reads.
    blocks = max([i + 1 for i in chosen] + list(model.inner_blocks[:1]))
    config = dataclasses.replace(
        model.config, depth=blocks, tnt_blocks=tuple(i for i in model.inner_blocks if i <= blocks), num_classes=0
    )
    behind = {f"block_{i + 1}" for i in range(blocks, model.depth)} | {"head"}
    params = {name: value for name, value in unstack_blocks(variables["params"]).items() if name not in behind}
    short = fast.replace(model, remat=False).clone(config=config)
    _, features = short.apply({"params": params}, images, return_features=("sentences",))
    found = [features["sentences"][i] for i in chosen]
    if norm:
        last_norm = short.ops(config).outer.norm("norm")
        found = [last_norm.apply({"params": params["norm"]}, each) for each in found]
    if not class_token:
        found = [each[:, 1:] for each in found]
    grid = grid_of(images.shape[1:3], model.patch_size)
    return [each.reshape(len(images), *grid, -1) for each in found] if maps else found


def _blocks(model: TNT, indices: int | Sequence[int] | None) -> list[int]:
    """forward_intermediates' indices -> block numbers from 0, in the given order."""
    depth = model.depth
    if indices is None:
        indices = range(depth)
    elif isinstance(indices, numbers.Integral):  # NumPy's too
        if not 1 <= indices <= depth:
            raise ValueError(f"indices={indices}: the last {indices} of {depth} blocks; take 1 to {depth}")
        indices = range(depth - indices, depth)
    wrong = [i for i in indices if not -depth <= i < depth]
    if wrong or not len(indices):
        raise ValueError(f"indices={list(indices)}: the model has the blocks 0 to {depth - 1} (or -{depth} to -1)")
    return [i % depth for i in indices]
