"""From a source, such as a file or a run, to named arrays. Knows formats and wrappings; nothing about any model."""

import argparse
import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from tnt_jax.pretrained.names import detect_scheme

TORCH_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin")
HUB_PREFIX = "hf-hub:"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
# Where training scripts keep the weights, in the order in which timm looks.
EMA_KEYS = ("state_dict_ema", "model_ema")
RAW_KEYS = ("state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile, in any order


@dataclasses.dataclass(frozen=True)
class Weights:
    """Arrays by the file's own names, in its layout and float32; `scheme` as in names.py; `source` for messages.

    `grid` (rows, columns) is the one that the sentence positions lie on, where the source says so.
    """

    arrays: dict[str, np.ndarray]
    scheme: str
    source: str
    grid: tuple[int, int] | None = None


def read_weights(source: str | Path, ema: bool = True) -> Weights:
    """A source (see load.load_pretrained; not a workdir) -> Weights.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not readable, or holding no TNT's or DeiT's weights.
    """
    if str(source).startswith(HUB_PREFIX):
        path = download(str(source).removeprefix(HUB_PREFIX))
    else:
        path = Path(source).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: there is no such file; give a .safetensors, {', '.join(TORCH_SUFFIXES)} file, a workdir of this "
            f"project, or {HUB_PREFIX}OWNER/NAME"
        )
    grid = None
    if path.name.endswith(".safetensors"):
        arrays, grid = _read_safetensors(path)
        taken = str(path)
    elif path.name.endswith(TORCH_SUFFIXES):
        arrays, taken = _read_torch(path, ema)
    else:
        raise ValueError(f"{path} is no weights file; known endings are .safetensors, {', '.join(TORCH_SUFFIXES)}")
    arrays = _unwrapped_names(arrays, taken)
    scheme = detect_scheme(set(arrays))
    if scheme is None:
        first = ", ".join(list(arrays)[:8]) or "nothing"
        raise ValueError(
            f"{taken} holds neither timm's nor the official release's TNT, nor a DeiT; it holds {first}"
            f"{', ...' if len(arrays) > 8 else ''}"
        )
    logging.info("Read %d arrays with %s names from %s", len(arrays), scheme, taken)
    return Weights(arrays, scheme, taken, grid)


def download(name: str) -> Path:
    """OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face hub -> its weights file, from the cache if it is there.

    Raises:
      ValueError: no such repository or weights in it, or no network.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    source = HUB_PREFIX + name
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1:
        raise ValueError(f"{source}: give {HUB_PREFIX}OWNER/NAME or {HUB_PREFIX}OWNER/NAME@REVISION")
    for file in HUB_FILES:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError as error:
            raise ValueError(
                f"{source} is not in the cache and the hub cannot be reached; check the network, or download "
                f"{HUB_FILES[0]} elsewhere and give its path"
            ) from error
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ValueError(f"{source} cannot be had from the hub: {error}") from error
    raise ValueError(f"{source}: the repository has neither {' nor '.join(HUB_FILES)}")


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], tuple[int, int] | None]:
    """A .safetensors file -> its arrays, and the sentences' grid where save_pretrained noted it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}
            noted = (file.metadata() or {}).get("sentence_grid")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read as safetensors ({error}); is the download complete?") from error
    grid = tuple(int(side) for side in noted.split("x")) if noted else None
    return arrays, grid


def _read_torch(path: Path, ema: bool) -> tuple[dict[str, np.ndarray], str]:
    """A file of torch.save -> its arrays, and the path with the dictionary taken from it. Runs no code of the file."""
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} needs PyTorch to be read: pip install torch (the CPU build will do), or give a .safetensors file"
        ) from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's checkpoints carry their arguments
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be read as PyTorch weights (weights_only=True): {error}") from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"{path} holds a {type(checkpoint).__name__}, not a dictionary of weights; save its state_dict()"
        )
    state, key = _unwrap(checkpoint, ema)
    taken = f"{path}, its {key!r}" if key else str(path)
    others = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others or not state:
        found = f"also {', '.join(map(str, others[:8]))}" if others else "nothing"
        hint = "" if ema else "; averaged weights are read with ema=True"
        raise ValueError(f"{taken} should hold arrays alone and holds {found}{hint}")
    return {name: tensor.detach().float().numpy() for name, tensor in state.items()}, taken


def _unwrap(checkpoint: dict[str, Any], ema: bool) -> tuple[dict[str, Any], str]:
    """A training script's checkpoint -> (the weights in it, their key there); ("" where it is the weights itself)."""
    for key in (*(EMA_KEYS if ema else ()), *RAW_KEYS):
        if isinstance(checkpoint.get(key), dict):
            logging.info("Taking %r of the checkpoint's %s", key, sorted(map(str, checkpoint)))
            return checkpoint[key], key
    return checkpoint, ""


def _unwrapped_names(arrays: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Names without the prefixes that PyTorch's wrappers put in front."""
    plain = {}
    for name, array in arrays.items():
        while name.startswith(WRAPPERS):
            name = name.split(".", 1)[1]
        if name in plain:
            raise ValueError(f"{source} holds {name} twice, with and without a wrapper's prefix; keep one of the two")
        plain[name] = array
    return plain
