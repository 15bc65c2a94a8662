"""Config: the sizes and switches of the model that models/tnt.py defines."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from tnt_jax.models.checks import check_model_config
from tnt_jax.models.patches import grid_of

Params = Mapping[str, Any]  # a module's parameters, nested by submodule name


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes and switches of a model; the defaults are TNT-S. Raises ValueError if the sizes do not fit together."""

    num_classes: int = 1000  # 0: no head; the outputs are the pooled features [B, D]
    image_size: int | tuple[int, int] = 224  # pixels: a side or (H, W)
    in_channels: int = 3  # of the images
    patch_size: int = 16
    word_size: int = 4  # pixels: the side of a word
    inner_dim: int = 24  # C
    outer_dim: int = 384  # D
    inner_num_heads: int = 4
    outer_num_heads: int = 6
    depth: int = 12
    mlp_ratio: float = 4.0
    tnt_blocks: tuple[int, ...] | None = None  # 1-based; None: every block has an inner transformer; (): DeiT
    word_position: bool = True
    sentence_position: bool = True
    sentence_encoding: str = "learned"  # sentence positions; "sincos": fixed
    squeeze_excitation: bool = False  # Table 12
    qkv_bias: bool = False
    legacy: bool = False  # the stem and projection of the first published weights
    norm_epsilon: float = 1e-5
    layer_scale: float = 0.0  # initial value of the learned factors on the residual branches; 0: no LayerScale
    pooling: str = "class_token"  # the head's input; "mean": of the sentences, after the final norm
    drop_path_rate: float = 0.0  # of the last block
    drop_path_schedule: str = "linear"  # rises from 0 in the first block; "constant": the same in all
    head_dropout: float = 0.0  # of the head's input
    initialization: str = "published"  # or "scaled": see models/initialization.py
    zero_init_head: bool = False  # the head's weights start at 0
    dtype: DTypeLike = jnp.float32  # of the computation; parameters are float32

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
        """M, the words per sentence."""
        return (self.patch_size // self.word_size) ** 2

    @property
    def inner_blocks(self) -> tuple[int, ...]:
        """1-based indices of the blocks with an inner transformer."""
        return tuple(range(1, self.depth + 1)) if self.tnt_blocks is None else tuple(sorted(self.tnt_blocks))

    def drop_path_rates(self) -> list[float]:
        """Returns the drop path rate of each block: rising linearly from 0 to `drop_path_rate`, or constant."""
        if self.drop_path_schedule == "constant":
            return [self.drop_path_rate] * self.depth
        return [self.drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]
