"""Writes miniature ILSVRC2012 archives of generated JPEGs, laid out like the real ones.

python -m tests.data.imagenet_archives MANUAL_DIR   (tfds' manual_dir, such as DATA_DIR/downloads/manual)

ILSVRC2012_img_train.tar holds one tar per synset (n02105855.tar) with its images (n02105855_2933.JPEG).
ILSVRC2012_img_val.tar holds ILSVRC2012_val_00000001.JPEG and so on, in another order and without labels: the k-th image
by name has the k-th label of a list in tfds. As in the real archives, sizes and aspect ratios vary, some images are
grey, one is a PNG named .JPEG, and one is CMYK.
"""

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

TRAIN, VALIDATION = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
# tfds repairs these two by name; both are in the real archive.
PNG_IMAGE, CMYK_IMAGE = "n02105855_2933.JPEG", "n02492035_15739.JPEG"


def class_names() -> list[str]:
    """Returns tfds' 1,000 synsets in label order."""
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    return Path(imagenet_common.label_names_file()).read_text().split()


def validation_synsets(count: int) -> list[str]:
    """Returns the synsets of the first `count` validation images by name."""
    import tensorflow_datasets as tfds

    path = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")
    return path.read_text().split()[:count]


def colour_of(synset: str) -> tuple[int, int, int]:
    """Returns the colour (red, green, blue in 0..255) of a synset's images, before noise; some are grey instead."""
    number = int(synset[1:])
    return tuple(40 + number // 7**power % 7 * 29 for power in range(3))


def encoded_image(synset: str, number: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """Encodes an image in the synset's colour; `number` seeds size and noise. kind: JPEG or PNG; mode: PIL's."""
    draw = np.random.default_rng(number)
    height, width = draw.integers(24, 49, 2)
    noise = draw.integers(-20, 21, (height, width, 1))
    pixels = np.clip(np.array(colour_of(synset)) + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def tar_of(files: dict[str, bytes]) -> bytes:
    """Names and contents -> an uncompressed tar, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def train_files(synsets: list[str], images_per_synset: int) -> dict[str, dict[str, bytes]]:
    """Returns {synset: {name: file}}; every fifth image is grey, and the two odd ones are in their own synsets."""
    files: dict[str, dict[str, bytes]] = {}
    for synset in synsets:
        files[synset] = {
            f"{synset}_{number}.JPEG": encoded_image(synset, number, mode="L" if number % 5 == 0 else "RGB")
            for number in range(1, images_per_synset + 1)
        }
    for name, kind, mode in ((PNG_IMAGE, "PNG", "RGB"), (CMYK_IMAGE, "JPEG", "CMYK")):
        synset = name.split("_")[0]
        files.setdefault(synset, {})[name] = encoded_image(synset, 0, kind, mode)
    return files


def make_archives(manual_dir: Path, images_per_synset: int = 5, num_validation: int = 10) -> None:
    """Writes both archives: training images for each synset of the validation images, and the two odd ones."""
    manual_dir.mkdir(parents=True, exist_ok=True)
    labels = validation_synsets(num_validation)
    synsets = sorted(set(labels))
    train = {f"{synset}.tar": tar_of(files) for synset, files in train_files(synsets, images_per_synset).items()}
    (manual_dir / TRAIN).write_bytes(tar_of(train))
    validation = {
        f"ILSVRC2012_val_{number:08d}.JPEG": encoded_image(synset, 100 + number)
        for number, synset in enumerate(labels, start=1)
    }
    (manual_dir / VALIDATION).write_bytes(tar_of(dict(reversed(validation.items()))))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("manual_dir", type=Path, help="folder for the two archives; created if missing")
    parser.add_argument("--images-per-synset", type=int, default=5)
    parser.add_argument("--num-validation", type=int, default=10)
    options = parser.parse_args()
    make_archives(options.manual_dir, options.images_per_synset, options.num_validation)


if __name__ == "__main__":
    main()
