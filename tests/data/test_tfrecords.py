"""TFRecord files by byte offset: the same records as TensorFlow's reader, a cached index, clear errors for damage."""

import logging
import os
import pickle

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tnt_jax.data import tfrecords


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tfrecords.cache_directory()


@pytest.fixture
def file(tmp_path):
    """Writes a TFRecord file of 20 records of 0 to 19 bytes -> its path."""
    path = str(tmp_path / "some.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(20):
            writer.write(bytes([number]) * number)
    return path


def test_records_are_those_of_the_sequential_reader(tiles):
    instructions = tfds.builder("tiles", data_dir=tiles("tfrecord")).info.splits["train"].file_instructions
    paths = [each.filename for each in instructions]
    files = tfrecords.TFRecordFiles([(each.filename, each.examples_in_shard) for each in instructions])
    assert len(paths) > 1
    for copy in (files, pickle.loads(pickle.dumps(files))):
        for number, path in enumerate(paths):
            expected = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
            assert [copy.read(number, record) for record in reversed(range(len(expected)))] == expected[::-1]


def test_the_index_is_kept_until_a_file_changes(cache, file, monkeypatch):
    (offsets,) = tfrecords.TFRecordFiles([(file, 20)])._offsets
    np.testing.assert_array_equal(np.diff(offsets), 16 + np.arange(20))
    with monkeypatch.context() as patch:
        patch.setattr(tfrecords, "_walk", lambda *_: pytest.fail("the file was indexed again"))
        np.testing.assert_array_equal(tfrecords.TFRecordFiles([(file, 20)])._offsets[0], offsets)
    with tf.io.TFRecordWriter(file) as writer:
        writer.write(b"other")
    assert tfrecords.TFRecordFiles([(file, 1)]).read(0, 0) == b"other"
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"torn"])
def test_a_damaged_index_is_made_again(cache, file, content, caplog):
    tfrecords.TFRecordFiles([(file, 20)])
    (kept,) = cache.iterdir()
    kept.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert tfrecords.TFRecordFiles([(file, 20)]).read(0, 19) == bytes([19]) * 19
    assert "cannot be read" in caplog.text and len(np.load(kept)) == 21


def test_an_unwritable_cache_costs_a_warning_alone(tmp_path, file, monkeypatch, caplog):
    (tmp_path / "taken").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with caplog.at_level(logging.WARNING):
        assert tfrecords.TFRecordFiles([(file, 20)]).read(0, 3) == b"\3\3\3"
    assert "XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("cut", [1, 4, 17, 30])
def test_a_file_that_was_cut_off_is_named(cache, file, cut):
    os.truncate(file, os.path.getsize(file) - cut)
    with pytest.raises(ValueError, match=r"some\.tfrecord: record \d+, at byte \d+, extends beyond"):
        tfrecords.TFRecordFiles([(file, 20)])


def test_a_missing_file_and_a_wrong_count_are_named(cache, file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tfrecord is missing"):
        tfrecords.TFRecordFiles([(str(tmp_path / "gone.tfrecord"), 5)])
    with pytest.raises(ValueError, match=r"holds 20 records, but dataset_info\.json beside it lists 19"):
        tfrecords.TFRecordFiles([(file, 19)])


def test_a_file_that_shrinks_while_it_is_read_is_named(cache, file):
    files = tfrecords.TFRecordFiles([(file, 20)])
    os.truncate(file, 100)
    with pytest.raises(ValueError, match="changed while it was read"):
        files.read(0, 19)


@pytest.mark.parametrize("block", [13, 50, 1000])
def test_remote_files_are_read_in_the_same_way(cache, file, monkeypatch, block):
    """Indexing reads blocks, which end inside records and headers here. memory:// stands in for a bucket."""
    fsspec = pytest.importorskip("fsspec")

    class Remote:
        """Stands in for etils' path to a file in a bucket."""

        def __init__(self, path):
            self._path = path.removeprefix("memory://")

        def open(self, mode):
            return fsspec.open(f"memory://{self._path}", mode).open()

        def stat(self):
            size = fsspec.filesystem("memory").size(self._path)
            return type("Stat", (), {"length": size, "mtime": 1})

    with fsspec.open("memory://some.tfrecord", "wb") as there, open(file, "rb") as here:
        there.write(here.read())
    monkeypatch.setattr(tfrecords.epath, "Path", Remote)
    monkeypatch.setattr(tfrecords, "_BLOCK", block)
    files = tfrecords.TFRecordFiles([("memory://some.tfrecord", 20)])
    assert [files.read(0, record) for record in range(20)] == [bytes([number]) * number for number in range(20)]
