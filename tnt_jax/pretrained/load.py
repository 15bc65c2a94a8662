"""Loads and saves weights with every name accounted for: load_pretrained, load_model and save_pretrained."""

import dataclasses
import json
from pathlib import Path as FilePath

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.typing import VariableDict

from tnt_jax.models.complexity import parameter_shapes
from tnt_jax.models.config import Params
from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import VARIANTS, create_model, update
from tnt_jax.pretrained.adapt import adapt_channels, resize_positions, without_outer_tokens
from tnt_jax.pretrained.mismatch import check_kind, explain
from tnt_jax.pretrained.names import entries_for, file_name, settings_shown_by, to_arrays
from tnt_jax.pretrained.sizes import check_sizes, sizes_of
from tnt_jax.pretrained.sources import (
    BEST,
    GRID_KEY,
    HUB_PREFIX,
    NOTE_KEY,
    SIZES_KEY,
    Weights,
    check_hub_name,
    read_weights,
)
from tnt_jax.pretrained.workdir import is_folder, read_workdir
from tnt_jax.workdir import user_path, write_atomically

NUM_IMAGENET_CLASSES = 1000  # for weights without a head


def load_pretrained(
    source: str | FilePath,
    model: TNT | None,
    image_size: int | tuple[int, int] | None = None,
    *,
    new_head: bool = False,
    weights: str = BEST,
) -> VariableDict:
    """Published weights, or those of a run -> variables {"params": ...} of `model`, float32.

    Args:
      source: a .safetensors file; a PyTorch file (.pth, .pth.tar, .pt, .bin, .ckpt; needs PyTorch, which loads only
        weights and runs no code); hf-hub:OWNER/NAME[@REVISION]; or a workdir of this project, for its newest checkpoint
        (WORKDIR/checkpoints/STEP for another). Published files use the names of timm, of the official release or, for
        DeiT, of timm's VisionTransformer. They do not record the numbers of heads: these are the model's.
      model: the model that the weights are for; None with a workdir, which has its own.
      image_size: the model's image size in pixels, a side or (H, W); None: model.image_size. If the weights were
        trained at another size, the sentence positions, and nothing else, are resized (models/resize.py). A file that
        does not record the size is assumed to be trained on squares. If the model does not have three channels, a
        three-channel stem is adapted (timm's rule): summed for one channel, else repeated and scaled.
      new_head: if True, ignores the source's head and initialises the model's, the same in each call.
      weights: "best": of a run's two sets the one that its last evaluation found better, of a file's the averaged one
        (timm's choice); "raw" or "averaged": that set.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: the source cannot be read or has no such set, or does not fit the model: one error with every
        missing, unused and misshapen name, and how to make a model that fits. With num_classes=0 the source's head is
        ignored.
    """
    own_model, found = read_source(source, weights)
    model = own_model if model is None else model
    if model is None:
        raise ValueError(f"{source} does not say which model it is for; give one of tnt_jax.create_model")
    if image_size is not None:
        model = update(model, image_size=image_size)
    return {"params": fit(found, model, new_head)}


def load_model(source: str | FilePath, *, weights: str = BEST) -> tuple[TNT, VariableDict]:
    """A workdir of this project, or WORKDIR/checkpoints/STEP -> (its model, its variables {"params": ...}).

    `weights` as in load_pretrained.

    Raises:
      ValueError: not a workdir, or one without a checkpoint.
    """
    if not is_folder(source):
        raise ValueError(f"{source} is not a workdir of this project (a folder with config.json and checkpoints/)")
    model, found = read_workdir(source, weights)
    return model, {"params": fit(found, model)}


def read_source(source: str | FilePath, weights: str = BEST) -> tuple[TNT | None, Weights]:
    """Any source -> (its own model, None unless it is a workdir; the set of weights that `weights` selects).

    The only place that decides between raw and averaged weights. Arguments and errors as in load_pretrained.
    """
    return read_workdir(source, weights) if is_folder(source) else (None, read_weights(source, weights))


def read_published(source: str, weights: str = BEST) -> tuple[str, TNT, Weights]:
    """NAME:WEIGHTS or a hub address -> (the model's name, the model, the weights).

    The model has as many classes as the weights, and LayerScale if they have it, like DeiT III.
    """
    name, path = split_source(source)
    found = read_weights(path, weights)
    shown = settings_shown_by({name: array.shape for name, array in found.arrays.items()}, found.scheme)
    settings = {"num_classes": shown.get("num_classes", NUM_IMAGENET_CLASSES)}
    if shown.get("layer_scale"):
        settings["layer_scale"] = shown["layer_scale"]
        logging.warning("%s has LayerScale: %s is created with it", found.source, name)
    return name, create_model(name, **settings), found


