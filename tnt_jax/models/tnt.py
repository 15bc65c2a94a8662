"""Transformer in Transformer (Han et al., NeurIPS 2021, arXiv 2103.00112); a TNT without inner blocks is a DeiT.

B images have N patches each ("visual sentences", width D), and a patch has M sub-patches ("visual words", width C).
This file defines the model. `ops` computes it as written here, or by models/fast with the same parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tnt_jax.models.checks import check_features, check_images
from tnt_jax.models.config import Config
from tnt_jax.models.embeddings import PatchEmbedding, SentenceEmbedding, WordEmbedding, sincos_positions
from tnt_jax.models.initialization import normal_init, position_init
from tnt_jax.models.layers import MLP, Attention, Ops, SqueezeExcitation
from tnt_jax.models.patches import grid_of
from tnt_jax.models.resize import resize_sentence_positions
from tnt_jax.models.stochastic_depth import BRANCHES, DropMasks, drop_path, stochastic_depth_masks


class InnerBlock(nn.Module):
    """Inner block, eq. 6 and 7: words Y [M, C] of ONE sentence -> (words, attention [heads, M, M] or None).

    Y' = Y + MSA(LN(Y)), Y'' = Y' + MLP(LN(Y')).
    """

    config: Config
    ops: Ops

    @nn.compact
    def __call__(self, words: jax.Array, drop: DropMasks, return_weights: bool = False):
        config, layers = self.config, self.ops.inner
        attention = Attention(config.inner_num_heads, config.qkv_bias, layers, name="attention")
        mixed, weights = attention(layers.norm("norm1")(words), return_weights)
        words = words + drop_path(layers.scale("layer_scale1")(mixed), drop.get("inner_attention"))
        hidden = MLP(config.mlp_ratio, layers, name="mlp")(layers.norm("norm2")(words))
        return words + drop_path(layers.scale("layer_scale2")(hidden), drop.get("inner_mlp")), weights


class Projection(nn.Module):
    """Projection of words to sentences, eq. 8: words Y [B * N, M, C] -> [B, N, D], to be added to the sentences.

    LN(FC(LN(Vec(Y)))), with no bias in FC. With `legacy`, FC(Vec(LN(Y))), with LN over each word and a bias in FC.
    """

    config: Config
    ops: Ops

    @nn.compact
    def __call__(self, words: jax.Array, batch: int) -> jax.Array:
        layers, shape = self.ops.projection, (batch, words.shape[0] // batch, -1)
        if self.config.legacy:
            return layers.dense("dense", self.config.outer_dim)(layers.norm("norm1")(words).reshape(shape))
        vectors = layers.norm("norm1")(words.reshape(shape))
        vectors = layers.dense("dense", self.config.outer_dim, use_bias=False)(vectors)
        return self.ops.outer.norm("norm2")(vectors)


class OuterBlock(nn.Module):
    """Outer block, eq. 9 and 10: sentences Z [B, 1 + N, D] -> (sentences, attention [B, heads, 1 + N, 1 + N] or None).

    Z' = Z + MSA(LN(Z)), Z'' = Z' + MLP(LN(Z')).
    """

    config: Config
    ops: Ops

    @nn.compact
    def __call__(self, sentences: jax.Array, drop: DropMasks, return_weights: bool = False):
        config, layers = self.config, self.ops.outer
        attention = Attention(config.outer_num_heads, config.qkv_bias, layers, name="attention")
        mixed, weights = attention(layers.norm("norm1")(sentences), return_weights)
        sentences = sentences + drop_path(layers.scale("layer_scale1")(mixed), drop.get("outer_attention"))
        hidden = MLP(config.mlp_ratio, layers, name="mlp")(layers.norm("norm2")(sentences))
        if config.squeeze_excitation:
            hidden = SqueezeExcitation(layers, name="squeeze_excitation")(hidden)
        return sentences + drop_path(layers.scale("layer_scale2")(hidden), drop.get("outer_mlp")), weights


class TNTBlock(nn.Module):
    """TNT block, eq. 6 to 10: words [B * N, M, C], sentences [B, 1 + N, D] -> (words, sentences, requested features).

    The words of each sentence attend to each other, and their projection is added to the sentence; then the sentences
    attend to each other. Without an inner block it is a DeiT block.
    """

    config: Config
    ops: Ops
    has_inner: bool

    @nn.compact
    def __call__(self, words: jax.Array | None, sentences: jax.Array, drop: DropMasks, requested: tuple[str, ...] = ()):
        batch, features = sentences.shape[0], {}
        if self.has_inner:
            inner = self.ops.over_sentences(InnerBlock)(self.config, self.ops, name="inner")
            masks = {branch: mask for branch, mask in drop.items() if branch.startswith("inner")}
            words, weights = inner(words, masks, "inner_attention" in requested)
            sentences = sentences.at[:, 1:].add(Projection(self.config, self.ops, name="projection")(words, batch))
            features = {"words": words.reshape(batch, -1, *words.shape[1:])}
            if weights is not None:
                features["inner_attention"] = weights.reshape(batch, -1, *weights.shape[1:])
        outer = OuterBlock(self.config, self.ops, name="outer")
        sentences, features["outer_attention"] = outer(sentences, drop, "outer_attention" in requested)
        features["sentences"] = sentences
        return words, sentences, {name: features[name] for name in requested if name in features}


def pool(sentences: jax.Array, pooling: str) -> jax.Array:
    """sentences [B, 1 + N, D] after the final norm -> [B, D] float32: the class token, or the mean of the others."""
    return sentences[:, 0].astype(jnp.float32) if pooling == "class_token" else sentences[:, 1:].mean(1, jnp.float32)


class TNT(nn.Module):
    """Normalised images [B, H, W, in_channels] float32 -> logits [B, num_classes] float32. See `create_model`."""

    config: Config
    ops: Callable[[Config], Ops] = Ops.definition  # for apply; init always uses the definition

    def __getattr__(self, name: str) -> Any:
        """Exposes the config's attributes on the model, such as model.outer_dim."""
        return getattr(self.config, name) if hasattr(Config, name) else super().__getattr__(name)

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, return_features: bool | Sequence[str] = False
    ) -> jax.Array | tuple[jax.Array, dict[str, list[jax.Array]]]:
        """images [B, H, W, in_channels] -> logits, or (logits, features).

        Args:
          images: H and W are multiples of the patch size; learned sentence positions are resized to them.
          train: applies stochastic depth and the head's dropout, both from the "dropout" stream; nothing else differs.
          return_features: True for sentences and words, or any of the following names, each a list over blocks:
            "sentences": after each block, [B, 1 + N, D], class token first.
            "words": after each TNT block, [B, N, M, C].
            "outer_attention": of each block, [B, heads, 1 + N, 1 + N]; rows are queries.
            "inner_attention": of each TNT block, [B, N, heads, M, M]; rows are queries.
        """
        config, requested, keys = self.config, check_features(return_features), None
        ops = Ops.definition(config) if self.is_initializing() else self.ops(config)
        words, sentences = self.embed(images, ops)
        if train and config.drop_path_rate:
            keys = jax.random.split(self.make_rng("dropout"), (config.depth, len(BRANCHES)))
        run, features = ops.run_blocks, []
        if run is not None:
            params = self.variables["params"]
            words, sentences, features = run(config, ops, params, words, sentences, keys, requested)
        else:
            for i, rate in enumerate(config.drop_path_rates()):
                drop = {} if keys is None else stochastic_depth_masks(keys[i], rate, sentences)
                block = TNTBlock(config, ops, i + 1 in config.inner_blocks, name=f"block_{i + 1}")
                words, sentences, found = block(words, sentences, drop, requested)
                features.append(found)
        outputs = pool(ops.outer.norm("norm")(sentences), config.pooling)
        if config.num_classes:
            outputs = nn.Dropout(config.head_dropout, deterministic=not train)(outputs)
            init = nn.initializers.zeros if config.zero_init_head else normal_init
            outputs = nn.Dense(config.num_classes, kernel_init=init, name="head")(outputs)
        if not requested:
            return outputs
        return outputs, {name: [found[name] for found in features if name in found] for name in requested}

    def embed(self, images: jax.Array, ops: Ops) -> tuple[jax.Array | None, jax.Array]:
        """images -> Y_0 [B * N, M, C] (None for DeiT) and Z_0 [B, 1 + N, D], both with positions: eq. 5, 12, 13."""
        check_images(images, self.config)
        config, batch, words = self.config, images.shape[0], None
        init = position_init(config.initialization)
        if config.inner_blocks:
            words = WordEmbedding(config, ops, name="word_embedding")(images)
            if config.word_position:
                shape = config.num_words, config.inner_dim
                words = words + self.param("word_position", init, shape).astype(config.dtype)
            sentences = SentenceEmbedding(config, ops, name="sentence_embedding")(words, batch)
        else:
            sentences = PatchEmbedding(config, name="patch_embedding")(images)
        class_token = self.param("class_token", normal_init, (config.outer_dim,)).astype(config.dtype)
        sentences = jnp.concatenate([jnp.broadcast_to(class_token, (batch, 1, config.outer_dim)), sentences], axis=1)
        if config.sentence_position:
            grid = grid_of(images.shape[1:3], config.patch_size)
            if config.sentence_encoding == "sincos":
                positions = sincos_positions(grid, config.outer_dim)
            else:
                shape = 1 + config.grid[0] * config.grid[1], config.outer_dim
                positions = resize_sentence_positions(self.param("sentence_position", init, shape), config.grid, grid)
            sentences = sentences + positions.astype(config.dtype)
        return words, sentences
