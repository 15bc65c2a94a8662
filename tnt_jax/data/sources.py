"""Data sets by name -> classes, splits, and random access to the examples of a split.

`data.name` is a tfds name, "folder" (images by class, as tfds.ImageFolder lays them out), "digits" (comes with the
project, nothing is downloaded) or "synthetic" (noise, to measure training without its input).
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from tnt_jax.data import digits, prepared, synthetic
from tnt_jax.data.settings import DataSettings, shown


class Split(Protocol):
    """The examples of a split, by their number 0, ..., num_examples - 1. Reading is safe from several threads."""

    name: str  # data set and split in words, for messages

    @property
    def num_examples(self) -> int:
        """Examples in the split."""

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Numbers -> records, in this order; costs no more than these records."""

    def parse(self, record: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Record (string scalar), number (int64 scalar) -> image (encoded string, or uint8 [h, w, 3]), label int64."""

    def where(self, index: int) -> str:
        """The example in words (data set, split, number, file), for messages."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set: its classes and splits, and the way to its examples."""

    name: str
    num_classes: int
    class_names: tuple[str, ...] | None  # in the order of the labels; None where the data set has no names
    splits: Mapping[str, int]  # name -> number of examples
    several_labels: bool  # an image has any number of classes, in place of one
    opener: Callable[[str, list[tuple[str, int, int]]], Split] = dataclasses.field(repr=False)
    opened: dict[str, Split] = dataclasses.field(default_factory=dict, repr=False)

    def num_examples(self, spec: str, key: str = "") -> int:
        """Examples in a split, in tfds notation ("train", "train[:80%]", "train+test"); reads nothing.

        key: of the config, which is named where there is no such split.
        """
        try:
            return sum(stop - start for _, start, stop in self._ranges(spec))
        except ValueError as error:
            raise ValueError(f"{key}: {error}" if key else str(error)) from error

    def open_split(self, spec: str) -> Split:
        """A split, in tfds notation -> its examples. Opened once in a process (an index over the files is built)."""
        if spec not in self.opened:
            self.opened[spec] = self.opener(spec, self._ranges(spec))
        return self.opened[spec]

    def _ranges(self, spec: str) -> list[tuple[str, int, int]]:
        """-> pieces (whole split's name, first example, end). ValueError for an unknown, ill-formed or empty split."""
        infos = {
            name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in self.splits.items()
        }
        held = ", ".join(f"{name} ({count})" for name, count in self.splits.items())
        mend = f"{self.name} has the splits {held}; slices are written as in 'train[:80%]' or 'train[1000:]'."
        try:
            pieces = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
        except Exception as error:  # tfds raises ValueError, AssertionError and NotImplementedError, by the mistake
            raise ValueError(f"There is no split {shown(spec)}: {mend}") from error
        ranges = []
        for piece in pieces:
            length = self.splits[piece.splitname]
            start, stop = piece.from_ or 0, length if piece.to is None else piece.to
            if start >= stop:
                raise ValueError(f"The split {spec!r} is empty: {mend}")
            ranges.append((piece.splitname, start, stop))
        return ranges


class FolderSplit:
    """Image files of a folder, by number; the order is tfds.ImageFolder's (shuffled once, by the split's name)."""

    def __init__(self, name: str, paths: np.ndarray, labels: np.ndarray):
        self.name = name
        self._paths = paths  # [n] bytes of fixed width: a million Python strings would take a multiple of that
        self._labels = labels  # int64 [n]

    @property
    def num_examples(self) -> int:
        """Examples in the split."""
        return len(self._paths)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Numbers -> the files' bytes."""
        return [tf.io.gfile.GFile(os.fsdecode(self._paths[index]), "rb").read() for index in indices]

    def parse(self, record: tf.Tensor, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """File's bytes (string scalar), number (int64 scalar) -> the same bytes, label int64."""
        return record, tf.gather(self._labels, index)

    def where(self, index: int) -> str:
        """The example in words, for messages."""
        return f"example {index} of {self.name} ({os.fsdecode(self._paths[index])})"


class SyntheticSplit:
    """Images from their numbers; the pipeline takes them as they are, at the network's size."""

    def __init__(self, name: str, num_examples: int):
        self.name = name
        self.num_examples = num_examples


def open_source(settings: DataSettings) -> Source:
    """The data set that `settings` name, prepared if need be; opened once in a process.

    Raises ValueError or FileNotFoundError that name the data set, the directory and the mend: see
    prepared.open_builder for tfds names; for "folder" a missing folder, or one without SPLIT/CLASS/IMAGE files.
    """
    set_up_tensorflow()
    return _open_source(settings.name, settings.directory, settings.synthetic_examples)


def is_prepared(settings: DataSettings) -> bool:
    """Whether `open_source` would find the set that `settings` name, without preparing it. Raises for unknown names."""
    if settings.name in ("synthetic", "folder", "digits"):
        return True  # there is nothing to fetch
    set_up_tensorflow()
    return bool(prepared.find_builder(settings.name, os.path.expanduser(settings.directory)).info.splits)


def classes(settings: DataSettings) -> tuple[int, tuple[str, ...] | None]:
    """-> the number of classes of the set that `settings` name and their names, if it has any; prepares nothing."""
    if settings.name in ("synthetic", "folder", "digits"):
        source = open_source(settings)
        return source.num_classes, source.class_names
    set_up_tensorflow()
    label, _ = prepared.label_feature(prepared.find_builder(settings.name, os.path.expanduser(settings.directory)))
    return label.num_classes, tuple(label.names) if label.names else None


def set_up_tensorflow() -> None:
    """Keeps TensorFlow off the GPUs and TPUs that jax trains on, and one image's arithmetic on one thread.

    Images are augmented in parallel, so that threads inside an operation only get in each other's way: an image takes
    about 30% less of the processor without. (tf.data's option for this has no effect inside a tf.function.)
    """
    try:
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
        if tf.config.threading.get_intra_op_parallelism_threads() != 1:
            tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError as error:  # TensorFlow is in use already, in a notebook for instance
        logging.warning("TensorFlow may hold the accelerators' memory and read slower than it could: %s", error)


@functools.lru_cache(maxsize=8)
def _open_source(name: str, directory: str, synthetic_examples: int) -> Source:
    if name == "synthetic":
        return _synthetic_source(synthetic_examples)
    if name == "folder":
        return _folder_source(directory)
    if name == "digits":
        return _builder_source(name, prepared.prepared(lambda: digits.digits_builder(directory)))
    return _builder_source(name, prepared.open_builder(name, directory))


def _builder_source(name: str, builder: tfds.core.DatasetBuilder) -> Source:
    label, several_labels = prepared.label_feature(builder)
    return Source(
        name=name,
        num_classes=label.num_classes,
        class_names=tuple(label.names) if label.names else None,
        splits={split: info.num_examples for split, info in builder.info.splits.items()},
        several_labels=several_labels,
        opener=lambda spec, ranges: prepared.PreparedSplit(builder, spec),
    )


def _folder_source(directory: str) -> Source:
    root = os.path.expanduser(directory)
    layout = "Images are looked for as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg (.jpeg and .png too)."
    if not root:
        raise ValueError(f'data.name="folder" needs --config.data.directory, the folder with the images. {layout}')
    if not tf.io.gfile.isdir(root):
        raise FileNotFoundError(f"The folder data.directory={directory!r} does not exist. {layout}")
    builder = tfds.ImageFolder(root)
    class_names = tuple(builder.info.features["label"].names)
    files = {}
    for split, examples in builder._split_examples.items():  # tfds offers the files' names by no other way
        number = {class_name: label for label, class_name in enumerate(class_names)}
        if examples:
            paths = np.array([os.fsencode(example.image_path) for example in examples])
            files[split] = paths, np.array([number[example.label] for example in examples], np.int64)
    if not files:
        raise FileNotFoundError(f"There are no images in data.directory={directory!r}. {layout}")

    def opener(spec: str, ranges: list[tuple[str, int, int]]) -> Split:
        paths = np.concatenate([files[split][0][start:stop] for split, start, stop in ranges])
        labels = np.concatenate([files[split][1][start:stop] for split, start, stop in ranges])
        return FolderSplit(f"folder {root}, split {spec!r}", paths, labels)

    return Source(
        name=f"folder {root}",
        num_classes=len(class_names),
        class_names=class_names,
        splits={split: len(labels) for split, (_, labels) in files.items()},
        several_labels=False,
        opener=opener,
    )


def _synthetic_source(num_examples: int) -> Source:
    def opener(spec: str, ranges: list[tuple[str, int, int]]) -> Split:
        return SyntheticSplit(f"synthetic, split {spec!r}", sum(stop - start for _, start, stop in ranges))

    splits = dict.fromkeys(("train", "validation", "test"), num_examples)
    name = f"synthetic (data.synthetic_examples={num_examples})"
    return Source(name, synthetic.NUM_CLASSES, None, splits, False, opener)
