"""Loads and saves weights, published PyTorch files and this project's runs, and checks every name and shape."""

from tnt_jax.pretrained.load import load_model, load_pretrained, save_pretrained

__all__ = ["load_model", "load_pretrained", "save_pretrained"]
