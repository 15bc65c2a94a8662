"""The model sizes that weights depend on, including those that no array shape shows."""

import json
from collections.abc import Mapping
from typing import Any

from tnt_jax.models.tnt import TNT

# Settings that change what the same arrays compute. Not image size and classes, which load.fit adapts.
_OF_ALL = (
    "patch_size",
    "outer_dim",
    "outer_num_heads",
    "depth",
    "mlp_ratio",
    "tnt_blocks",
    "sentence_position",
    "sentence_encoding",
    "pooling",
    "squeeze_excitation",
    "qkv_bias",
    "norm_epsilon",
)
_OF_WORDS = ("word_size", "inner_dim", "inner_num_heads", "word_position", "legacy")  # of models with an inner block


def sizes_of(model: TNT) -> dict[str, Any]:
    """A model -> its sizes as JSON values, by the names of create_model; tnt_blocks as a list."""
    names = _OF_ALL + (_OF_WORDS if model.inner_blocks else ())
    return json.loads(json.dumps({name: getattr(model, name) for name in names} | {"tnt_blocks": model.inner_blocks}))


def different_sizes(there: Mapping[str, Any] | None, model: TNT) -> dict[str, tuple[Any, Any]]:
    """Sizes stored with weights (None: unknown), a model -> {name: (stored, the model's)} where they differ."""
    here = sizes_of(model)
    return {name: (there[name], value) for name, value in here.items() if there and there.get(name, value) != value}


def check_sizes(there: Mapping[str, Any] | None, model: TNT, source: str) -> None:
    """Raises ValueError if the weights belong to a model with other sizes, even if every shape happens to fit."""
    if different := different_sizes(there, model):
        raise ValueError(
            f"{source} is of a model with {_listed(different, 0)}; this one has {_listed(different, 1)}. Make the "
            "model with the former."
        )


def _listed(different: Mapping[str, tuple[Any, Any]], side: int) -> str:
    return ", ".join(f"{name}={values[side]!r}" for name, values in different.items())
