"""Config: sizes and switches of a model, whose function models/tnt.py defines."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from tnt_jax.models.checks import check_model_config
from tnt_jax.models.patches import grid_of

Params = Mapping[str, Any]  # a module's, nested by the names of its parts


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches of a model, the defaults TNT-S's. Sizes that do not fit together are a ValueError."""

    num_classes: int = 1000  # 0: no head, the outputs are what it would read [B, D]
    image_size: int | tuple[int, int] = 224  # pixels; (H, W) where they differ
    in_channels: int = 3  # of the images
    patch_size: int = 16
    word_size: int = 4  # pixels, the side of a word
    inner_dim: int = 24  # C
    outer_dim: int = 384  # D
    inner_num_heads: int = 4
    outer_num_heads: int = 6
    depth: int = 12
    mlp_ratio: float = 4.0
    tnt_blocks: tuple[int, ...] | None = None  # 1-based; None: every block has an inner transformer; (): DeiT
    word_position: bool = True
    sentence_position: bool = True
    sentence_encoding: str = "learned"  # of these positions; "sincos": fixed
    squeeze_excitation: bool = False  # Table 12
    qkv_bias: bool = False
    legacy: bool = False  # the stem and projection of the first published weights
    norm_epsilon: float = 1e-5
    layer_scale: float = 0.0  # where the learned factors of the residual branches start; 0: there are none
    pooling: str = "class_token"  # what the head reads; "mean": of the sentences, after the last norm
    drop_path_rate: float = 0.0  # of the last block
    drop_path_schedule: str = "linear"  # from 0 in the first block; "constant": the same in all
    head_dropout: float = 0.0  # of what the head reads
    initialization: str = "published"  # or "scaled": see models/initialization.py
    zero_init_head: bool = False  # the head's weights start from 0
    dtype: DTypeLike = jnp.float32  # of the arithmetic; parameters are float32

    def __post_init__(self) -> None:
        """Checks the sizes before anything is computed."""
        check_model_config(self)

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, channels) of an image."""
        return *self.input_size, self.in_channels

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of sentences; their product is N."""
        return grid_of(self.input_size, self.patch_size)

    @property
    def num_words(self) -> int:
        """M."""
        return (self.patch_size // self.word_size) ** 2

    @property
    def inner_blocks(self) -> tuple[int, ...]:
        """1-based indices of the blocks with an inner transformer."""
        return tuple(range(1, self.depth + 1)) if self.tnt_blocks is None else tuple(sorted(self.tnt_blocks))

    def drop_path_rates(self) -> list[float]:
        """-> [depth] probabilities: rising linearly from 0 to `drop_path_rate`, or all the same."""
        if self.drop_path_schedule == "constant":
            return [self.drop_path_rate] * self.depth
        return [self.drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]
