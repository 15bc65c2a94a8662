"""Images in one folder per class, SPLIT/CLASS/.../NAME, or with labels listed in SPLIT/labels.csv."""

import collections
import os
import pathlib
import random
import unicodedata
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from tnt_jax.data.label_file import LABELS_FILE, labels_of_images
from tnt_jax.names import printable

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".npy")
CLASSES_FILE = "classes.txt"  # beside the splits: one class per line, in the order of the labels
LAYOUT = (
    f"Images are expected as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg ({', '.join(SUFFIXES)}), or, with several "
    f"labels each, as train/{LABELS_FILE} and test/{LABELS_FILE} list them."
)

_SHOWN = 5  # names listed in one line
_OUTSIDE = "outside of a class folder"


class FolderSource:
    """Image files by number: `source[i]` -> the file's bytes and its label, or an array of its labels."""

    def __init__(self, name: str, root: str, paths: Iterable[str], labels: list[tuple[int, ...]], several: bool):
        self.name, self._root, self._several = name, root, several
        self._labels = np.array([label for each in labels for label in each], np.int64)
        self._label_ends = np.cumsum([len(each) for each in labels])
        # Relative paths, concatenated: a million Python strings would take several times the memory in every worker.
        encoded = [os.fsencode(path) for path in paths]
        self._ends, self._paths = np.cumsum([len(path) for path in encoded]), b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> dict[str, object]:
        path = self._path(index)
        image = (epath.Path if "://" in path else pathlib.Path)(path).read_bytes()
        labels = self._labels[self._label_ends[index - 1] if index else 0 : self._label_ends[index]]
        return {"image": image, "label": labels if self._several else int(labels[0])}

    def labels(self) -> np.ndarray:
        """Returns all labels of all examples, int64."""
        return self._labels

    def where(self, index: int) -> str:
        """Describes an example for messages."""
        return f"example {index} of {self.name} ({printable(self._path(index))})"

    def _path(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return f"{self._root}/{os.fsdecode(self._paths[start : int(self._ends[index])])}"


class Folder:
    """The images below a root folder, for the splits in use, and their classes.

    The classes are the folders with images in the training splits, sorted by name, or the lines of classes.txt; without
    a training split, the folders of the other splits. Names that start with "." are skipped. If the splits have
    labels.csv, its labels replace the folders, any number per image (`several_labels`). Raises ValueError or
    FileNotFoundError with the folder and the fix.
    """

    def __init__(self, root: str, train: Iterable[str], others: Iterable[str]):
        self.root, self._skipped = root, collections.Counter()
        self._folders: set[str] = set()  # class folders, with or without images
        names = [name for name, is_folder, _ in _entries(root) if is_folder and not name.startswith(".")]
        train_names, train = list(train), [split for split in train if split in names]
        used = [split for split in dict.fromkeys([*train, *others]) if split in names]
        self.several_labels = self._has_labels_files(used)
        images_of = self._listed_images if self.several_labels else self._images_by_class
        images = {split: images_of(split) for split in used}
        counts = {
            split: collections.Counter(name for each in images[split].values() for name in each) for split in used
        }
        self.class_names, self._left_out = self._classes(counts, train)
        label, self._files = {name: number for number, name in enumerate(self.class_names)}, {}
        for split, found in images.items():
            files = [(path, tuple(label[name] for name in each if name in label)) for path, each in found.items()]
            files = [(path, labels) for path, labels in files if labels or self.several_labels]
            random.Random(split).shuffle(files)  # so that "train[:10%]" has all classes; tfds.ImageFolder's order
            self._files[split] = files
        if not any(self._files.values()):
            folders = _shortened([printable(name) for name in names])
            above, _, last = root.rpartition("/")
            fix = "Set other split names with --config.data.train_split and --config.data.eval_split."
            if last in (*train_names, *others):
                fix = f"{last} is itself a split: give the folder above, --config.data.directory={above}."
            raise FileNotFoundError(
                f"There are no images in the splits {_shortened([*train_names, *others])} of data.directory={root!r}, "
                f"which holds {f'the folders {folders}' if folders else 'no folder'}. {LAYOUT} {fix}"
            )
        self._counts = counts
        self.splits = {split: len(self._files.get(split, ())) for split in names}  # 0: not in use

    def open(self, spec: str, ranges: Iterable[tuple[str, int, int]]) -> FolderSource:
        """A split's description and its pieces (whole split, first image, end) -> its images."""
        files = [file for split, start, stop in ranges for file in self._files[split][start:stop]]
        name, labels = f"folder {printable(self.root)}, split {spec!r}", [labels for _, labels in files]
        return FolderSource(name, self.root, (path for path, _ in files), labels, self.several_labels)

    def identity(self) -> str:
        """Returns a checksum of the images' paths below the root and their labels."""
        checksum = 0
        for files in self._files.values():
            for path, labels in files:
                listed = ",".join(map(str, labels)).encode()
                checksum = zlib.crc32(b"%b:%b\n" % (os.fsencode(path), listed), checksum)
        return f"files with checksum {checksum:08x}"

    def found(self) -> list[str]:
        """Returns log lines about the images found and what was left out."""
        total = sum(self._counts.values(), collections.Counter())
        lines = [
            f"folder {printable(self.root)}: "
            + ", ".join(f"{split} {len(files):,} images" for split, files in self._files.items())
            + f"; {len(self.class_names)} classes: "
            + _shortened([f"{printable(name)} {total[name]:,}" for name in self.class_names])
        ]
        if self._left_out:
            named = [f"{printable(name)} ({total[name]:,} images)" for name in self._left_out]
            lines.append(f"Note: classes left out, without a training image: {_shortened(named)}")
        for split, counts in self._counts.items():
            if missing := [printable(name) for name in self.class_names if not counts.get(name)]:
                lines.append(f"Note: classes without an image in {split}: {_shortened(missing)}")
        if unlabelled := {split: sum(not labels for _, labels in files) for split, files in self._files.items()}:
            found = [f"{split} {count:,}" for split, count in unlabelled.items() if count]
            lines += [f"Note: images in none of the classes: {_shortened(found)}"] * bool(found)
        if self._skipped:
            kinds = [f"{count:,} {kind}" for kind, count in self._skipped.most_common()]
            lines.append(f"Note: not read: {_shortened(kinds)}")
        if unused := [printable(split) for split, count in self.splits.items() if split not in self._files]:
            lines.append(f"Note: folders that are not a split in use: {_shortened(unused)}")
        return lines

    def _has_labels_files(self, splits: list[str]) -> bool:
        """Whether the splits have labels.csv. Raises ValueError if only some of them do."""
        with_file = [split for split in splits if epath.Path(f"{self.root}/{split}/{LABELS_FILE}").exists()]
        if without := [split for split in splits if split not in with_file] if with_file else []:
            raise ValueError(
                f"{printable(self.root)}/{with_file[0]} has a {LABELS_FILE}, but {_shortened(without)} has none: all "
                "splits in use need one, or none of them."
            )
        return bool(with_file)

    def _listed_images(self, split: str) -> dict[str, tuple[str, ...]]:
        """-> {path below the root: classes} of the images that the split's labels.csv lists."""
        folder, skipped = f"{self.root}/{split}", collections.Counter()
        there = list(images_in(folder, skipped, (os.path.realpath(self.root),)))
        found = labels_of_images(epath.Path(f"{folder}/{LABELS_FILE}"), there)
        skipped[os.path.splitext(LABELS_FILE)[1]] -= 1
        self._skipped += skipped + collections.Counter({f"not in {LABELS_FILE}": len(there) - len(found)})
        return {f"{split}/{path}": labels for path, labels in found.items()}

    def _images_by_class(self, split: str) -> dict[str, tuple[str, ...]]:
        """-> {path below the root: (class,)} of the split's images, sorted by class and path."""
        found, folder = {}, f"{self.root}/{split}"
        for name, is_folder, _ in _entries(folder):
            if is_folder and not name.startswith("."):
                above = (os.path.realpath(self.root), os.path.realpath(folder))
                paths = [f"{split}/{name}/{path}" for path in images_in(f"{folder}/{name}", self._skipped, above)]
                found.setdefault(unicodedata.normalize("NFC", name), []).extend(paths)  # macOS decomposes letters
            else:
                self._skipped["hidden" if name.startswith(".") else _OUTSIDE] += 1
        self._folders.update(found)
        return {path: (name,) for name, paths in found.items() for path in paths}

    def _classes(self, counts: dict[str, dict[str, int]], train: list[str]) -> tuple[tuple[str, ...], list[str]]:
        """Image counts by split and class, the training splits -> the names of the classes, and those left out."""
        there = sorted(self._folders.union(*counts.values()))
        used = [name for name in there if any(counts[split].get(name) for split in (train or counts))]
        listed = epath.Path(f"{self.root}/{CLASSES_FILE}")
        if listed.exists():
            names = _read_classes(listed)
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ValueError(f"{listed} names the class {twice!r} twice. Remove one of the lines.")
            if unknown := [printable(name) for name in used if name not in names]:
                raise ValueError(
                    f"{listed} lacks classes with images: {_shortened(unknown)}. Add a line for each, move its folder "
                    "elsewhere, or remove the file to order the classes by name."
                )
        else:
            names = used
        if not names and self.several_labels:
            raise ValueError(f"{printable(self.root)}: no image of the training splits has a label in {LABELS_FILE}.")
        if len(used) == 1 and not self.several_labels:
            raise ValueError(
                f"data.directory={self.root!r} has a single class, {printable(used[0])!r}: there is nothing to "
                f"classify, every accuracy would be 1. {LAYOUT}"
            )
        return tuple(names), [name for name in there if name not in names]


def images_in(folder: str, skipped: collections.Counter, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields paths, relative to `folder`, of the images in it and its subfolders, by name; skips hidden names.

    skipped: counts what is not read, by kind. above: the folders above, so that loops of links are not followed.
    """
    here = os.path.realpath(folder)
    if here in above:
        skipped["links to a folder above"] += 1
        return
    for name, is_folder, is_file in _entries(folder):
        suffix = os.path.splitext(name)[1].lower()
        if name.startswith("."):
            skipped["hidden"] += 1
        elif is_folder:
            yield from (f"{name}/{path}" for path in images_in(f"{folder}/{name}", skipped, (*above, here)))
        elif not is_file:
            skipped["no regular file"] += 1
        elif suffix not in SUFFIXES:
            skipped[printable(suffix) or "without ending"] += 1
        else:
            yield name


def _entries(folder: str) -> list[tuple[str, bool, bool]]:
    """-> (name, whether it is a folder, whether it is a regular file) of a folder's entries, by name."""
    if "://" in folder:
        paths = [(path.name, path.is_dir()) for path in epath.Path(folder).iterdir()]
        return sorted((name, is_folder, not is_folder) for name, is_folder in paths)
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, *_kind(entry)) for entry in entries)
    except PermissionError as error:
        raise PermissionError(
            f"{printable(folder)} cannot be read (no permission): change its permissions or move it."
        ) from error


def _kind(entry: os.DirEntry) -> tuple[bool, bool]:
    try:
        return entry.is_dir(), entry.is_file()  # follows links
    except OSError:  # a link to itself
        return False, False


def _read_classes(path: epath.Path) -> list[str]:
    """classes.txt -> its lines in Unicode's composed form, stripped, without empty ones."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}. It must be a text file, one class a line."
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8, one class a line.")
    return [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines() if line.strip()]


def _shortened(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
