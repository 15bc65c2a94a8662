"""Reads a source, such as a file on the hub, as named arrays. Knows formats and wrappers, but no models."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tnt_jax.pretrained.names import detect_scheme
from tnt_jax.workdir import WEIGHTS

TORCH_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
HUB_PREFIX = "hf-hub:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_SECONDS = 5  # to wait for the hub before it counts as unreachable
WRAPPERS = ("module.", "_orig_mod.")  # prefixes of DistributedDataParallel and torch.compile, in any order
_GAMMA = re.compile(r"\.gamma_([12])$")  # DeiT III's name for LayerScale; timm's is ls1.gamma
BEST, RAW, AVERAGED = WEIGHTS
# Keys that save_pretrained writes to a .safetensors file's metadata.
GRID_KEY, SIZES_KEY, NOTE_KEY = "sentence_grid", "tnt_jax_sizes", "tnt_jax_weights"
# safetensors types that can be read. Not those that NumPy lacks, such as float8, or float32 cannot hold (complex).
_READABLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


@dataclasses.dataclass(frozen=True)
class Weights:
    """One set of weights: float32 arrays by the file's own names and in its layout; `scheme` as in names.py.

    `source` describes where they come from and which set they are, for messages.
    """

    arrays: dict[str, np.ndarray]
    scheme: str
    source: str
    grid: tuple[int, int] | None = None  # (rows, columns) of the sentence positions; None: unknown
    kind: str = ""  # RAW or AVERAGED; "" for a file with one set of unknown kind
    step: int | None = None  # of the checkpoint
    sizes: dict[str, Any] | None = None  # of the model they belong to (sizes.py); None: unknown
    note: str = ""  # which weights a file holds, if its metadata has that

    @property
    def label(self) -> str:
        """Short description for outputs made with them: "raw weights of step 200", "weights of the file"."""
        of_file = "weights of the file" + (f" ({self.note})" if self.note else "")
        name = f"{self.kind} weights" if self.kind else of_file
        return name if self.step is None else f"{name} of step {self.step}"


def check_choice(choice: str) -> None:
    """Raises ValueError unless `choice` is one of WEIGHTS."""
    if choice not in WEIGHTS:
        raise ValueError(f"weights={choice!r}: must be one of {', '.join(WEIGHTS)}")


def read_weights(source: str | Path, choice: str = BEST) -> Weights:
    """A source (see load.load_pretrained; not a workdir) -> Weights.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not readable, or has no TNT or DeiT weights, or no averaged ones if these are requested.
    """
    check_choice(choice)
    if str(source).startswith(HUB_PREFIX):
        path = download(str(source).removeprefix(HUB_PREFIX))
    else:
        path = Path(os.path.expanduser(source))
    if not os.path.isfile(path):  # Path.is_file would raise for names that no file can have
        raise FileNotFoundError(
            f"{str(source)[:200]}: there is no such file; give a .safetensors, {', '.join(TORCH_SUFFIXES)} file, a "
            f"workdir of this project, or {HUB_PREFIX}OWNER/NAME"
        )
    if path.name.endswith(".safetensors"):
        found = _read_safetensors(path)
    elif path.name.endswith(TORCH_SUFFIXES):
        from tnt_jax.pretrained.torch_file import read_torch

        arrays, taken, kind = read_torch(path, choice)
        found = Weights(arrays, "", taken, kind=kind)
    else:
        raise ValueError(f"{path} is not a weights file; known endings are .safetensors, {', '.join(TORCH_SUFFIXES)}")
    if choice == AVERAGED and not found.kind:
        raise ValueError(f"{found.source} holds one set of weights, but not whether it is averaged")
    names = list(found.arrays)
    if wrong := [name for name, array in found.arrays.items() if not np.isfinite(array).all()]:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"{found.source} holds values that are not finite, or too large for float32, in "
            f"{', '.join(wrong[:3])}{more}; no model can use these weights"
        )
    found = dataclasses.replace(found, arrays=_unwrapped_names(found.arrays, found.source))
    scheme = detect_scheme(set(found.arrays))
    if scheme is None:
        first = ", ".join(names[:8]) or "nothing"
        raise ValueError(
            f"{found.source} holds neither timm's nor the official release's TNT, nor a DeiT; it holds {first[:500]}"
            f"{', ...' if len(names) > 8 else ''}"
        )
    logging.info("Read %d arrays with %s names from %s (%s)", len(found.arrays), scheme, found.source, found.label)
    return dataclasses.replace(found, scheme=scheme)


def check_hub_name(name: str) -> None:
    """Raises ValueError unless `name` is OWNER/NAME or OWNER/NAME@REVISION."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[^@\s]+)?", name, re.ASCII):
        raise ValueError(
            f"{HUB_PREFIX}{name}: give {HUB_PREFIX}OWNER/NAME or {HUB_PREFIX}OWNER/NAME@REVISION, such as "
            f"{HUB_PREFIX}timm/tnt_s_patch16_224.in1k"
        )


