"""Transformer in Transformer (Han et al., NeurIPS 2021, arXiv 2103.00112), and DeiT as a TNT without inner paths."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tnt_jax.models.checks import check_features, check_model
from tnt_jax.models.embeddings import PatchEmbedding, SentenceEmbedding, WordEmbedding, grid_of
from tnt_jax.models.implementation import Forms, keep_products
from tnt_jax.models.inner import check_parameters, from_lanes, fused, over_sentences, to_lanes
from tnt_jax.models.layers import (
    BRANCHES,
    MLP,
    Attention,
    SqueezeExcitation,
    dense,
    drop_path,
    drop_path_factors,
    layer_norm,
    normal_init,
)
from tnt_jax.models.pallas.layout import Sizes
from tnt_jax.models.resize import resize_sentence_positions
from tnt_jax.models.stacking import block_runs, stack_blocks

Features = dict[str, list[jax.Array]]
MAKING_PARAMETERS = Forms(fused=False, inner="dot", outer="dot")


class Projection(nn.Module):
    """words [B * N, M, C] -> [B, N, D]: what a layer's words add to their sentences (eq. 8).

    LN(FC(LN(Vec(Y)))), the first norm over all M * C numbers, FC without a bias. With `legacy` the first norm is over
    each word, FC has a bias and there is no second norm. `lanes` is M where words are [M * C, B * N], as the kernel
    has them; the parameters are the same.
    """

    features: int
    epsilon: float
    legacy: bool = False
    dtype: Any = jnp.float32
    lanes: int = 0

    @nn.compact
    def __call__(self, words: jax.Array, batch: int) -> jax.Array:
        """words [B * N, M, C] or, with `lanes`, [M * C, B * N], B -> [B, N, D]."""
        if self.lanes:
            return self._from_lanes(words, batch)
        norm1 = layer_norm("norm1", self.epsilon, self.dtype)
        if self.legacy:
            flat = norm1(words).reshape(batch, words.shape[0] // batch, -1)
            return dense("dense", self.features, self.dtype)(flat)
        flat = norm1(words.reshape(batch, words.shape[0] // batch, -1))
        flat = dense("dense", self.features, self.dtype, use_bias=False)(flat)
        return layer_norm("norm2", self.epsilon, self.dtype)(flat)

    def _from_lanes(self, words: jax.Array, batch: int) -> jax.Array:
        """words [M * C, B * N], B -> [B, N, D]: norm and product over the first axis, so that nothing is turned."""
        if self.legacy:
            words = words.reshape(self.lanes, -1, words.shape[-1])
        axis = words.ndim - 2
        norm1 = layer_norm("norm1", self.epsilon, self.dtype, axis)
        flat = norm1(words).reshape(-1, words.shape[-1])
        product = nn.DenseGeneral(self.features, axis=0, use_bias=self.legacy, dtype=self.dtype, name="dense")
        flat = product(flat).reshape(batch, -1, self.features)
        return flat if self.legacy else layer_norm("norm2", self.epsilon, self.dtype)(flat)


class OuterBlock(nn.Module):
    """sentences [B, 1 + N, D] -> (sentences, attention [B, heads, 1 + N, 1 + N] or None): a ViT block (eq. 9, 10)."""

    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = False
    epsilon: float = 1e-5
    squeeze_excitation: bool = False
    attention_form: str = "dot"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, sentences: jax.Array, keep: dict[str, jax.Array] | None, return_weights: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """sentences [B, 1 + N, D], drop-path factors or None -> (sentences, attention or None)."""
        keep = keep or {}
        attention = Attention(self.num_heads, self.qkv_bias, self.attention_form, self.dtype, name="attention")
        mixed, weights = attention(layer_norm("norm1", self.epsilon, self.dtype)(sentences), return_weights)
        sentences = sentences + drop_path(mixed, keep.get("outer_attention"))
        mlp = MLP(self.mlp_ratio, self.dtype, self.attention_form == "dot", name="mlp")
        hidden = mlp(layer_norm("norm2", self.epsilon, self.dtype)(sentences))
        if self.squeeze_excitation:
            hidden = SqueezeExcitation(self.epsilon, self.dtype, name="squeeze_excitation")(hidden)
        return sentences + drop_path(hidden, keep.get("outer_mlp")), weights


class TNTBlock(nn.Module):
    """(words [B * N, M, C], sentences [B, 1 + N, D]) -> the same, with the features asked for.

    Words attend inside their sentence, flow into it, and sentences attend (eq. 6 to 10). A block without an inner
    path (`has_inner` False) leaves the words alone and is DeiT's block. Where the kernel computes the inner path
    (`forms.fused`), words are [M * C, B * N] from block to block; making the parameters takes the other form.
    """

    has_inner: bool
    num_words: int
    inner_num_heads: int
    outer_num_heads: int
    mlp_ratio: float
    qkv_bias: bool
    epsilon: float
    squeeze_excitation: bool
    legacy: bool
    forms: Forms
    dtype: Any

    @nn.compact
    def __call__(
        self,
        words: jax.Array | None,
        sentences: jax.Array,
        keep: dict[str, jax.Array] | None = None,
        wanted: tuple[str, ...] = (),
    ) -> tuple[jax.Array | None, jax.Array, dict[str, jax.Array]]:
        """words, sentences, drop_path_factors or None -> (words, sentences, features of this block)."""
        features = {}
        batch = sentences.shape[0]
        if self.has_inner:
            lanes = self.num_words if self.forms.fused else 0
            words, weights = self._inner(words, keep, "inner_attention" in wanted)
            if weights is not None:
                features["inner_attention"] = weights.reshape(batch, -1, *weights.shape[1:])
            if "words" in wanted:
                shown = from_lanes(words, lanes) if lanes else words
                features["words"] = shown.reshape(batch, -1, *shown.shape[1:])
            project = Projection(sentences.shape[-1], self.epsilon, self.legacy, self.dtype, lanes, name="projection")
            sentences = sentences.at[:, 1:].add(project(words, batch))
        outer = OuterBlock(
            self.outer_num_heads,
            self.mlp_ratio,
            self.qkv_bias,
            self.epsilon,
            self.squeeze_excitation,
            self.forms.outer,
            self.dtype,
            name="outer",
        )
        sentences, weights = outer(sentences, keep, "outer_attention" in wanted)
        if weights is not None:
            features["outer_attention"] = weights
        if "sentences" in wanted:
            features["sentences"] = sentences
        return words, sentences, features

    def _inner(self, words, keep, return_weights: bool) -> tuple[jax.Array, jax.Array | None]:
        """words -> (words, attention [B * N, heads, M, M] or None). The kernel gives no attention; XLA's form does."""
        factors = (keep["inner_attention"], keep["inner_mlp"]) if keep else None
        if self.forms.fused and not return_weights:
            channels = words.shape[0] // self.num_words
            hidden = int(channels * self.mlp_ratio)
            sizes = Sizes(self.num_words, channels, self.inner_num_heads, hidden, self.epsilon, self.forms.interpret)
            params = self.variables["params"]["inner"]
            check_parameters(params, sizes, self.qkv_bias)
            return fused(words, params, factors, sizes), None
        inner = over_sentences(return_weights, keep is not None, self.forms.inner == "dot")(
            self.inner_num_heads,
            self.mlp_ratio,
            self.qkv_bias,
            self.epsilon,
            self.forms.inner,
            self.dtype,
            name="inner",
        )
        if not self.forms.fused:
            return inner(words, *(factors or (None, None)), return_weights)
        words, weights = inner(from_lanes(words, self.num_words), *(factors or (None, None)), return_weights)
        return to_lanes(words), weights


