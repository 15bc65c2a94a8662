"""Transformer in Transformer (TNT) in JAX and Flax: models, published weights, training and analysis."""

import importlib

_HOMES = {
    "create_model": "tnt_jax.models.variants",
    "forward_features": "tnt_jax.models.intermediates",
    "forward_intermediates": "tnt_jax.models.intermediates",
    "list_models": "tnt_jax.models.cards",
    "load_model": "tnt_jax.pretrained",
    "load_pretrained": "tnt_jax.pretrained",
    "model_info": "tnt_jax.models.cards",
    "save_pretrained": "tnt_jax.pretrained",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Imports public names on first use: worker processes use only tnt_jax.data, without jax."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tnt_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
