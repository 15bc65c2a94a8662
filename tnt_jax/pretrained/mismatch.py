"""Says everything that keeps a source's arrays from fitting a model, and how the model would have to be made."""

import re
from collections.abc import Mapping
from typing import Any

from tnt_jax.pretrained.names import Entry, Path, Shape, our_path, our_shape
from tnt_jax.pretrained.sources import Weights

# Setting, the parameter that shows it, and on which axis.
_READ_OFF = (
    ("num_classes", "head/kernel", 1),
    ("outer_dim", "class_token", 0),
    ("inner_dim", "word_embedding/bias", 0),
    ("num_sentences", "sentence_position", 0),
    ("num_words", "sentence_embedding/norm1/scale", 0),  # times inner_dim
    ("patch_size", "patch_embedding/kernel", 0),
)


def check_kind(weights: Weights, shapes: Mapping[Path, Shape]) -> None:
    """Weights and the model's shapes -> None.

    Raises:
      ValueError: TNT's weights for a DeiT or the other way round, where not a name would match.
    """
    is_deit = ("patch_embedding", "kernel") in shapes
    if weights.scheme == "vit" and not is_deit:
        raise ValueError(
            f"{weights.source} holds a DeiT (a vision transformer without words) and the model is a TNT; "
            "make the model with create_model('deit_small_patch16_224') or its sisters, or with tnt_blocks=()"
        )
    if weights.scheme in ("timm", "official") and is_deit:
        raise ValueError(
            f"{weights.source} holds a TNT and the model is a DeiT, without any TNT block; "
            "make the model with create_model('tnt_s_patch16_224') or its sisters"
        )


def explain(weights: Weights, entries: list[Entry], new_head: str = "new_head=True") -> str:
    """Weights and what the model needs of them -> "" when every name and shape fits, else the message.

    `new_head` is how whoever reads the message would ask for a new head.
    """
    expected = {entry.name: entry.file_shape for entry in entries}
    found = {name: tuple(array.shape) for name, array in weights.arrays.items()}
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]
    unused = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name}: {list(found[name])} there, {list(shape)} expected"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if not missing and not unused and not misshapen:
        return ""
    lines = [f"{weights.source} does not fit the model:"]
    for title, names in (("missing", missing), ("unused", unused), ("misshapen", misshapen)):
        if names:
            lines += [f"{title} ({len(names)}):", *(f"  {name}" for name in names)]
    return "\n".join([*lines, *_mend(found, expected, weights.scheme, new_head)])


def _mend(found: dict[str, Shape], expected: dict[str, Shape], scheme: str, new_head: str) -> list[str]:
    """Shapes by name in the source and in the model -> what to change."""
    there, here = describe(found, scheme), describe(expected, scheme)
    different = {key: value for key, value in there.items() if key in here and here[key] != value}
    lines = []
    if different:
        change = ", ".join(f"{key}={value!r}" for key, value in different.items())
        now = ", ".join(f"{key}={here[key]!r}" for key in different)
        lines.append(
            f"The source looks like a model with {change}; this one has {now}. Make the model with the former."
        )
    if "num_classes" in different:
        lines.append(f"To keep this model's num_classes and start its head anew, load with {new_head}.")
    if "num_classes" in here and "num_classes" not in there:
        lines.append(f"The source has no head; load with {new_head} to start one anew, or set num_classes=0.")
    if "num_sentences" in different:
        lines.append(
            "Sentence positions are resized from one image size to another only where their old grid is known: "
            "a square, or as save_pretrained notes it."
        )
    if any(name.startswith(("dist_token", "head_dist")) for name in found):
        lines.append("The source is a distilled DeiT, which has a second token and head; take the plain one.")
    return lines


def describe(shapes: Mapping[str, Shape], scheme: str) -> dict[str, Any]:
    """Shapes by the scheme's names -> the create_model settings that they show, and num_sentences and num_words.

    Names that no TNT has are passed over. The numbers of heads and the norms' epsilon leave no trace in any file.
    """
    paths = {our_path(name, scheme): shape for name, shape in shapes.items()}
    ours = {"/".join(path): our_shape(path, shape, scheme) for path, shape in paths.items() if path is not None}
    settings: dict[str, Any] = {}
    for key, name, axis in _READ_OFF:
        if name in ours and len(ours[name]) > axis:
            settings[key] = ours[name][axis]
    if "num_sentences" in settings:
        settings["num_sentences"] -= 1  # the class token's
    if "num_words" in settings and settings.get("inner_dim"):
        settings["num_words"] //= settings["inner_dim"]
    indices = sorted({int(found[1]) for name in ours if (found := re.match(r"block_(\d+)/", name))})
    if not indices:
        return settings
    inner = tuple(i for i in indices if f"block_{i}/inner/norm1/scale" in ours)
    settings["depth"] = indices[-1]
    settings["tnt_blocks"] = None if len(inner) == len(indices) else inner
    settings["word_position"] = "word_position" in ours
    settings["sentence_position"] = "sentence_position" in ours
    settings["qkv_bias"] = any(name.endswith("query_key/bias") for name in ours)
    settings["squeeze_excitation"] = any("/squeeze_excitation/" in name for name in ours)
    if inner:
        settings["legacy"] = any(name.endswith("projection/dense/bias") for name in ours)
    return settings
