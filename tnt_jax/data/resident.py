"""A small data set held entirely in memory: decoded once, then addressed by number.

The order, the repeated copies and the augmentation seeds come from order.py, as for every other source, so a batch is
a function of (seed, step) here too, and a resumed run sees the same samples. The draws from a seed and the cropping
happen on the device (training/device_augment.py).
"""

import concurrent.futures
import itertools
from collections.abc import Iterator

import numpy as np

from tnt_jax.data import batches, order, sources, synthetic
from tnt_jax.data.decoding import Changes, Channels, Undecodable, as_array
from tnt_jax.data.faulty import FaultyImages
from tnt_jax.data.settings import DataSettings


def load(
    settings: DataSettings, image_size: tuple[int, int], channels: int = 3, faulty: FaultyImages | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """-> images [n, h, w, channels] and labels of data.train_split, in the split's order.

    Images are uint8 or uint16; labels are int32 [n] or, with several per image, uint8 [n, classes], 1 for each of them.
    h and w are the images' own size; "synthetic" images have `image_size`. An example that cannot be decoded is noted
    in `faulty` and replaced by a copy of the one that order.replacement draws. Raises ValueError, with the examples,
    for more of these than data.max_faulty_images, an image whose size differs from the first, and a label out of range.
    """
    faulty = FaultyImages() if faulty is None else faulty
    dataset, requested = sources.open_dataset(settings), Channels(channels, settings.pixel_bits)
    source = dataset.open_split(settings.train_split)
    if settings.name == "synthetic":
        images, labels = synthetic.examples(np.arange(len(source)), image_size, requested)
        return images, labels.astype(np.int32)

    changes = [Changes() for _ in range(len(source))]

    def decoded(number: int) -> tuple[np.ndarray, int] | Undecodable:
        try:
            image, label = batches.decoded(source, number, settings, requested, changes[number])
            return as_array(image), label
        except Undecodable as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(batches.usable_cores()) as pool:
        examples = list(pool.map(decoded, range(len(source))))
    changed = Changes()
    for each in changes:
        changed.update(each)
    faulty.log_changes("train", changed)
    sound = [number for number, example in enumerate(examples) if not isinstance(example, Undecodable)]
    for number in sorted(set(range(len(source))) - set(sound)):
        faulty.add("train", source.where(number), str(examples[number]))
        faulty.check_limit(settings.max_faulty_images)
        if not sound:
            raise ValueError(f"{source.name}: none of the {len(source)} images can be decoded: {examples[number]}")
        examples[number] = examples[sound[order.replacement(0, 0, number, 1, len(sound))]]
    shape = examples[0][0].shape
    for number, (image, _) in enumerate(examples):
        if image.shape != shape:
            raise ValueError(
                f"{source.where(number)} has {image.shape[0]} x {image.shape[1]} pixels, the first example "
                f"{shape[0]} x {shape[1]}: data.on_device needs images of one size. Set --config.data.on_device=False."
            )
    images, labels = zip(*examples, strict=True)
    numbers = range(len(labels))
    labels = batches.label_array(source, numbers, labels, dataset.num_classes, dataset.several_labels)
    return np.stack(images), labels


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
    """Yields this process's part of the batches of steps start_step, start_step + 1, ... without end or images.

    With d = local_devices and b = batch_size / (process_count * d), a batch has "index" int32 [d, b] (the example's
    number), "seed" uint32 [d, b, 2] (for its augmentation), "label" int32 [d, b] or, with several per image, "labels"
    uint8 [d, b, classes], and "mask" float32 [d, b] (all 1).
    """
    steps = order.TrainOrder(len(labels), batch_size, copies, seed, process_index, process_count)
    for step in itertools.count(start_step):
        local = steps.local_batch(step)
        sample = local.sample[steps.arrangement(step)]
        index = local.index[sample // copies]
        fields = {
            "index": index.astype(np.int32),
            "seed": local.seeds.reshape(-1, 2)[sample].view(np.uint32),
            "label" if labels.ndim == 1 else "labels": labels[index],
            "mask": np.ones(len(index), np.float32),
        }
        yield {name: field.reshape(local_devices, -1, *field.shape[1:]) for name, field in fields.items()}
