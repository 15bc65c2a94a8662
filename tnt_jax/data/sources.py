"""Opens data sets by name: their classes, their splits, and the examples of a split by number.

`data.name` is a tfds name, "folder" (images by class), "digits" (comes with the project, nothing is downloaded) or
"synthetic" (noise, to measure training without its input).
"""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from tnt_jax.data import prepared, synthetic
from tnt_jax.data.decoding import Channels, Undecodable, as_array, decode
from tnt_jax.data.folder import LAYOUT, Folder
from tnt_jax.data.prepared import BUILT_IN
from tnt_jax.data.settings import DataSettings
from tnt_jax.keys import short_repr

Pieces = list[tuple[str, int, int]]  # of a split: (name of the whole split, first example, end)


class Source(Protocol):
    """The examples of a split by number. Sent to worker processes: picklable, and needs no TensorFlow."""

    name: str  # data set and split, for messages

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, object]:
        """-> "image" (a file's bytes, or an array [h, w, c]) and "label" (a number, or an array of several)."""

    def labels(self) -> np.ndarray:
        """Returns all labels of all examples, int [n]. Reads every record if they are stored nowhere else."""

    def where(self, index: int) -> str:
        """Describes an example (data set, split, number, file) for messages."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set: its classes, its splits, and access to its examples."""

    name: str
    num_classes: int
    class_names: tuple[str, ...] | None  # in the order of the labels; None where the data set has no names
    splits: Mapping[str, int]  # name -> number of examples
    several_labels: bool  # an image has any number of classes instead of one
    opener: Callable[[str, Pieces], Source] = dataclasses.field(repr=False)
    # Identifies the content, wherever it is stored: equal for the same examples in the same order.
    identity: Callable[[], str] = dataclasses.field(default=str, repr=False)
    labels_at_hand: bool = False  # `class_counts` reads no record
    found: tuple[str, ...] = ()  # log lines about the images found, for a folder
    opened: dict[str, Source] = dataclasses.field(default_factory=dict, repr=False)

    def num_examples(self, spec: str, key: str = "") -> int:
        """Number of examples in a split, in tfds notation ("train", "train[:80%]", "train+test"); reads nothing.

        key: the config key to name if there is no such split.
        """
        try:
            return sum(stop - start for _, start, stop in self._pieces(spec))
        except ValueError as error:
            raise ValueError(f"{key}: {error}" if key else str(error)) from error

    def class_counts(self, spec: str) -> np.ndarray:
        """A split -> int64 [K], its examples per class. An image with several labels counts for each of them."""
        labels = self.open_split(spec).labels()
        return np.bincount(labels[(labels >= 0) & (labels < self.num_classes)], minlength=self.num_classes)

    def open_split(self, spec: str) -> Source:
        """A split, in tfds notation -> its examples. Opened once per process (may index its files)."""
        if spec not in self.opened:
            self.opened[spec] = self.opener(spec, self._pieces(spec))
        return self.opened[spec]

    def _pieces(self, spec: str) -> Pieces:
        """A split -> its pieces. Raises ValueError for an unknown, malformed or empty split."""
        infos = {
            name: tfds.core.SplitInfo(name=name, shard_lengths=[n], num_bytes=0) for name, n in self.splits.items()
        }
        held = ", ".join(f"{name} ({count})" if count else name for name, count in self.splits.items())
        fix = f"{self.name} has the splits {held}; slices are written as in 'train[:80%]' or 'train[1000:]'."
        try:
            instructions = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
        except Exception as error:  # ValueError, AssertionError or NotImplementedError, by kind of mistake
            raise ValueError(f"There is no split {short_repr(spec)}: {fix}") from error
        pieces = []
        for each in instructions:
            length = self.splits[each.splitname]
            start, stop = each.from_ or 0, length if each.to is None else each.to
            if start >= stop:
                raise ValueError(f"The split {spec!r} is empty: {fix}")
            pieces.append((each.splitname, start, stop))
        return pieces


def open_dataset(settings: DataSettings) -> Dataset:
    """Opens the data set that `settings` name, and prepares it if necessary; once per process.

    Raises ValueError or FileNotFoundError with the data set, the directory and the fix: as prepared.open_builder for
    tfds names; for "folder", if the folder is missing or has no SPLIT/CLASS/IMAGE files.
    """
    splits = settings.train_split, settings.eval_split
    if epath.Path(os.path.expanduser(settings.directory)).is_file():
        raise ValueError(f"data.directory={settings.directory!r} is a file; it must be a folder.")
    return _open(settings.name, settings.directory, settings.synthetic_examples, *(_names(spec) for spec in splits))


