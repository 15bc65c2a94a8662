"""Explains every mismatch between a source's arrays and a model, and how to make a model that fits."""

from tnt_jax.models.tnt import TNT
from tnt_jax.pretrained.names import Entry, Shape, settings_shown_by
from tnt_jax.pretrained.sources import Weights


def check_kind(weights: Weights, model: TNT) -> None:
    """Raises ValueError for TNT weights and a DeiT, or the other way round, where no name would match."""
    is_deit = not model.inner_blocks
    if weights.scheme == "vit" and not is_deit:
        raise ValueError(
            f"{weights.source} holds a DeiT (a vision transformer without words), but the model is a TNT; "
            "make the model with create_model('deit_small_patch16_224') or another DeiT, or with tnt_blocks=()"
        )
    if weights.scheme in ("timm", "official") and is_deit:
        raise ValueError(
            f"{weights.source} holds a TNT but the model is a DeiT, without any TNT block; "
            "make the model with create_model('tnt_s_patch16_224') or another TNT"
        )


def explain(weights: Weights, entries: list[Entry], new_head: str = "new_head=True") -> str:
    """Weights and the entries that the model needs -> "" if every name and shape fits, else the message.

    new_head: the option with which the reader of the message requests a new head.
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
    return "\n".join([*lines, *_fix(found, expected, weights.scheme, new_head)])


def _fix(found: dict[str, Shape], expected: dict[str, Shape], scheme: str, new_head: str) -> list[str]:
    """Shapes by name in the source and in the model -> lines that say how to fix it."""
    there, here = settings_shown_by(found, scheme), settings_shown_by(expected, scheme)
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
