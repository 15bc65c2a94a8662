"""Transformer in Transformer (TNT) in JAX and Flax: models, published weights, training and a look inside."""

from tnt_jax.models.variants import create_model
from tnt_jax.pretrained import load_model, load_pretrained, save_pretrained

__all__ = ["create_model", "load_model", "load_pretrained", "save_pretrained"]
