"""A small data set held whole in memory: decoded once, then addressed by number, without TensorFlow in the loop.

The order, the repeated copies and the augmentation seeds are those of every other source (order.py), so a batch is a
function of (seed, step) here too, and a resumed run goes on with the same samples. What is drawn from a seed, and the
cropping itself, happen on the device (training/crops.py).
"""

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Iterator

import numpy as np

from tnt_jax.data import order, reading, sources, synthetic
from tnt_jax.data.faulty import FaultyImages, Undecodable
from tnt_jax.data.settings import DataSettings

_CHUNK = 1000  # examples decoded by one call


def load(
    settings: DataSettings, image_size: tuple[int, int], faulty: FaultyImages | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """-> images uint8 [n, h, w, 3] and labels int32 [n] of data.train_split, in the split's order.

    h and w are the images' own; "synthetic" ones come at `image_size`. An example that cannot be decoded is noted in
    `faulty` and is a copy of another one that order.replacement draws. Raises ValueError that names the examples where
    these are more than data.max_faulty_images, for an image of another size than the first, and for a label out of
    range.
    """
    source = sources.open_source(settings)
    split = source.open_split(settings.train_split)
    numbers = np.arange(split.num_examples, dtype=np.int64)
    if isinstance(split, sources.SyntheticSplit):
        images, labels = synthetic.synthetic_examples(numbers, image_size)
        return images, labels.astype(np.int32)
    chunks = np.split(numbers, np.arange(_CHUNK, len(numbers), _CHUNK))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(functools.partial(_decoded, split), chunks))
    images = list(itertools.chain.from_iterable(part[0] for part in parts))
    labels = np.concatenate([part[1] for part in parts])
    _replace_faulty(split, images, labels, settings.max_faulty_images, FaultyImages() if faulty is None else faulty)
    shape = images[0].shape
    for number, image in zip(numbers, images, strict=True):
        if image.shape != shape:
            raise ValueError(
                f"{split.where(int(number))} has {image.shape[0]} x {image.shape[1]} pixels, the first example "
                f"{shape[0]} x {shape[1]}: data.on_device needs images of one size. Set --config.data.on_device=False."
            )
    wrong = np.flatnonzero((labels < 0) | (labels >= source.num_classes))
    if len(wrong):
        raise ValueError(
            f"{split.where(int(wrong[0]))} has the label {labels[wrong[0]]}; labels are 0 to {source.num_classes - 1}."
        )
    return np.stack(images), labels.astype(np.int32)


def _decoded(split: sources.Split, numbers: np.ndarray) -> tuple[list[np.ndarray | Undecodable], np.ndarray]:
    """Examples by number -> (images uint8 [h, w, 3], each of its own size, or what is wrong with it; labels [m])."""
    images, labels = [], []
    for number, record in zip(numbers, reading.read_records(split, numbers), strict=True):
        try:
            image, label = reading.decode(split, record, int(number))
            images.append(image.numpy())
            labels.append(label)
        except Undecodable as error:
            images.append(error)
            labels.append(0)
    return images, np.array(labels, np.int64)


def _replace_faulty(
    split: sources.Split, images: list[np.ndarray | Undecodable], labels: np.ndarray, limit: int, faulty: FaultyImages
) -> None:
    """Puts another example in place of each that could not be decoded; the same one in every run."""
    for number in [number for number, image in enumerate(images) if isinstance(image, Undecodable)]:
        faulty.add("train", split.where(number), str(images[number]))
        faulty.check_limit("train", limit)
    sound = [number for number, image in enumerate(images) if not isinstance(image, Undecodable)]
    if not sound:
        raise ValueError(f"{split.name}: none of the {len(images)} images can be decoded.")
    for number in sorted(set(range(len(images))) - set(sound)):
        other = sound[order.replacement(0, 0, number, 1, len(sound))]
        images[number], labels[number] = images[other], labels[other]


def train_batches(
    labels: np.ndarray,
    *,
    copies: int,
    batch_size: int,
    seed: int,
    start_step: int,
    local_devices: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the batches of steps start_step, start_step + 1, ...; endless, made of numbers alone.

    With d = local_devices and b = batch_size / (process_count * d), a batch has "index" int32 [d, b] (the example's
    number), "seed" uint32 [d, b, 2] (of its augmentation), "label" int32 [d, b] and "mask" float32 [d, b] (all 1).
    """
    steps = order.TrainOrder(len(labels), batch_size, copies, seed, process_index, process_count)
    for step in itertools.count(start_step):
        share = steps.share(step)
        sample = share.sample[steps.arrangement(step)]
        index = share.index[sample // copies]
        fields = {
            "index": index.astype(np.int32),
            "seed": share.seeds.reshape(-1, 2)[sample].view(np.uint32),
            "label": labels[index],
            "mask": np.ones(len(index), np.float32),
        }
        yield {name: field.reshape(local_devices, -1, *field.shape[1:]) for name, field in fields.items()}
