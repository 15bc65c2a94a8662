"""Published PyTorch weights and this project's runs <-> parameters: names, layouts, and a check of every one."""

from tnt_jax.pretrained.load import load_model, load_pretrained, save_pretrained

__all__ = ["load_model", "load_pretrained", "save_pretrained"]