def split_source(source: str) -> tuple[str, str]:
    """NAME:WEIGHTS or a hub address -> (the model's name, the weights). Raises ValueError with the accepted forms."""
    name, colon, weights = source.partition(":")
    if colon and name in VARIANTS and weights:
        return name, weights
    if source.startswith(HUB_PREFIX):
        check_hub_name(source.removeprefix(HUB_PREFIX))
        repository = source.removeprefix(HUB_PREFIX).partition("@")[0].rpartition("/")[2]
        name = repository.partition(".")[0]  # timm's names end with a tag: tnt_s_patch16_224.in1k
        if name in VARIANTS:
            return name, source
    raise ValueError(
        f"{source} does not say which model its weights are for, and is no folder. Put the model's name and a colon "
        f"in front, such as tnt_s_patch16_224:{weights or source if name in VARIANTS else source}; the names are "
        f"{', '.join(VARIANTS)}."
    )


def save_pretrained(path: str | FilePath, model: TNT, variables: VariableDict, *, note: str = "") -> None:
    """Writes variables of `model` to a .safetensors file with names and layouts of timm's TNT or VisionTransformer.

    timm reads it for the model of the same name. What timm's TNT cannot express (blocks without an inner path,
    squeeze-and-excitation, positions turned off or fixed) is written under the same names. load_pretrained restores
    the same bits. note: a description of these weights for the file's metadata.

    Raises:
      ValueError: the ending is not .safetensors, the variables are not this model's, or it is a TNT with LayerScale,
        for which there is no published name.
    """
    from safetensors.numpy import save

    path = user_path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: weights are written as .safetensors; choose a name with that ending")
    if "params" not in variables:
        raise ValueError(f'the variables to save must be {{"params": ...}}, got {", ".join(list(variables)[:5])}')
    params = flax.traverse_util.flatten_dict(variables["params"])
    arrays = {"/".join(name): np.asarray(leaf, np.float32) for name, leaf in params.items()}
    shapes = parameter_shapes(model)
    entries = entries_for(shapes, "own")
    if problem := explain(Weights(arrays, "own", "the variables to save"), entries):
        raise ValueError(problem)
    scheme = "timm" if model.inner_blocks else "vit"
    metadata = {"format": "pt", GRID_KEY: "x".join(map(str, model.grid)), SIZES_KEY: json.dumps(sizes_of(model))}
    if note:
        metadata[NOTE_KEY] = note
    write_atomically(path, save(to_arrays({entry.path: arrays[entry.name] for entry in entries}, scheme), metadata))
    logging.info("Wrote %d parameters to %s", sum(array.size for array in arrays.values()), path)


def fit(weights: Weights, model: TNT, new_head: bool = False, flag: str = "new_head=True") -> Params:
    """Weights -> the model's parameter tree. Raises one ValueError with all that does not fit (see load_pretrained).

    flag: how the caller spells `new_head`, for the message.
    """
    shapes = parameter_shapes(model)
    check_kind(weights, model)
    sizes = dict(weights.sizes or {})
    if new_head:  # a new head may use another pooling
        sizes.pop("pooling", None)
    check_sizes(sizes, model, weights.source)
    arrays = without_outer_tokens(weights)
    entries = entries_for(shapes, weights.scheme)
    fresh: dict[tuple[str, ...], jax.Array] = {}
    if new_head or not model.num_classes:
        head = {file_name(("head", leaf), weights.scheme) for leaf in ("kernel", "bias")}
        left = [name for name in arrays if name in head]
        arrays = {name: array for name, array in arrays.items() if name not in left}
        logging.info("Ignoring %s of %s", left, weights.source)
        fresh = _new_head(model)
        entries = [entry for entry in entries if entry.path not in fresh]
    arrays = adapt_channels(arrays, entries, weights, model.in_channels)
    arrays = resize_positions(arrays, entries, weights, model.grid)
    weights = dataclasses.replace(weights, arrays=arrays)
    if problem := explain(weights, entries, flag):
        raise ValueError(problem)
    read = {entry.path: jnp.asarray(entry.read(arrays[entry.name]), jnp.float32) for entry in entries}
    return flax.traverse_util.unflatten_dict(read | fresh)


def _new_head(model: TNT) -> dict[tuple[str, ...], jax.Array]:
    """-> the head's initial parameters by path, the same in each call; {} if the model has no head."""
    images = jnp.zeros((1, *model.input_shape), jnp.float32)
    make = jax.jit(lambda: model.init(jax.random.key(0), images)["params"].get("head", {}))  # jit skips everything else
    return {("head", *path): leaf for path, leaf in flax.traverse_util.flatten_dict(make()).items()}
