"""Reads torch.save files as named arrays without running code in them. Needs PyTorch, an optional extra."""

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

# Keys under which training scripts keep the weights, in search order: timm's first, then others'.
AVERAGED_KEYS = ("state_dict_ema", "model_ema")
RAW_KEYS = ("state_dict", "model", "model_state_dict", "net")


def read_torch(path: Path, choice: str) -> tuple[dict[str, np.ndarray], str, str]:
    """A torch.save file -> float32 arrays, the path with the key that was read, and "raw", "averaged" or "".

    choice: "best" prefers averaged weights. Raises ValueError with the path, whatever is wrong with the file.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            f"{path} needs PyTorch to be read: pip install torch (the CPU build will do), or give a .safetensors file"
        ) from error
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):  # timm's arguments
            warnings.simplefilter("ignore")  # PyTorch warns of unusual pickles when bytes are damaged
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything from PyTorch's unpickler
        raise ValueError(_explain(path, error)) from error
    if not isinstance(checkpoint, Mapping):
        raise ValueError(
            f"{path} holds a {type(checkpoint).__name__}, not a dictionary of weights; save its state_dict()"
        )
    state, key, kind = _unwrap(checkpoint, choice)
    taken = f"{path}, its {key!r}" if key else str(path)
    if choice == "averaged" and key and not kind == "averaged":
        raise ValueError(f"{path} has no averaged weights ({', '.join(AVERAGED_KEYS)}); it holds {_names(checkpoint)}")
    others = [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))]
    if others or not state:
        found = f"also {_names(others)}" if others else "nothing"
        hint = "; its averaged weights were not requested" if any(name in AVERAGED_KEYS for name in others) else ""
        raise ValueError(f"{taken} should hold only arrays but holds {found}{hint}")
    return {name: _as_array(tensor, f"{taken}: {name}") for name, tensor in state.items()}, taken, kind


def _unwrap(checkpoint: Mapping[str, Any], choice: str) -> tuple[Mapping[str, Any], str, str]:
    """A training script's checkpoint -> (its weights, their key, "raw" or "averaged"); (it, "", "") if it is plain."""
    kinds = {"best": ("averaged", "raw"), "raw": ("raw",), "averaged": ("averaged", "raw")}[choice]
    for kind in kinds:
        for key in AVERAGED_KEYS if kind == "averaged" else RAW_KEYS:
            if isinstance(checkpoint.get(key), Mapping):
                logging.info("Using %r of the checkpoint's %s", key, _names(checkpoint))
                return checkpoint[key], key, kind
    return checkpoint, "", ""


def _as_array(tensor: Any, where: str) -> np.ndarray:
    """A tensor -> float32. Raises ValueError for what float32 cannot hold, such as complex numbers."""
    try:
        if tensor.is_complex():
            raise ValueError(f"it is of {tensor.dtype}, but weights are real numbers")
        return tensor.detach().float().numpy()
    except Exception as error:  # sparse, quantised, packed and other tensors each raise their own type
        reason = str(error).partition("\n")[0][:300] or type(error).__name__
        raise ValueError(f"{where} cannot be read as an array of float32: {reason}") from error


def _explain(path: Path, error: Exception) -> str:
    """An error of torch.load -> a message with the cause and the fix."""
    said = str(error)
    foreign = re.search(r"GLOBAL ([\w.]*\w)", said)
    if foreign or "TorchScript" in said:
        what = foreign[1] if foreign else "TorchScript code"
        return (
            f"{path} holds more than arrays ({what}), and opening that runs code from the file.\n"
            "If you trust it, open it in PyTorch with weights_only=False and save only its state_dict."
        )
    reason = said.rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:300]
    if "weights_only" in reason:  # PyTorch's advice on how to run the file's code
        reason = ""
    return (
        f"{path} cannot be read as PyTorch weights ({type(error).__name__}{reason and ': '}{reason}); it is damaged, "
        "incomplete or another kind of file"
    )


def _names(values: Any) -> str:
    """The first names of a dictionary or list, for a message."""
    names = [str(value)[:50] for value in values]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