class TNT(nn.Module):
    """images [B, H, W, 3] float32, normalised -> logits [B, num_classes] float32.

    Build one with tnt_jax.create_model, which knows the published sizes. N = H W / patch_size^2 sentences of
    M = (patch_size / word_size)^2 words; `inner_dim` C and `outer_dim` D are their widths. Blocks outside `tnt_blocks`
    (1-based; None: all are in) have no inner path; without any TNT block the stem is DeiT's. `num_classes` 0 gives
    the normed class token [B, D] instead of logits. Parameters are float32; `dtype` is the arithmetic's.

    `scan` compiles like blocks that follow one another once, in a loop; parameters may then also come stacked
    (models/stacking.py).

    `remat` computes a block's activations again in the backward pass, from its inputs or (`remat_keeps` "products")
    from the outputs of its dense layers and kernels too: norms, GELU and attention alone are then computed twice.

    `inner_implementation` is the program of the inner blocks, with the same parameters and, up to rounding, the same
    numbers: "reference" (the definition), "xla" (its best form for the device), "pallas" (the fused TPU kernel) or
    "auto" (the kernel where it can be had, else xla). `device_kind` is the device that the model is compiled for, as
    jax names it ("TPU v5 lite", "cpu"); None: the default one. "interpreter" runs the kernel anywhere, for tests.

    Raises:
      ValueError: sizes that do not fit together, with the mend (models/checks.py).
    """

    num_classes: int = 1000
    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    word_size: int = 4
    inner_dim: int = 24
    outer_dim: int = 384
    inner_num_heads: int = 4
    outer_num_heads: int = 6
    depth: int = 12
    mlp_ratio: float = 4.0
    tnt_blocks: Sequence[int] | None = None
    word_position: bool = True
    sentence_position: bool = True
    squeeze_excitation: bool = False
    qkv_bias: bool = False
    legacy: bool = False
    norm_epsilon: float = 1e-5
    drop_path_rate: float = 0.0
    remat: bool = False
    remat_keeps: str = "inputs"
    scan: bool = False
    inner_implementation: str = "auto"
    device_kind: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        """Checks the sizes before anything is computed."""
        super().__post_init__()
        check_model(self)

    @property
    def input_size(self) -> tuple[int, int]:
        """(H, W) in pixels that the parameters are made for."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of sentences at `image_size`."""
        return grid_of(self.input_size, self.patch_size)

    @property
    def num_words(self) -> int:
        """M, the words in a sentence."""
        return (self.patch_size // self.word_size) ** 2

    @property
    def inner_blocks(self) -> tuple[int, ...]:
        """1-based indices of the blocks with an inner path."""
        return tuple(range(1, self.depth + 1)) if self.tnt_blocks is None else tuple(sorted(self.tnt_blocks))

    def drop_path_rates(self) -> list[float]:
        """-> [depth] probabilities: 0 in the first block, rising linearly to `drop_path_rate` in the last."""
        return [self.drop_path_rate * i / max(self.depth - 1, 1) for i in range(self.depth)]

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, return_features: bool | Sequence[str] = False
    ) -> jax.Array | tuple[jax.Array, Features]:
        """images [B, H, W, 3] -> logits [B, num_classes] float32, or (logits, features).

        Args:
          images: normalised. Another size than `image_size` is taken too, if patches divide it: the sentence position
            encodings are then interpolated for this call.
          train: draws drop path, from the "dropout" stream of `rngs`. Nothing else differs.
          return_features: True for sentences and words, or names among
            "sentences": after each block [B, 1 + N, D], class token first;
            "words": after each TNT block [B, N, M, C];
            "outer_attention": each block's [B, heads, 1 + N, 1 + N], rows are queries;
            "inner_attention": each TNT block's [B, N, heads, M, M].
            What is not named is not computed.
        """
        wanted = check_features(return_features)
        words, sentences = self._embed(images, grid_of(images.shape[1:3], self.patch_size))
        keys = None  # [depth, branches] where drop path is drawn
        if train and self.drop_path_rate:
            with jax.named_scope("drop_path_factors"):
                keys = jax.random.split(self.make_rng("dropout"), (self.depth, len(BRANCHES)))
        if self.scan and not self.is_initializing():
            sentences, features = self._scanned(words, sentences, keys, wanted)
        else:
            sentences, features = self._unrolled(words, sentences, keys, wanted)
        outputs = layer_norm("norm", self.norm_epsilon, self.dtype)(sentences)[:, 0].astype(jnp.float32)
        if self.num_classes:
            outputs = dense("head", self.num_classes, jnp.float32)(outputs)
        if not wanted:
            return outputs
        return outputs, {name: [block[name] for block in features if name in block] for name in wanted}

    def _embed(self, images: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array | None, jax.Array]:
        """images [B, H, W, 3] -> (words or None, sentences [B, 1 + N, D]), positions added.

        words [B * N, M, C]; [M * C, B * N] where the blocks are the kernel.
        """
        batch, words = images.shape[0], None
        if self.inner_blocks:
            stem = WordEmbedding(
                self.inner_dim, self.patch_size, self.word_size, self.legacy, self.dtype, name="word_embedding"
            )
            words = stem(images)
            if self.word_position:
                shape = (self.num_words, self.inner_dim)
                words = words + self.param("word_position", normal_init, shape, jnp.float32).astype(self.dtype)
            embed = SentenceEmbedding(self.outer_dim, self.norm_epsilon, self.dtype, name="sentence_embedding")
            sentences = embed(words, batch)
        else:
            sentences = PatchEmbedding(self.outer_dim, self.patch_size, self.dtype, name="patch_embedding")(images)
        class_token = self.param("class_token", normal_init, (self.outer_dim,), jnp.float32).astype(self.dtype)
        class_token = jnp.broadcast_to(class_token, (batch, 1, self.outer_dim))
        sentences = jnp.concatenate([class_token, sentences], axis=1)
        if self.sentence_position:
            shape = (1 + self.grid[0] * self.grid[1], self.outer_dim)
            positions = self.param("sentence_position", normal_init, shape, jnp.float32)
            positions = resize_sentence_positions(positions, self.grid, grid)
            sentences = sentences + positions.astype(self.dtype)
        if self.inner_blocks and self.block_settings(1)["forms"].fused:
            words = to_lanes(words)
        return words, sentences

    def block_settings(self, index: int) -> dict[str, Any]:
        """1-based block index -> TNTBlock's attributes."""
        shared = {field.name for field in dataclasses.fields(TNTBlock)} & {f.name for f in dataclasses.fields(TNT)}
        shared -= {"parent", "name"}
        return {
            "has_inner": index in self.inner_blocks,
            "num_words": self.num_words,
            "epsilon": self.norm_epsilon,
            # the kernel reads parameters that the modules of another form make
            "forms": MAKING_PARAMETERS if self.scope and self.is_initializing() else self.forms(),
            **{name: getattr(self, name) for name in shared},
        }

    def forms(self) -> Forms:
        """-> what the blocks are computed with on `device_kind`.

        Raises:
          ValueError: the kernel is asked for and cannot be had, with the reason.
        """
        hidden = int(self.inner_dim * self.mlp_ratio)
        sizes = Sizes(self.num_words, self.inner_dim, self.inner_num_heads, hidden, self.norm_epsilon, False)
        implementation = self.inner_implementation if self.inner_blocks else "xla"
        return Forms.of(implementation, self.device_kind, sizes, self.dtype)

    def _kept(self) -> dict[str, Any]:
        """-> the arguments of remat that say what a block keeps beside its inputs."""
        return {"policy": keep_products} if self.remat_keeps == "products" else {}

    def _unrolled(self, words, sentences, keys, wanted) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
        """-> (sentences [B, 1 + N, D], features of each block), every block compiled on its own."""
        if not self.is_initializing() and block_runs(self.variables.get("params", {})):
            raise ValueError(
                "the parameters are stacked, as a model with scan=True is trained, and this one has scan=False. Give "
                "tnt_jax.models.stacking.unstack_blocks(parameters), or set scan=True."
            )
        block_class = nn.remat(TNTBlock, static_argnums=(4,), **self._kept()) if self.remat else TNTBlock
        features = []
        for i, rate in enumerate(self.drop_path_rates()):
            block = block_class(**self.block_settings(i + 1), name=f"block_{i + 1}")
            keep = drop_path_factors(keys[i], rate, sentences) if keys is not None else None
            words, sentences, found = block(words, sentences, keep, wanted)
            features.append(found)
        return sentences, features

    def _scanned(self, words, sentences, keys, wanted) -> tuple[jax.Array, list[dict[str, jax.Array]]]:
        """-> (sentences [B, 1 + N, D], features of each block), each run of like blocks compiled once.

        Parameters may come stacked, as the training step has them, or block by block; these are stacked here.
        """
        features: list[dict[str, jax.Array]] = []
        stacked = stack_blocks(self.variables["params"])
        self._check_stacks(stacked)
        rates = jnp.array(self.drop_path_rates(), jnp.float32)
        for name, run in block_runs(stacked):
            block = TNTBlock(**self.block_settings(run.start), parent=None)

            def apply(carry, inputs, block=block):
                params, key, rate = inputs
                keep = drop_path_factors(key, rate, carry[1]) if key is not None else None
                *carry, found = block.apply({"params": params}, *carry, keep, wanted)
                return tuple(carry), found

            here = slice(run.start - 1, run.stop - 1)
            inputs = stacked[name], keys[here] if keys is not None else None, rates[here]
            body = jax.checkpoint(apply, prevent_cse=False, **self._kept()) if self.remat else apply
            (words, sentences), found = jax.lax.scan(body, (words, sentences), inputs)
            features += [jax.tree.map(lambda leaf, at=at: leaf[at], found) for at in range(len(run))]
        return sentences, features

    def _check_stacks(self, params: dict[str, Any]) -> None:
        """Raises ValueError where stacked parameters are those of other blocks than the model's."""
        found = [(index, "inner" in params[name]) for name, run in block_runs(params) for index in run]
        expected = [(index, index in self.inner_blocks) for index in range(1, self.depth + 1)]
        if found != expected:
            theirs = [index for index, inner in found if inner]
            raise ValueError(
                f"the parameters are of {len(found)} blocks, with an inner path in {theirs}; the model has "
                f"depth={self.depth} and tnt_blocks={list(self.inner_blocks)}. Give it the parameters of its blocks."
            )
