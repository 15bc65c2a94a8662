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


def check_sizes(there: Mapping[str, Any], model: TNT, source: str) -> None:
    """Raises ValueError if the sizes stored with weights ({}: unknown) differ, even if every shape happens to fit."""
    here = sizes_of(model)
    if different := [name for name, value in here.items() if there.get(name, value) != value]:
        then, now = (", ".join(f"{name}={sizes[name]!r}" for name in different) for sizes in (there, here))
        raise ValueError(f"{source} is of a model with {then}; this one has {now}. Make the model with the former.")
