"""The named models: TNT (Table 1), its legacy version, and the DeiT baselines."""

import dataclasses
import difflib
from typing import Any

import jax.numpy as jnp

from tnt_jax.models import fast
from tnt_jax.models.config import Config
from tnt_jax.models.fast import Backend
from tnt_jax.models.tnt import TNT

# Settings for how a model is computed -> their names in Backend.
BACKEND = {"inner_implementation": "implementation", "outer_implementation": "outer"} | {
    name: name for name in ("device_kind", "scan", "remat", "remat_policy")
}
# Values of these settings that need an accelerator.
KERNELS = {"inner_implementation": ("pallas", "cudnn"), "outer_implementation": ("flash",)}

_TNT_S = {"inner_dim": 24, "outer_dim": 384, "inner_num_heads": 4, "outer_num_heads": 6}
# DeiT: no inner path, biases on queries, keys and values, and its own epsilon.
_DEIT = {"tnt_blocks": (), "qkv_bias": True, "norm_epsilon": 1e-6}

VARIANTS: dict[str, dict[str, Any]] = {
    "tnt_ti_patch16_224": {"inner_dim": 12, "outer_dim": 192, "inner_num_heads": 2, "outer_num_heads": 3},
    "tnt_s_patch16_224": _TNT_S,
    "tnt_b_patch16_224": {"inner_dim": 40, "outer_dim": 640, "inner_num_heads": 4, "outer_num_heads": 10},
    "tnt_s_legacy_patch16_224": {**_TNT_S, "legacy": True},
    "deit_tiny_patch16_224": {"outer_dim": 192, "outer_num_heads": 3, **_DEIT},
    "deit_small_patch16_224": {"outer_dim": 384, "outer_num_heads": 6, **_DEIT},
    "deit_base_patch16_224": {"outer_dim": 768, "outer_num_heads": 12, **_DEIT},
}


def nearest(name: str, names: list[str]) -> str:
    """A misspelt name, the accepted names -> the fix that ends an error message."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"the names are {', '.join(sorted(names))}"


def create_model(name: str, **overrides: Any) -> TNT:
    """Creates a named model, with some settings changed (see models.tnt.TNT for shapes).

    Args:
      name: one of VARIANTS, such as "tnt_s_patch16_224".
      **overrides: fields of models.config.Config, such as num_classes, image_size, tnt_blocks or dtype ("bfloat16" or a
        type); and inner_implementation, outer_implementation, device_kind, scan, remat and remat_policy, for
        models.fast.Backend.

    Raises:
      ValueError: an unknown name or override, or sizes that do not fit together.
    """
    if name not in VARIANTS:
        raise ValueError(f"there is no model {name!r}; {nearest(name, list(VARIANTS))}")
    config, backend = _settings(name, {**VARIANTS[name], **overrides})
    return fast.replace(TNT(Config(**config), Backend()), **backend)


def update(model: TNT, **overrides: Any) -> TNT:
    """Returns the model with some settings changed, as in create_model."""
    config, backend = _settings("the model", overrides)
    model = model.clone(config=dataclasses.replace(model.config, **config))
    return fast.replace(model, **backend) if backend else model


def _settings(name: str, overrides: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model's name (for messages) and settings -> fields of Config, fields of Backend."""
    known = [field.name for field in dataclasses.fields(Config)]
    for key in overrides:
        if key not in known and key not in BACKEND:
            raise ValueError(f"{name} has no setting {key!r}; {nearest(key, [*known, *BACKEND])}")
    config = {key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}
    backend = {BACKEND[key]: config.pop(key) for key in BACKEND if key in config}
    if isinstance(config.get("dtype"), str):
        try:
            config["dtype"] = jnp.dtype(config["dtype"])
        except TypeError as error:
            raise ValueError(f"dtype={config['dtype']!r} is not a type; use float32 or bfloat16") from error
    return config, backend
