"""Records of a prepared data set by their number: TFRecord files by byte offset, ArrayRecord files by their own index.

A TFRecord file is a chain of [length, uint64 little endian][crc of the length, 4 bytes][data][crc of the data, 4 bytes]
and has no index. Walking its headers once gives one; it is kept in the user's cache directory, so that any position
of a data set is reached at the cost of reading that record. (The checksums are not verified: nothing that computes
crc32c fast enough comes with TensorFlow's Python interface. A file that was cut off is found by the walk.)
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
from absl import logging

_HEADER_BYTES = 12  # length and its crc
_FOOTER_BYTES = 4  # crc of the data
_REMOTE_BLOCK_BYTES = 8 << 20  # a remote file is walked in large reads: a request costs more than a megabyte
_LOCAL_THREADS = 16
_REMOTE_THREADS = 64


class FileInstruction(Protocol):
    """What tfds says of one file of a split (tfds.core.FileInstruction): its records skip, ..., skip + take - 1."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records(Protocol):
    """The serialized examples of a split, by their number in it."""

    def __len__(self) -> int: ...

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """The serialized examples with these numbers, in this order."""

    def where(self, index: int) -> str:
        """File and record in words, for messages."""


class _Files:
    """Which file holds record number i of a split that is cut into files."""

    def __init__(self, instructions: Sequence[FileInstruction]):
        self.instructions = tuple(instructions)
        self.ends = np.cumsum([instruction.take for instruction in self.instructions])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def locate(self, index: int) -> tuple[int, int]:
        """Number in the split -> (which instruction, record number in its file)."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a split of {len(self)} records")
        number = int(np.searchsorted(self.ends, index, side="right"))
        instruction = self.instructions[number]
        return number, index - int(self.ends[number]) + instruction.take + instruction.skip

    def where(self, index: int) -> str:
        number, record = self.locate(index)
        return f"{self.instructions[number].filename}, record {record}"


class TFRecordFiles(_Files):
    """Random access to the records of TFRecord files; reading is safe from several threads.

    Raises FileNotFoundError for a missing file and ValueError for one that is cut off, or whose number of records is
    not what the data set's description says.
    """

    def __init__(self, instructions: Sequence[FileInstruction]):
        super().__init__(instructions)
        self._offsets = _offsets_of([instruction.filename for instruction in self.instructions])
        for instruction, offsets in zip(self.instructions, self._offsets, strict=True):
            if len(offsets) - 1 != instruction.examples_in_shard:
                raise ValueError(
                    f"{instruction.filename} holds {len(offsets) - 1} records, but dataset_info.json beside it says "
                    f"{instruction.examples_in_shard}: the files are not of one preparation. Remove the folder "
                    "and prepare the data set again."
                )

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Numbers in the split -> the serialized examples; remote files are read by several threads."""
        if all(_is_local(self.instructions[self.locate(int(index))[0]].filename) for index in indices):
            return [self._read_one(int(index)) for index in indices]
        return list(_remote_pool().map(self._read_one, map(int, indices)))

    def _read_one(self, index: int) -> bytes:
        number, record = self.locate(index)
        path = self.instructions[number].filename
        start, end = (int(offset) for offset in self._offsets[number][record : record + 2])
        length = end - start - _HEADER_BYTES - _FOOTER_BYTES
        with _open(path) as read_at:
            data = read_at(start + _HEADER_BYTES, length)
        if len(data) != length:
            raise ValueError(f"{path} changed while it was read: record {record} should end at byte {end}.")
        return data


class ArrayRecordFiles(_Files):
    """Random access to the records of ArrayRecord files (which carry an index), through the package array_record."""

    def __init__(self, instructions: Sequence[FileInstruction]):
        from array_record.python import array_record_data_source  # tfds requires it on Linux alone

        super().__init__(instructions)
        missing = [each.filename for each in self.instructions if not tf.io.gfile.exists(each.filename)]
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing ({len(missing)} of {len(self.instructions)} files are).")
        self._source = array_record_data_source.ArrayRecordDataSource(self.instructions)

    def read(self, indices: Sequence[int]) -> list[bytes]:
        """Numbers in the split -> the serialized examples."""
        return [self._source[int(index)] for index in indices]


def record_offsets(path: str) -> np.ndarray:
    """TFRecord file of n records -> int64 [n + 1]: the byte where each record's header starts, and the file's size.

    Taken from the cache if the file has the size and time it had then, else found by walking the file and cached.
    Raises FileNotFoundError, and ValueError for a file whose chain of records does not end with the file.
    """
    size, modified = _stat(path)
    cached = _cache_path(path, size, modified)
    offsets = _load_offsets(cached, size)
    if offsets is None:
        with _open(path, _REMOTE_BLOCK_BYTES) as read_at:
            offsets = _walk(path, read_at, size)
        _save_offsets(cached, offsets)
    return offsets


