"""Damaged image files: each is decoded or refused as faulty, within limits of time and memory, without a crash.

    python -m tests.fuzz.images [--files 20000] [--seed 0]

Writes random JPEG, PNG, GIF, WebP, BMP, TIFF and .npy files of all kinds that Pillow and NumPy write, changes bytes,
truncates them or joins two, and decodes them as training does. Prints how many of each format were decoded and refused.
A file that raises another error, or takes more than a second of CPU time or a gigabyte of memory, stays in the current
folder as damaged.bin. So does one that crashes the process (a fault in a library): it is written before decoding.
"""

import argparse
import collections
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tnt_jax.data import decoding

MANY = {"save_all": True}  # two frames
KINDS = {
    "JPEG": (("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"subsampling": 0})),
    "PNG": (("RGB", {}), ("RGBA", {}), ("P", {}), ("L", {}), ("LA", {}), ("1", {}), ("I;16", {})),
    "GIF": (("P", {}), ("L", {}), ("P", MANY)),
    "WEBP": (("RGB", {}), ("RGBA", {}), ("RGB", {"lossless": True}), ("RGB", MANY)),
    "BMP": (("RGB", {}), ("L", {}), ("P", {}), ("1", {})),
    "TIFF": (
        ("RGB", {}),
        ("CMYK", {}),
        ("L", {"compression": "tiff_lzw"}),
        ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "jpeg"}),
        ("1", {"compression": "group4"}),
        ("L", MANY),
        ("RGBX", {}),
    ),
    "NPY": (("RGB", {}), ("I;16", {})),
}
SUSPECT = Path("damaged.bin")
SECONDS, BYTES = 1.0, 1 << 30


def some_file(random: np.random.Generator, kind: str) -> bytes:
    """Makes a file of a format with random noise, sometimes with an EXIF orientation."""
    mode, options = KINDS[kind][random.integers(len(KINDS[kind]))]
    height, width = random.integers(1, 60, 2)
    pixels = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    if kind in ("JPEG", "PNG", "WEBP") and random.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = int(random.integers(10))
        options = {**options, "exif": exif}
    if "save_all" in options:
        options = options | {"append_images": [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]}
    file = io.BytesIO()
    if kind == "NPY":
        np.save(file, np.atleast_3d(np.asarray(image)))
    else:
        image.save(file, kind, **options)
    return file.getvalue()


def damaged(random: np.random.Generator, data: bytes, other: bytes) -> bytes:
    """Returns the file with up to eight bytes changed, half of them in the header; truncated; or with another's end."""
    what = random.random()
    if what < 0.15:
        return data[: random.integers(len(data))]
    if what < 0.25:
        return data[: random.integers(len(data))] + other[random.integers(len(other)) :]
    changed = bytearray(data)
    for _ in range(random.integers(1, 9)):
        end = len(changed) if random.random() < 0.5 else min(len(changed), 200)
        changed[random.integers(end)] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.integers(256)])
    return bytes(changed)


def peak_memory() -> int:
    """Returns this process's peak memory in bytes. getrusage's figure also counts the process that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def run(files: int, random: np.random.Generator) -> dict[str, dict[str, int]]:
    """Returns {format: how many files were decoded and refused}. Raises what a file raises, except Undecodable."""
    counts = {kind: collections.Counter() for kind in KINDS}
    slowest = 0.0
    for number in range(files):
        kind = list(KINDS)[number % len(KINDS)]
        data = damaged(random, some_file(random, kind), some_file(random, str(random.choice(list(KINDS)))))
        SUSPECT.write_bytes(data)
        started = time.process_time()
        try:
            channels = decoding.Channels(int(random.choice([1, 3, 4])), int(random.choice([8, 16])))
            image = decoding.decode(data, bool(random.integers(2)), channels)
            if image.size[0] * image.size[1] < 1 << 24:
                image.resize((8, 8), Image.Resampling.BICUBIC)
            counts[kind]["decoded"] += 1
        except decoding.Undecodable:
            counts[kind]["refused"] += 1
        seconds = time.process_time() - started
        slowest = max(slowest, seconds)
        if seconds > SECONDS or peak_memory() > BYTES:
            raise RuntimeError(f"{kind}, kept as {SUSPECT}: {seconds:.1f} s, peak memory {peak_memory() >> 20} MiB")
    SUSPECT.unlink()
    print(f"slowest file: {1000 * slowest:.0f} ms; peak memory {peak_memory() >> 20} MiB")
    return {kind: dict(found) for kind, found in counts.items()}


def main() -> None:
    """Prints the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for kind, found in run(arguments.files, np.random.default_rng(arguments.seed)).items():
        print(f"{kind}: {', '.join(f'{count} {outcome}' for outcome, count in sorted(found.items()))}")


if __name__ == "__main__":
    main()
