"""Transformer in Transformer (TNT) in JAX and Flax: models, published weights, training and a look inside."""

from tnt_jax.models.variants import create_model

__all__ = ["create_model"]
