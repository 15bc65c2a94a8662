"""A small data set held whole in memory: decoded once, then addressed by number, without TensorFlow in the loop.

The order, the repeated copies and the augmentation seeds are those of every other source (order.py), so a batch is a
function of (seed, step) here too, and a resumed run goes on with the same samples. What is drawn from a seed, and the
cropping itself, happen on the device (training/crops.py).
"""

import concurrent.futures
import itertools
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tnt_jax.data import augment, order, sources, synthetic
from tnt_jax.data.settings import DataSettings

_CHUNK = 1000  # examples decoded by one call


def load(settings: DataSettings, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """-> images uint8 [n, h, w, 3] and labels int32 [n] of data.train_split, in the split's order.

    h and w are the images' own; "synthetic" ones come at `image_size`. Raises ValueError that names the example for an
    image that cannot be decoded or has another size than the first, and for a label out of range.
    """
    source = sources.open_source(settings)
    split = source.open_split(settings.train_split)
    numbers = np.arange(split.num_examples, dtype=np.int64)
    if isinstance(split, sources.SyntheticSplit):
        images, labels = synthetic.synthetic_examples(numbers, image_size)
        return images, labels.astype(np.int32)
    chunks = np.split(numbers, np.arange(_CHUNK, len(numbers), _CHUNK))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = list(pool.map(lambda chunk: _decoded(split, chunk), chunks))
    shape = parts[0][0][0].shape
    for number, image in zip(numbers, itertools.chain.from_iterable(part[0] for part in parts), strict=True):
        if image.shape != shape:
            raise ValueError(
                f"{split.where(int(number))} has {image.shape[0]} x {image.shape[1]} pixels, the first example "
                f"{shape[0]} x {shape[1]}: data.on_device needs images of one size. Set --config.data.on_device=False."
            )
    labels = np.concatenate([part[1] for part in parts])
    wrong = np.flatnonzero((labels < 0) | (labels >= source.num_classes))
    if len(wrong):
        raise ValueError(
            f"{split.where(int(wrong[0]))} has the label {labels[wrong[0]]}; labels are 0 to {source.num_classes - 1}."
        )
    return np.stack(list(itertools.chain.from_iterable(part[0] for part in parts))), labels.astype(np.int32)


def _decoded(split: sources.Split, numbers: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Examples by number -> (images uint8 [h, w, 3], each of its own size; labels [m])."""
    images, labels = [], []
    for number, record in zip(numbers, split.read(numbers), strict=True):
        try:
            image, label = split.parse(tf.constant(record), tf.constant(number))
            images.append(augment.decode(image).numpy())
            labels.append(int(label))
        except (tf.errors.OpError, ValueError) as error:
            message = str(getattr(error, "message", error)).splitlines()[0]
            raise ValueError(f"{split.where(int(number))} cannot be read: {message}") from error
    return images, np.array(labels, np.int64)


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
