"""Features of a frozen model: the output of any block for every image of a split, as plain arrays."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tnt_jax.models import fast
from tnt_jax.models.config import Params
from tnt_jax.models.intermediates import forward_intermediates
from tnt_jax.models.tnt import TNT
from tnt_jax.training.config import Config
from tnt_jax.training.device_augment import normalize
from tnt_jax.training.input_pipeline import evaluation_batches, prefetch
from tnt_jax.training.state import replicate, unreplicate
from tnt_jax.training.steps import AXIS, Batch, for_platform, over_devices

KINDS = ("class_token", "mean")


class Features(NamedTuple):
    """Features and labels of the images of a split, in its order."""

    values: np.ndarray  # float32 [n, D]
    labels: np.ndarray  # int32 [n]


def block_features(params: Params, images: jax.Array, *, model: TNT, block: int, kind: str) -> jax.Array:
    """params, images [b, H, W, C] normalised -> [b, D] float32 of the sentences after `block` (1-based).

    kind: "class_token", or "mean" over the other sentences. The model's final norm is applied after any block, as in
    DINO (Caron et al. 2021, arXiv 2104.14294, get_intermediate_layers); the class token of the last block is then what
    the head sees. Once compiled, this does not compute later blocks.
    """
    model = fast.replace(model, scan=False)  # a scan would compute all blocks
    (sentences,) = forward_intermediates(
        model, {"params": params}, images, (block - 1,), norm=True, maps=False, class_token=True
    )
    sentences = sentences.astype(jnp.float32)
    return sentences[:, 0] if kind == "class_token" else sentences[:, 1:].mean(1)


def extract_features(
    model: TNT,
    params: Params,
    config: Config,
    split: str,
    *,
    block: int,
    kind: str,
) -> Features:
    """The labelled images of `split` (tfds notation) of config.data -> features, each once, in the split's order.

    Images are resized, cropped and normalised as for the evaluation of `config`, at the model's input_size; all devices
    (of all processes) share batches of eval_batch_size, and every process gets all features.
    block: 1-based; kind: see block_features.
    Raises ValueError for an unknown block or kind and for several labels per image, and the errors of the data package.
    """
    from tnt_jax.data import sources

    if not 1 <= block <= model.depth:
        raise ValueError(f"block={block}: the model has the blocks 1 to {model.depth}.")
    if kind not in KINDS:
        raise ValueError(f"features={kind!r}: must be one of {', '.join(KINDS)}.")
    if sources.open_dataset(config.data).several_labels:
        raise ValueError(
            f"config.data.name={config.data.name} has several labels per image; the linear probe and nearest "
            "neighbours need one. Set --config.data.name to a set with one."
        )
    settings = dataclasses.replace(config.data, eval_split=split)
    batches = evaluation_batches(settings, model, config.eval_batch_size)
    features_of = functools.partial(block_features, model=for_platform(model, jax.devices()), block=block, kind=kind)

    def step(params: Params, batch: Batch) -> dict[str, jax.Array]:
        values = features_of(params, normalize(batch["image"], config.data))
        kept = {"values": values, "labels": batch["label"], "index": batch["index"], "mask": batch["mask"]}
        return lax.all_gather(kept, AXIS, tiled=True)

    step, replicated = over_devices(step), replicate(params)
    found = [unreplicate(step(replicated, batch)) for batch in prefetch(batches, config.prefetch_batches)]
    together = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    order = np.argsort(together["index"], kind="stable")
    order = order[together["mask"][order] > 0]
    return Features(together["values"][order], together["labels"][order])