def download(name: str) -> Path:
    """OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub -> its weights file, from the cache if present.

    Raises:
      ValueError: there is no such repository, no weights in it, or no network and no cached file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    check_hub_name(name)
    source = HUB_PREFIX + name
    repository, _, revision = name.partition("@")
    unreachable = why_unreachable()
    for file in HUB_FILES:
        try:
            found = hf_hub_download(repository, file, revision=revision or None, local_files_only=bool(unreachable))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            continue
        except (OSError, ValueError) as error:
            raise ValueError(f"{source} cannot be fetched from the hub: {str(error).partition(chr(10))[0]}") from error
        if unreachable:
            logging.warning("Using %s from the cache: the hub cannot be reached (%s)", source, unreachable)
        return Path(found)
    if unreachable:
        raise ValueError(
            f"{source} is not in the cache and the hub cannot be reached ({unreachable}); check the network, or "
            f"download {HUB_FILES[0]} elsewhere and give its path"
        )
    raise ValueError(f"{source}: the repository has neither {' nor '.join(HUB_FILES)}")


def why_unreachable() -> str:
    """-> "" if the Hugging Face hub answers, else why not. One request, without 20 s of retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # the type depends on the session's HTTP library
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def _read_safetensors(path: Path) -> Weights:
    """A .safetensors file -> its arrays and the metadata of save_pretrained; does not set the naming scheme yet.

    Raises ValueError with the path, whatever is wrong with the file.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
            unread = [f"{name} ({kind})" for name, kind in types.items() if kind not in _READABLE]
            with np.errstate(over="ignore"):  # read_weights rejects infinite values
                arrays = {} if unread else {name: np.asarray(file.get_tensor(name), np.float32) for name in types}
            metadata = file.metadata() or {}
    except Exception as error:  # safetensors' own errors, and NumPy's for absurd shapes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path} cannot be read as safetensors ({reason[:300]}); is the download complete?") from error
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        raise ValueError(
            f"{path} has arrays of a type that cannot be read here: {', '.join(unread[:3])}{more}. "
            "Convert them to float32 where the file was made"
        )
    return Weights(arrays, "", str(path), **_read_notes(metadata, path))


def _read_notes(metadata: dict[str, str], path: Path) -> dict[str, Any]:
    """A .safetensors file's metadata -> the fields of Weights that save_pretrained stored, if any."""
    grid, sizes = metadata.get(GRID_KEY), metadata.get(SIZES_KEY)
    if grid is not None and not re.fullmatch("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", grid):
        raise ValueError(f"{path}: its metadata {GRID_KEY}={grid[:50]!r} is not ROWSxCOLUMNS; the file is damaged")
    try:
        sizes = None if sizes is None else json.loads(sizes)
    except (ValueError, RecursionError):
        sizes = ()
    if sizes is not None and not isinstance(sizes, dict):
        raise ValueError(f"{path}: its metadata {SIZES_KEY} is not a JSON object; the file is damaged")
    note = metadata.get(NOTE_KEY, "")[:200]
    return {"grid": grid and tuple(map(int, grid.split("x"))), "sizes": sizes, "note": note}


def _unwrapped_names(arrays: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Removes prefixes of training code from the names: PyTorch's wrappers, and a module that contains all names.

    LayerScales of DeiT III's release get timm's names.
    """
    plain = {}
    for name, array in arrays.items():
        while name.startswith(WRAPPERS):
            name = name.split(".", 1)[1]
        name = _GAMMA.sub(r".ls\1.gamma", name)
        if name in plain:
            raise ValueError(f"{source} holds {name} twice, with and without a wrapper's prefix; keep one of the two")
        plain[name] = array
    # Such as "model." or "backbone.". A whole model has names without a dot, such as its class token's.
    while (
        plain and len(shared := {name.partition(".")[0] for name in plain}) == 1 and all("." in name for name in plain)
    ):
        logging.info("Removing the prefix %r, which all names in %s have", f"{shared.pop()}.", source)
        plain = {name.partition(".")[2]: array for name, array in plain.items()}
    return plain