def cache_directory() -> pathlib.Path:
    """Where the indices of TFRecord files are kept: $XDG_CACHE_HOME/tnt_jax, or ~/.cache/tnt_jax."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tnt_jax" / "record_offsets"


def _offsets_of(paths: Sequence[str]) -> list[np.ndarray]:
    """The offsets of several files, walked in parallel."""
    threads = _LOCAL_THREADS if all(map(_is_local, paths)) else _REMOTE_THREADS
    started, last_word = time.monotonic(), time.monotonic()
    offsets = []
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for found in pool.map(record_offsets, paths):
            offsets.append(found)
            if time.monotonic() - last_word > 10:
                last_word = time.monotonic()
                done = f"{len(offsets)} of {len(paths)}"
                logging.info("Indexing TFRecord files (once; kept in %s): %s", cache_directory(), done)
    logging.info("Offsets of %d TFRecord files in %.1f s", len(paths), time.monotonic() - started)
    return offsets


def _walk(path: str, read_at: Callable[[int, int], bytes], size: int) -> np.ndarray:
    offsets = [0]
    while offsets[-1] < size:
        header = read_at(offsets[-1], _HEADER_BYTES)
        end = size + 1
        if len(header) == _HEADER_BYTES:
            end = offsets[-1] + _HEADER_BYTES + struct.unpack_from("<Q", header)[0] + _FOOTER_BYTES
        if end > size:
            raise ValueError(
                f"{path}: record {len(offsets) - 1}, at byte {offsets[-1]}, reaches beyond the file's {size} bytes: "
                "it is cut off, damaged, or not a TFRecord file. Copy it again or prepare the data set again."
            )
        offsets.append(end)
    return np.array(offsets, np.int64)


def _load_offsets(cached: pathlib.Path, size: int) -> np.ndarray | None:
    """The cached offsets, or None where there are none (or a torn or foreign file in their place)."""
    try:
        offsets = np.load(cached, allow_pickle=False)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        logging.warning("%s cannot be read (%s); indexing the file again", cached, error)
        return None
    sound = offsets.ndim == 1 and offsets.dtype == np.int64 and len(offsets) and offsets[0] == 0 and offsets[-1] == size
    if not sound:
        logging.warning("%s does not fit its file; indexing the file again", cached)
    return offsets if sound else None


def _save_offsets(cached: pathlib.Path, offsets: np.ndarray) -> None:
    """Writes through a temporary folder, so that no reader ever sees half of it."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent, prefix="writing_") as directory:
            written = pathlib.Path(directory) / cached.name
            np.save(written, offsets)
            os.replace(written, cached)
    except OSError as error:
        _say_unwritable(str(cached.parent), str(error))


@functools.lru_cache  # said once, not once a file
def _say_unwritable(directory: str, error: str) -> None:
    logging.warning(
        "The index of the TFRecord files cannot be kept in %s (%s): it is made again at every start. "
        "Set XDG_CACHE_HOME to a folder that can be written.",
        directory,
        error,
    )


def _cache_path(path: str, size: int, modified: int) -> pathlib.Path:
    key = f"{path if '://' in path else os.path.abspath(path)}|{size}|{modified}"
    return cache_directory() / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".npy")


def _is_local(path: str) -> bool:
    return "://" not in path


def _stat(path: str) -> tuple[int, int]:
    """-> size in bytes, time of the last change in nanoseconds."""
    try:
        if _is_local(path):
            stat = os.stat(path)
            return stat.st_size, stat.st_mtime_ns
        stat = tf.io.gfile.stat(path)
        return stat.length, stat.mtime_nsec
    except (FileNotFoundError, tf.errors.NotFoundError) as error:
        raise FileNotFoundError(
            f"{path} is missing: copy it to its place, or remove the folder and prepare the data set again."
        ) from error


@contextlib.contextmanager
def _open(path: str, remote_block_bytes: int = 0) -> Iterator[Callable[[int, int], bytes]]:
    """-> read_at(offset, length) -> bytes (fewer at the file's end); remote files are read in blocks, if asked for."""
    if _is_local(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            yield lambda offset, length: os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)
        return
    start, block = 0, b""

    def read_at(offset: int, length: int) -> bytes:
        nonlocal start, block
        if not start <= offset <= offset + length <= start + len(block):
            file.seek(offset)
            start, block = offset, file.read(max(length, remote_block_bytes))
        return block[offset - start : offset - start + length]

    with tf.io.gfile.GFile(path, "rb") as file:
        yield read_at


@functools.lru_cache
def _remote_pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(_REMOTE_THREADS, thread_name_prefix="records")
