"""Damaged weight files: each is read, or refused by one ValueError that names the file.

    python -m tests.fuzz.weights [--files=1500] [--seed=0]

Changes, inserts and removes bytes of .safetensors files and, where PyTorch is installed, of .pth files. Prints how many
were read and refused. Changed bytes of an array go unnoticed: neither format has checksums.
"""

import argparse
import collections
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")

HEAD = 20_000  # bytes from either end, where names, types and offsets are
TELLING = (0, 1, 0x22, 0x2E, 0x7F, 0x80, 0xFF)  # that matter in lengths, JSON, names, signs and text


def damaged(random: np.random.Generator, data: bytes) -> bytes:
    """Returns the file truncated, with a part removed or inserted, or with up to twelve bytes changed."""
    kind, start, length = random.integers(5), int(random.integers(len(data))), int(random.integers(1, 200))
    if kind == 0:
        return data[:start]
    if kind == 1:
        return data[:start] + data[start + length :]
    if kind == 2:
        return data[:start] + random.bytes(length) + data[start:]
    changed = bytearray(data)
    for _ in range(random.integers(1, 13)):
        place = int(random.integers(min(len(data), HEAD) if kind == 3 else len(data)))
        changed[place if random.random() < 0.6 else -1 - place] = random.choice((*TELLING, random.integers(256)))
    return bytes(changed)


def files() -> dict[str, list[bytes]]:
    """Returns sound files of one model by suffix: published, ours and, with PyTorch, as training scripts save them."""
    from safetensors.numpy import load_file

    from tests.pretrained import published
    from tnt_jax.pretrained import load_pretrained, save_pretrained

    source, model = published.weights_file("tnt_tiny"), published.model("tnt_tiny")
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own.safetensors"
        save_pretrained(own, model, load_pretrained(source, model))
        found = {".safetensors": [source.read_bytes(), own.read_bytes()]}
    try:
        import torch
    except ImportError:
        return found
    arrays = {name: torch.from_numpy(array) for name, array in load_file(source).items()}
    half = {f"model.{name}": array.bfloat16() for name, array in arrays.items()}
    contents = [
        arrays,
        {"model_state_dict": half, "args": argparse.Namespace(lr=1.0)},
        {"net": arrays, "dir": Path("a")},
    ]

    def saved(content: Any, **options: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream, **options)
        return stream.getvalue()

    found[".pth"] = [*map(saved, contents), saved(arrays, _use_new_zipfile_serialization=False)]
    return found


def run(count: int, random: np.random.Generator, folder: Path) -> collections.Counter[str]:
    """Returns how many files of each suffix were read and refused. The first that does neither stays in the folder."""
    from tests.pretrained import published
    from tnt_jax.pretrained import load_pretrained

    model, sound = published.model("tnt_tiny"), files()
    outcomes: collections.Counter[str] = collections.Counter()
    for _ in range(count):
        ending = random.choice(list(sound))
        path = folder / f"damaged{ending}"
        path.write_bytes(damaged(random, sound[ending][random.integers(len(sound[ending]))]))
        try:
            load_pretrained(path, model)
            outcomes[f"{ending} read"] += 1
        except ValueError as error:
            assert str(path) in str(error), f"{path} is not named: {error}"
            outcomes[f"{ending} refused"] += 1
    return outcomes


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="tnt_jax_fuzz_"))
    print(f"in {folder}:", dict(run(arguments.files, np.random.default_rng(arguments.seed), folder)))


if __name__ == "__main__":
    main()
