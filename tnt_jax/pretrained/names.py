"""Parameter names and array layouts of published files.

Three naming schemes of PyTorch files and this project's own:
  timm      timm's TNT: pixel_embed, patch_pos, blocks.0.attn_in, ...
  official  the authors' release: patch_embed, outer_pos, blocks.0.inner_attn, ...
  vit       timm's VisionTransformer, which DeiT's release shares: pos_embed, blocks.0.attn.qkv, ...
  own       a checkpoint of this project: the path in the parameter tree, joined by "/"

Layouts: PyTorch keeps a dense layer as [out, in] (here [in, out]), a convolution as [out, in, h, w] (here
[h, w, in, out]), and gives tokens and position encodings a leading axis of one. timm's word positions are
[1, C, h, w], the official ones [1, M, C]; here [M, C]. Only transposes and reshapes: the conversion is bit-exact.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

Path = tuple[str, ...]
Shape = tuple[int, ...]

SCHEMES = ("timm", "official", "vit", "own")

_STEM = {
    "timm": {
        "word_embedding": "pixel_embed.proj",
        "word_position": "pixel_pos",
        "sentence_embedding/norm1": "norm1_proj",
        "sentence_embedding/dense": "proj",
        "sentence_embedding/norm2": "norm2_proj",
        "sentence_position": "patch_pos",
    },
    "official": {
        "word_embedding": "patch_embed.proj",
        "word_position": "inner_pos",
        "sentence_embedding/norm1": "proj_norm1",
        "sentence_embedding/dense": "proj",
        "sentence_embedding/norm2": "proj_norm2",
        "sentence_position": "outer_pos",
    },
    "vit": {"patch_embedding": "patch_embed.proj", "sentence_position": "pos_embed"},
}
_BLOCK = {
    "timm": {
        "inner/norm1": "norm_in",
        "inner/attention": "attn_in",
        "inner/norm2": "norm_mlp_in",
        "inner/mlp": "mlp_in",
        "projection/norm1": "norm1_proj",
        "projection/dense": "proj",
        "projection/norm2": "norm2_proj",
        "outer/norm1": "norm_out",
        "outer/attention": "attn_out",
        "outer/norm2": "norm_mlp",
        "outer/mlp": "mlp",
    },
    "official": {
        "inner/norm1": "inner_norm1",
        "inner/attention": "inner_attn",
        "inner/norm2": "inner_norm2",
        "inner/mlp": "inner_mlp",
        "projection/norm1": "proj_norm1",
        "projection/dense": "proj",
        "projection/norm2": "proj_norm2",
        "outer/norm1": "outer_norm1",
        "outer/attention": "outer_attn",
        "outer/norm2": "outer_norm2",
        "outer/mlp": "outer_mlp",
    },
    "vit": {
        "outer/norm1": "norm1",
        "outer/attention": "attn",
        "outer/norm2": "norm2",
        "outer/mlp": "mlp",
        "outer/layer_scale1": "ls1",
        "outer/layer_scale2": "ls2",
    },
}
# Only the official release has squeeze-and-excitation; the other schemes borrow its names.
_SQUEEZE = {
    "outer/squeeze_excitation/norm": "se_layer.fc.0",
    "outer/squeeze_excitation/dense1": "se_layer.fc.1",
    "outer/squeeze_excitation/dense2": "se_layer.fc.3",
}
_INSIDE = {
    "attention": {"query_key": "qk", "value": "v", "output": "proj"},
    "mlp": {"dense1": "fc1", "dense2": "fc2"},
}
_LEAVES = {"bias": "bias", "gamma": "gamma"}  # same name in both; all others are "weight" in a file
_TOKENS = ("class_token", "sentence_position", "word_position")
# Setting of create_model (or a count derived from it), the parameter whose shape shows it, and the axis.
_READ_OFF = (
    ("num_classes", "head/kernel", 1),
    ("outer_dim", "class_token", 0),
    ("inner_dim", "word_embedding/bias", 0),
    ("num_sentences", "sentence_position", 0),
    ("num_words", "sentence_embedding/norm1/scale", 0),  # times inner_dim
    ("patch_size", "patch_embedding/kernel", 0),
    ("in_channels", "patch_embedding/kernel", 2),
    ("in_channels", "word_embedding/kernel", 2),
)
FUSED = ("query_key", "value")  # one fused projection `qkv` in the vit scheme: first 2 D rows, last D rows


def _modules(scheme: str) -> dict[str, str]:
    """A scheme -> {our module, blocks as "block/...": its name, blocks as "blocks.#...."}."""
    table = {**_STEM[scheme], "class_token": "cls_token", "norm": "norm", "head": "head"}
    for module, name in {**_BLOCK[scheme], **_SQUEEZE}.items():
        inside = _INSIDE.get(module.rsplit("/", 1)[1], {"": ""})
        for ours, theirs in inside.items():
            theirs = "qkv" if scheme == "vit" and ours in FUSED else theirs
            table[f"block/{module}/{ours}".rstrip("/")] = f"blocks.#.{name}.{theirs}".rstrip(".")
    return table


_MODULES = {scheme: _modules(scheme) for scheme in SCHEMES if scheme != "own"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A parameter and the file's array that holds it: `path` and `shape` are ours, `name` is the file's."""

    path: Path
    shape: Shape
    name: str
    scheme: str

    @property
    def fused(self) -> bool:
        """True where the file's array holds query, key and value together."""
        return self.scheme == "vit" and len(self.path) > 2 and self.path[-2] in FUSED

    @property
    def file_shape(self) -> Shape:
        """The shape of the file's array (of the whole qkv where it is fused)."""
        shape = to_file(np.broadcast_to(np.float32(0), self.shape), self.path, self.scheme).shape
        if not self.fused:
            return shape
        return (shape[0] * 3 // (2 if self.path[-2] == "query_key" else 1), *shape[1:])

    def read(self, array: np.ndarray) -> np.ndarray:
        """The file's array [*file_shape] -> our parameter [*shape], in the file's type."""
        if self.fused:
            border = array.shape[0] // 3 * 2
            array = array[:border] if self.path[-2] == "query_key" else array[border:]
        return from_file(array, self.path, self.scheme)


def to_file(array: np.ndarray, path: Path, scheme: str) -> np.ndarray:
    """Our parameter -> its array in the file's layout (its rows of qkv where that is fused)."""
    if scheme == "own":
        return array
    if path[-1] == "class_token":
        return array[None, None]
    if path[-1] == "word_position" and scheme == "timm":
        side = round(array.shape[0] ** 0.5)
        return array.T.reshape(1, array.shape[1], side, side)
    if path[-1] in _TOKENS:
        return array[None]
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def from_file(array: np.ndarray, path: Path, scheme: str) -> np.ndarray:
    """The inverse of to_file."""
    if scheme == "own":
        return array
    if path[-1] == "class_token":
        return array[0, 0]
    if path[-1] == "word_position" and scheme == "timm":
        return array.reshape(array.shape[1], -1).T
    if path[-1] in _TOKENS:
        return array[0]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def our_shape(path: Path, shape: Shape, scheme: str) -> Shape:
    """The shape of a file's array -> the shape in our layout, whether or not it fits any model."""
    if scheme == "own":
        return shape
    if path[-1] in _TOKENS:
        return shape[-1:] if path[-1] == "class_token" else shape[1:]
    return tuple(shape[axis] for axis in (2, 3, 1, 0)) if len(shape) == 4 else shape[::-1]


def file_name(path: Path, scheme: str) -> str:
    """Our path, such as ("block_3", "inner", "norm1", "scale") -> the scheme's name, "blocks.2.norm_in.weight".

    Raises:
      ValueError: the scheme has no name for it.
    """
    if scheme == "own":
        return "/".join(path)
    block = re.fullmatch(r"block_(\d+)", path[0])
    module = "/".join(("block", *path[1:-1])) if block else "/".join(path[:-1]) or path[0]
    if path[-1] == "gamma" and scheme != "vit":
        raise ValueError(
            f"published TNT models have no LayerScale, and no name for {'/'.join(path)}: make the model with "
            "layer_scale=0. Weights with LayerScale can only be kept in a workdir."
        )
    if module not in _MODULES[scheme] or path[-1] not in (*_TOKENS, "bias", _weight(path)):
        raise ValueError(
            f"the {scheme} naming scheme has no name for {'/'.join(path)}; tnt_jax/pretrained/names.py has all names"
        )
    name = _MODULES[scheme][module]
    if block:
        name = name.replace("#", str(int(block[1]) - 1))
    if path[-1] in _TOKENS:
        return name
    return f"{name}.{_LEAVES.get(path[-1], 'weight')}"


def our_path(name: str, scheme: str) -> Path | None:
    """A file's name -> our path (of query_key where it is fused), or None for a name that no TNT has."""
    if scheme == "own":
        return tuple(name.split("/"))
    block = re.match(r"blocks\.(\d+)\.", name)
    stem, _, leaf = name.rpartition(".")
    module, leaf = (stem, leaf) if leaf in ("weight", *_LEAVES) else (name, "")
    if block:
        module = module.replace(block[0], "blocks.#.", 1)
    ours = next((key for key, value in _MODULES[scheme].items() if value == module), None)
    if ours is None or bool(leaf) == (ours in _TOKENS):
        return None
    path = tuple(ours.split("/"))
    if block:
        path = (f"block_{int(block[1]) + 1}", *path[1:])
    if not leaf:
        return path
    return (*path, leaf if leaf in _LEAVES else _weight((*path, "")))


def _weight(path: Path) -> str:
    """Our path of a parameter -> the name of its weight: scale in norms, gamma in LayerScales, else kernel."""
    module = path[-2] if len(path) > 1 else ""
    return "scale" if module.startswith("norm") else "gamma" if module.startswith("layer_scale") else "kernel"


def detect_scheme(names: set[str]) -> str | None:
    """The names in a file -> "timm", "official" or "vit", by names unique to each, or None."""
    marks = {
        "official": ("outer_pos", "inner_pos", ".outer_attn."),
        "timm": ("patch_pos", "pixel_pos", ".attn_out."),
        "vit": ("pos_embed", ".attn.qkv."),
    }
    for scheme, signs in marks.items():
        if any(name == sign or (sign.startswith(".") and sign in name) for name in names for sign in signs):
            return scheme
    return None


def entries_for(shapes: dict[Path, Shape], scheme: str) -> list[Entry]:
    """The shapes of our parameters by path -> the entry of each in a file of that scheme."""
    return [Entry(path, shape, file_name(path, scheme), scheme) for path, shape in shapes.items()]


def to_arrays(params: dict[Path, np.ndarray], scheme: str) -> dict[str, np.ndarray]:
    """Our parameters by path -> the file's contiguous arrays by name, with query, key and value joined where fused."""
    parts: dict[str, list[tuple[Path, np.ndarray]]] = {}
    for path, array in params.items():
        parts.setdefault(file_name(path, scheme), []).append((path, to_file(array, path, scheme)))
    arrays = {}
    for name, found in parts.items():
        ordered = sorted(found, key=lambda part: part[0][-2:-1] == ("value",))  # query_key first
        arrays[name] = np.ascontiguousarray(np.concatenate([array for _, array in ordered]))
    return arrays


def settings_shown_by(shapes: Mapping[str, Shape], scheme: str) -> dict[str, object]:
    """Shapes by the scheme's names -> the create_model settings that they show, and num_sentences and num_words.

    Ignores names that no TNT has. No shape shows the numbers of heads and the norms' epsilon.
    """
    paths = {our_path(name, scheme): shape for name, shape in shapes.items()}
    ours = {"/".join(path): our_shape(path, shape, scheme) for path, shape in paths.items() if path is not None}
    settings: dict[str, object] = {}
    for key, name, axis in _READ_OFF:
        if name in ours and len(ours[name]) > axis:
            settings[key] = ours[name][axis]
    if "num_sentences" in settings:
        settings["num_sentences"] -= 1  # without the class token
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
    settings["layer_scale"] = 1e-5 if any("/layer_scale" in name for name in ours) else 0.0  # any initial value will do
    settings["squeeze_excitation"] = any("/squeeze_excitation/" in name for name in ours)
    if inner:
        settings["legacy"] = any(name.endswith("projection/dense/bias") for name in ours)
    return settings
