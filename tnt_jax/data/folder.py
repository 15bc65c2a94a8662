"""Images in folders by class, SPLIT/CLASS/.../NAME, as people have them."""

import collections
import os
import random
import unicodedata
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from tnt_jax.names import printable

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CLASSES_FILE = "classes.txt"  # beside the splits: one class a line, in the order of the labels
LAYOUT = f"Images are looked for as train/CLASS/NAME.jpg and test/CLASS/NAME.jpg ({', '.join(SUFFIXES)})."

_SHOWN = 5  # of many names, in a line
_OUTSIDE = "outside of a class folder"


class FolderSource:
    """Image files by number: `source[i]` -> the file's bytes and its label."""

    def __init__(self, name: str, root: str, paths: Iterable[str], labels: np.ndarray):
        self.name, self._root, self._labels = name, root, labels  # labels int64 [n]
        # Relative paths, one after the other: a million Python strings would take a multiple of that in every worker.
        encoded = [os.fsencode(path) for path in paths]
        self._ends, self._paths = np.cumsum([len(path) for path in encoded]), b"".join(encoded)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, object]:
        path = self._path(index)
        image = epath.Path(path).read_bytes() if "://" in path else _read(path)
        return {"image": image, "label": int(self._labels[index])}

    def labels(self) -> np.ndarray:
        """All labels of all examples, int64."""
        return self._labels

    def where(self, index: int) -> str:
        """The example in words, for messages."""
        return f"example {index} of {self.name} ({printable(self._path(index))})"

    def _path(self, index: int) -> str:
        start = int(self._ends[index - 1]) if index else 0
        return f"{self._root}/{os.fsdecode(self._paths[start : int(self._ends[index])])}"


