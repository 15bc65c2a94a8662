import dataclasses
import logging
import os

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tnt_jax.data import records


@dataclasses.dataclass(frozen=True)
class Instruction:
    filename: str
    skip: int
    take: int
    examples_in_shard: int


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tnt_jax" / "record_offsets"


@pytest.fixture
def file(tmp_path):
    """A TFRecord file of 20 records of 0 to 19 bytes each."""
    path = str(tmp_path / "some.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        for number in range(20):
            writer.write(bytes([number]) * number)
    return path


def in_file_order(split) -> list[bytes]:
    """What TensorFlow's own sequential reader says the split's records are."""
    found = []
    for part in split.file_instructions:
        held = tf.data.TFRecordDataset(part.filename).skip(part.skip).take(part.take)
        found.extend(held.as_numpy_iterator())
    return found


@pytest.mark.parametrize("spec", ["train", "train[:80%]", "train[20:41]", "train[40:]+test+train[:3]"])
def test_records_are_those_of_the_sequential_reader(tiles, spec):
    split = tfds.builder("tiles", data_dir=tiles("tfrecord")).info.splits[spec]
    assert len({part.filename for part in split.file_instructions}) > 1
    files = records.TFRecordFiles(split.file_instructions)
    expected = in_file_order(split)
    assert len(files) == len(expected) == split.num_examples
    shuffled = np.random.default_rng(0).permutation(len(expected))
    assert files.read(shuffled) == [expected[index] for index in shuffled]


@pytest.mark.parametrize("spec", ["train", "train[20:41]", "train[40:]+test"])
def test_array_records_are_those_of_tfds(tiles, spec):
    builder = tfds.builder("tiles", data_dir=tiles("array_record"))
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    instructions = builder.info.splits[spec].file_instructions
    assert len(instructions) > 1
    files = records.ArrayRecordFiles(instructions)
    expected = [example["picture"] for example in builder.as_data_source(spec)]
    pictures = [
        builder.info.features.deserialize_example_np(record)["picture"] for record in files.read(range(len(files)))
    ]
    for picture, other in zip(pictures, expected, strict=True):
        np.testing.assert_array_equal(picture, other)
    assert files.read([3, 1]) == files.read([0, 1, 2, 3])[::-2]


def test_where_names_the_file_and_the_record_in_it(tiles):
    instructions = tfds.builder("tiles", data_dir=tiles("tfrecord")).info.splits["train[20:41]"].file_instructions
    files = records.TFRecordFiles(instructions)
    assert files.where(0) == f"{instructions[0].filename}, record {instructions[0].skip}"
    assert files.where(20) == f"{instructions[-1].filename}, record {instructions[-1].skip + instructions[-1].take - 1}"
    with pytest.raises(IndexError, match="record 21 of a split of 21 records"):
        files.read([21])


def test_offsets_are_kept_until_the_file_changes(cache, file, monkeypatch):
    offsets = records.record_offsets(file)
    np.testing.assert_array_equal(np.diff(offsets), 16 + np.arange(20))
    with monkeypatch.context() as patch:
        patch.setattr(records, "_walk", lambda *_: pytest.fail("the file was indexed again"))
        np.testing.assert_array_equal(records.record_offsets(file), offsets)
    with tf.io.TFRecordWriter(file) as writer:
        writer.write(b"other")
    np.testing.assert_array_equal(records.record_offsets(file), [0, 21])
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"torn", "truncated", "foreign"])
def test_a_damaged_cache_is_made_again(cache, file, content):
    offsets = records.record_offsets(file)
    (kept,) = cache.iterdir()
    if content == "truncated":
        content = kept.read_bytes()[:-8]
    if content == "foreign":
        np.save(kept, offsets[:-1])
    else:
        kept.write_bytes(content)
    np.testing.assert_array_equal(records.record_offsets(file), offsets)
    np.testing.assert_array_equal(np.load(kept), offsets)


def test_an_unwritable_cache_costs_a_warning_alone(tmp_path, file, monkeypatch, caplog):
    (tmp_path / "taken").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    with caplog.at_level(logging.WARNING):
        assert len(records.record_offsets(file)) == 21
    assert "XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("cut", [1, 4, 17, 30])
def test_a_file_that_was_cut_off_is_named(cache, file, cut):
    os.truncate(file, os.path.getsize(file) - cut)
    with pytest.raises(ValueError, match=r"some\.tfrecord: record \d+, at byte \d+, reaches beyond"):
        records.record_offsets(file)


def test_a_missing_file_and_a_wrong_count_are_named(cache, file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tfrecord is missing"):
        records.TFRecordFiles([Instruction(str(tmp_path / "gone.tfrecord"), 0, 5, 5)])
    with pytest.raises(FileNotFoundError, match=r"gone\.array_record is missing"):
        records.ArrayRecordFiles([Instruction(str(tmp_path / "gone.array_record"), 0, 5, 5)])
    with pytest.raises(ValueError, match=r"holds 20 records, but dataset_info\.json beside it says 19"):
        records.TFRecordFiles([Instruction(file, 0, 19, 19)])


def test_a_file_that_shrinks_while_it_is_read_is_named(cache, file):
    files = records.TFRecordFiles([Instruction(file, 0, 20, 20)])
    os.truncate(file, 100)
    with pytest.raises(ValueError, match="changed while it was read"):
        files.read([19])


def test_remote_files_are_read_in_the_same_way(cache, file, monkeypatch):
    """Through tf.io.gfile, in blocks while walking: here in blocks that end inside records and headers."""
    local = records.TFRecordFiles([Instruction(file, 2, 17, 20)]).read(range(17))
    remote = "file://" + file
    for block in (1, 13, 50, 1000):
        monkeypatch.setattr(records, "_REMOTE_BLOCK_BYTES", block)
        monkeypatch.setattr(records, "_load_offsets", lambda *_: None)
        assert records.TFRecordFiles([Instruction(remote, 2, 17, 20)]).read(range(17)) == local
    with pytest.raises(FileNotFoundError, match="is missing"):
        records.record_offsets(remote + ".gone")