def is_prepared(settings: DataSettings) -> bool:
    """Whether `open_dataset` finds the set without a download; prepares nothing. ValueError for unknown names."""
    if settings.name in BUILT_IN:
        return True  # there is nothing to fetch
    return bool(prepared.find_builder(settings.name, settings.directory).info.splits)


def classes(settings: DataSettings) -> tuple[int, tuple[str, ...] | None]:
    """-> the number of classes of the data set in `settings`, and their names if it has any. Downloads nothing."""
    if settings.name in BUILT_IN:
        dataset = open_dataset(settings)
        return dataset.num_classes, dataset.class_names
    label = prepared.features_of(prepared.find_builder(settings.name, settings.directory)).classes
    return label.num_classes, tuple(label.names) if label.names else None


def applies_exif(settings: DataSettings) -> bool:
    """Whether EXIF orientation is applied: tfds sets stay as stored, as for the published accuracies."""
    return settings.exif_orientation and settings.name == "folder"


def read_example(settings: DataSettings, split: str, index: int, channels: int = 3) -> np.ndarray:
    """A data set, a split (tfds notation) and a number from 0 -> the image at its own size.

    The image is [h, w, channels], uint8 or, with data.pixel_bits=16, uint16.
    Raises ValueError for a number or a split that does not exist, and the errors of open_dataset.
    """
    dataset = open_dataset(settings)
    count = dataset.num_examples(split)
    if not 0 <= index < count:
        raise ValueError(f"{dataset.name} has no image {index} in {split!r}; they are numbered from 0 to {count - 1}")
    if settings.name == "synthetic":
        raise ValueError("the synthetic data set is noise; give an image file")
    source, requested = dataset.open_split(split), Channels(channels, settings.pixel_bits)
    try:
        return as_array(decode(source[index]["image"], applies_exif(settings), requested))
    except Undecodable as error:
        raise ValueError(f"{source.where(index)} cannot be decoded: {error}") from error


def _names(spec: str) -> tuple[str, ...]:
    """ "train[:80%]+extra" -> ("train", "extra")."""
    return tuple(re.findall(r"[^\[\]+\s]+(?=\s*(?:\[|\+|$))", re.sub(r"\[[^\]]*\]", "", spec)))


@functools.lru_cache(maxsize=8)
def _open(
    name: str, directory: str, synthetic_examples: int, train: tuple[str, ...], others: tuple[str, ...]
) -> Dataset:
    if name == "synthetic":
        return _synthetic(synthetic_examples)
    if name == "folder":
        return _folder(directory, train, others)
    builder = prepared.open_builder(name, directory)
    _, _, label, several_labels = prepared.features_of(builder)
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    return Dataset(
        name=name,
        num_classes=label.num_classes,
        class_names=tuple(label.names) if label.names else None,
        splits=splits,
        several_labels=several_labels,
        opener=lambda spec, pieces: prepared.TfdsSource(builder, spec),
        identity=lambda: builder.info.full_name,
    )


def _folder(directory: str, train: tuple[str, ...], others: tuple[str, ...]) -> Dataset:
    root = os.path.expanduser(directory).rstrip("/") or directory
    if not root:
        raise ValueError(f'data.name="folder" needs --config.data.directory, the folder with the images. {LAYOUT}')
    if not epath.Path(root).is_dir():
        raise FileNotFoundError(f"The folder data.directory={directory!r} does not exist. {LAYOUT}")
    folder = Folder(root, train, others)
    names = folder.class_names
    return Dataset(
        f"folder {root}",
        len(names),
        names,
        folder.splits,
        several_labels=folder.several_labels,
        opener=folder.open,
        identity=folder.identity,
        labels_at_hand=True,
        found=tuple(folder.found()),
    )


def _synthetic(num_examples: int) -> Dataset:
    def opener(spec: str, pieces: Pieces) -> Source:
        return synthetic.SyntheticSource(f"synthetic, split {spec!r}", sum(stop - start for _, start, stop in pieces))

    splits = dict.fromkeys(("train", "validation", "test"), num_examples)
    name = f"synthetic (data.synthetic_examples={num_examples})"
    return Dataset(name, synthetic.NUM_CLASSES, None, splits, False, opener)