class Folder:
    """What lies below a root: the images of the splits in use and their classes.

    The classes are the folders with images in the training splits, by text, or the lines of classes.txt; without a
    training split, those of the others. Names that start with "." are skipped. Raises ValueError or FileNotFoundError
    that name the folder and the fix.
    """

    def __init__(self, root: str, train: Iterable[str], others: Iterable[str]):
        self.root, self._skipped = root, collections.Counter()
        names = [name for name, is_folder, _ in _entries(root) if is_folder and not name.startswith(".")]
        train_names, train = list(train), [split for split in train if split in names]
        images = {split: self._images_by_class(split) for split in dict.fromkeys([*train, *others]) if split in names}
        counts = {split: {name: len(paths) for name, paths in found.items()} for split, found in images.items()}
        self.class_names, self._left_out = self._classes(counts, train)
        self._files = {}
        for split, found in images.items():
            label = {name: number for number, name in enumerate(self.class_names)}
            files = [(path, label[name]) for name, paths in found.items() if name in label for path in paths]
            random.Random(split).shuffle(files)  # so that "train[:10%]" has all classes; tfds.ImageFolder's order
            self._files[split] = files
        if not any(self._files.values()):
            raise FileNotFoundError(
                f"There are no images in the splits {_shortened([*train_names, *others])} of data.directory={root!r}, "
                f"which holds the folders {_shortened([printable(name) for name in names]) or '-'}. {LAYOUT} Other "
                "names of the splits: --config.data.train_split and --config.data.eval_split."
            )
        self._counts = counts
        self.splits = {split: len(self._files.get(split, ())) for split in names}  # 0: not in use

    def open(self, spec: str, ranges: Iterable[tuple[str, int, int]]) -> FolderSource:
        """A split in words, and its pieces (whole split, first image, end) -> its images."""
        files = [file for split, start, stop in ranges for file in self._files[split][start:stop]]
        labels = np.array([label for _, label in files], np.int64)
        return FolderSource(f"folder {printable(self.root)}, split {spec!r}", self.root, (f for f, _ in files), labels)

    def identity(self) -> str:
        """A checksum of the images' paths below the root, and their labels."""
        checksum = 0
        for files in self._files.values():
            for path, label in files:
                checksum = zlib.crc32(b"%b:%d\n" % (os.fsencode(path), label), checksum)
        return f"files with checksum {checksum:08x}"

    def found(self) -> list[str]:
        """Lines that say what is there, and what was left out."""
        total = collections.Counter()
        for split in self._files:
            total.update(self._counts[split])
        lines = [
            f"folder {printable(self.root)}: "
            + ", ".join(f"{split} {len(files):,} images" for split, files in self._files.items())
            + f"; {len(self.class_names)} classes: "
            + _shortened([f"{printable(name)} {total[name]:,}" for name in self.class_names])
        ]
        if self._left_out:
            named = [f"{printable(name)} ({total[name]:,} images)" for name in self._left_out]
            lines.append(f"Note: classes left out, without an image to train on: {_shortened(named)}")
        for split, counts in self._counts.items():
            if missing := [printable(name) for name in self.class_names if not counts.get(name)]:
                lines.append(f"Note: classes without an image in {split}: {_shortened(missing)}")
        if self._skipped:
            kinds = [f"{count:,} {kind}" for kind, count in self._skipped.most_common()]
            lines.append(f"Note: not read: {_shortened(kinds)}")
        if unused := [printable(split) for split, count in self.splits.items() if split not in self._files]:
            lines.append(f"Note: folders that are no split in use: {_shortened(unused)}")
        return lines

    def _images_by_class(self, split: str) -> dict[str, list[str]]:
        """-> class -> paths of its images below the root, classes and paths sorted."""
        found, folder = {}, f"{self.root}/{split}"
        for name, is_folder, _ in _entries(folder):
            if is_folder and not name.startswith("."):
                above = (os.path.realpath(self.root), os.path.realpath(folder))
                paths = [f"{split}/{name}/{path}" for path in images_in(f"{folder}/{name}", self._skipped, above)]
                found.setdefault(unicodedata.normalize("NFC", name), []).extend(paths)  # macOS splits letters
            else:
                self._skipped["hidden" if name.startswith(".") else _OUTSIDE] += 1
        return found

    def _classes(self, counts: dict[str, dict[str, int]], train: list[str]) -> tuple[tuple[str, ...], list[str]]:
        """Images by split and class, the training splits -> names of the classes; those that are left out."""
        there = sorted({name for found in counts.values() for name in found})
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
                    "elsewhere, or remove the file: classes are then in the order of their names."
                )
        else:
            names = used
        if len(used) == 1:
            raise ValueError(
                f"data.directory={self.root!r} has a single class, {printable(used[0])!r}: there is nothing to tell "
                f"apart, every accuracy would be 1. {LAYOUT}"
            )
        return tuple(names), [name for name in there if name not in names]


def images_in(folder: str, skipped: collections.Counter, above: tuple[str, ...] = ()) -> Iterator[str]:
    """A folder -> paths, below it, of the images in it and the folders in it, by name; hidden ones are none.

    skipped counts what is not read, by kind. above: where the folder lies, so that no loop of links is walked.
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
    """-> (name, whether it is a folder, whether it is a regular file) of what lies in a folder, by name."""
    if "://" in folder:
        paths = [(path.name, path.is_dir()) for path in epath.Path(folder).iterdir()]
        return sorted((name, is_folder, not is_folder) for name, is_folder in paths)
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, *_kind(entry)) for entry in entries)
    except PermissionError as error:
        raise PermissionError(
            f"{printable(folder)} cannot be read (no permission): change its rights or move it."
        ) from error


def _kind(entry: os.DirEntry) -> tuple[bool, bool]:
    try:
        return entry.is_dir(), entry.is_file()  # of a link: of what it leads to
    except OSError:  # it leads to itself
        return False, False


def _read_classes(path: epath.Path) -> list[str]:
    """classes.txt -> its lines in Unicode's composed form, without blanks around them."""
    try:
        text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}. It must be a text file, one class a line."
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is not UTF-8 text: save it as UTF-8, one class a line.")
    return [unicodedata.normalize("NFC", line.strip()) for line in text.splitlines() if line.strip()]


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _shortened(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
