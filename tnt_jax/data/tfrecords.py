"""Reads records of TFRecord files by number, for data sets on disks and in buckets that older tfds versions wrote.

A TFRecord file is a chain of [length, uint64 little endian][crc of the length, 4 bytes][data][crc of the data, 4 bytes]
and has no index. One walk over the lengths builds it, and the user's cache directory keeps it. The checksums are not
verified. Files in a bucket are read through etils.epath.
"""

import concurrent.futures
import hashlib
import os
import pathlib
import struct
import time
from collections.abc import Sequence

import numpy as np
from absl import logging
from etils import epath

_HEADER, _FOOTER = 12, 4  # bytes around the data
_BLOCK = 8 << 20  # bytes per read of a remote file, where a request costs more than a megabyte
_THREADS = 16


class TFRecordFiles:
    """`read(file, record)` -> the record's bytes. Pickling includes the index, so workers need not build it."""

    def __init__(self, files: Sequence[tuple[str, int]]):
        """files: (path, records). Raises FileNotFoundError for a missing file, ValueError for a damaged one."""
        self._paths = [path for path, _ in files]
        self._offsets = _indexed(files)

    def read(self, file: int, record: int) -> bytes:
        """Number of a file and of a record in it -> the record. Raises ValueError if the file has changed since."""
        start, end = (int(offset) for offset in self._offsets[file][record : record + 2])
        with epath.Path(self._paths[file]).open("rb") as opened:
            opened.seek(start + _HEADER)
            data = opened.read(end - start - _HEADER - _FOOTER)
        if len(data) != end - start - _HEADER - _FOOTER:
            raise ValueError(f"{self._paths[file]} changed while it was read: record {record} should end at byte {end}")
        return data


def cache_directory() -> pathlib.Path:
    """Returns the folder of the indices: tnt_jax/tfrecords in $XDG_CACHE_HOME, by default ~/.cache."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tnt_jax" / "tfrecords"


def _indexed(files: Sequence[tuple[str, int]]) -> list[np.ndarray]:
    """(path, records) per file -> int64 [records + 1] per file: the offsets of its records, and its size, in bytes."""
    started = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        versions = list(pool.map(_version, [path for path, _ in files]))
        key = hashlib.sha256(repr([*map(tuple, files), *versions]).encode()).hexdigest()
        kept = cache_directory() / f"{key[:32]}.npy"
        try:
            return np.split(np.load(kept, allow_pickle=False), np.cumsum([count + 1 for _, count in files])[:-1])
        except FileNotFoundError:
            logging.info("Indexing %d TFRecord files (once; kept in %s)", len(files), kept)
        except (OSError, ValueError, EOFError) as error:
            logging.warning("%s cannot be read (%s); indexing the files again", kept, error)
        found = list(pool.map(_walk, *zip(*files, strict=True), [size for size, _ in versions]))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(writing := kept.with_name(f"{os.getpid()}_{kept.name}"), np.concatenate(found))
        os.replace(writing, kept)
    except OSError as error:
        why = f"in {kept.parent} ({error}): it is rebuilt at every start. Set XDG_CACHE_HOME to a writable folder."
        logging.warning("The index of the TFRecord files cannot be saved %s", why)
    logging.info("Indexed %d TFRecord files in %.1f s", len(files), time.monotonic() - started)
    return found


def _version(path: str) -> tuple[int, float]:
    """-> size in bytes, and the time of the last modification."""
    try:
        if "://" not in path:
            return (stat := os.stat(path)).st_size, stat.st_mtime_ns
        return (stat := epath.Path(path).stat()).length, stat.mtime
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing: copy it to its place, or remove the folder and prepare the data set again."
        ) from error


def _walk(path: str, count: int, size: int) -> np.ndarray:
    """A file of `count` records and `size` bytes -> int64 [count + 1], see _indexed. Raises ValueError on mismatch."""
    offsets, start, block = [0], 0, b""

    def header_at(offset: int) -> bytes:
        nonlocal start, block
        if "://" not in path:
            return os.pread(file.fileno(), _HEADER, offset)
        if not start <= offset <= offset + _HEADER <= start + len(block):
            file.seek(offset)
            start, block = offset, file.read(_BLOCK)
        return block[offset - start : offset - start + _HEADER]

    with epath.Path(path).open("rb") as file:
        while offsets[-1] < size:
            length = struct.unpack_from("<Q", header_at(offsets[-1]).ljust(_HEADER, b"\xff"))[0]
            offsets.append(offsets[-1] + _HEADER + length + _FOOTER)
            if offsets[-1] > size:
                raise ValueError(
                    f"{path}: record {len(offsets) - 2}, at byte {offsets[-2]}, extends beyond the {size} bytes: "
                    "it is truncated, damaged or not a TFRecord file. Copy it again or prepare the data set again."
                )
    if len(offsets) - 1 != count:
        raise ValueError(
            f"{path} holds {len(offsets) - 1} records, but dataset_info.json beside it lists {count}: the files are "
            "not from the same preparation. Remove the folder and prepare the data set again."
        )
    return np.array(offsets, np.int64)
