"""ImageNet from archives to an evaluated model: tfds' own builder on miniature archives, then a training run."""

import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from configs import default
from tests.data import imagenet_archives
from tnt_jax.data import decoding, sources
from tnt_jax.data.settings import DataSettings
from tnt_jax.tools import prepare
from tnt_jax.training import input_pipeline, loop
from tnt_jax.training.config import check_config

VALIDATION = 10
PER_SYNSET = 5


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    """Returns data.directory after `python -m tnt_jax.tools.prepare imagenet2012`, with archives where tfds looks."""
    root = tmp_path_factory.mktemp("imagenet")
    imagenet_archives.make_archives(root / "downloads" / "manual", PER_SYNSET, VALIDATION)
    prepare.main(["imagenet2012", f"--directory={root}"])
    return str(root)


def recipe(directory: str):
    """Returns configs/default.py with a small model and small batches."""
    config = default.get_config()
    config.data.directory = directory
    config.batch_size = config.eval_batch_size = 16
    config.model.update({"image_size": 16, "patch_size": 8, "word_size": 4, "depth": 1, "dtype": "float32"})
    config.model.update({"inner_dim": 4, "outer_dim": 16, "inner_num_heads": 2, "outer_num_heads": 2})
    return config


def test_splits_and_classes_are_imagenets(directory):
    source = sources.open_dataset(DataSettings(**recipe(directory).data))
    synsets = sorted(set(imagenet_archives.validation_synsets(VALIDATION)))
    assert source.splits == {"train": PER_SYNSET * len(synsets) + 2, "validation": VALIDATION}
    assert source.num_classes == 1000 and list(source.class_names) == imagenet_archives.class_names()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_image_has_the_label_of_its_synset(directory, split):
    """Train: the archive's name is the class. Validation: the k-th image by name has the k-th label of tfds' list."""
    source = sources.open_dataset(DataSettings(**recipe(directory).data))
    examples = source.open_split(split)
    found = []
    for number in range(len(examples)):
        found.append(source.class_names[examples[number]["label"]])
        pixels = np.asarray(decoding.decode(examples[number]["image"])).mean((0, 1))
        grey = np.ptp(pixels) < 2
        colour = imagenet_archives.colour_of(found[-1])
        assert grey or np.abs(pixels - colour).max() < 8, (number, found[-1])
    expected = imagenet_archives.validation_synsets(VALIDATION)
    if split == "train":
        odd = [name.split("_")[0] for name in (imagenet_archives.PNG_IMAGE, imagenet_archives.CMYK_IMAGE)]
        expected = [*sorted(set(expected)) * PER_SYNSET, *odd]
    assert sorted(found) == sorted(expected)


def test_odd_images_have_become_rgb_jpegs(directory):
    """The PNG named .JPEG and the CMYK image, as in the real archive."""
    builder = tfds.builder("imagenet2012", data_dir=directory)
    assert builder.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
    read = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    files = {example["file_name"].decode(): Image.open(io.BytesIO(example["image"])) for example in read}
    for name in (imagenet_archives.PNG_IMAGE, imagenet_archives.CMYK_IMAGE):
        assert (files[name].format, files[name].mode) == ("JPEG", "RGB")


def test_the_recipe_trains_and_evaluates_on_it(directory, tmp_path):
    config = recipe(directory)
    config.steps, config.log_every_steps = 4, 1
    summary = loop.train_and_evaluate(config, tmp_path / "run")
    assert summary["steps"] == 4 and summary["config"]["model"]["num_classes"] == 1000
    assert summary["config"]["data"]["randaugment"] and summary["config"]["data"]["repeated_augmentation"] == 3
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    # An untrained model gives all classes about the same probability: ln 1000 = 6.9.
    assert len(losses) == 4 and losses[0] == pytest.approx(np.log(1000), abs=0.3) and np.isfinite(losses).all()
    for weights in ("eval", "eval_ema"):
        assert summary[weights]["count"] == VALIDATION  # each once; the batch has six empty slots
        assert summary[weights]["accuracy"] * VALIDATION == pytest.approx(round(summary[weights]["accuracy"] * 10))
        assert summary[weights]["loss"] == pytest.approx(np.log(1000), abs=0.5)


def test_damaged_records_are_replaced_in_training_and_stop_an_evaluation(directory, tmp_path, capsys, caplog):
    """Overwrites bytes of one image per split in TFRecord files, the format that older versions prepared."""
    damaged = tmp_path / "data"
    archives = pathlib.Path(directory) / "downloads" / "manual"
    options = tfds.download.DownloadConfig(manual_dir=str(archives))
    damaged.mkdir()
    builder = tfds.builder("imagenet2012", data_dir=str(damaged))
    builder.download_and_prepare(download_config=options, file_format="tfrecord")
    for split in ("train", "validation"):
        path = next(file for file in sorted(damaged.rglob(f"*-{split}.tfrecord*")) if file.stat().st_size)
        content = bytearray(path.read_bytes())
        start = content.index(b"\xff\xd8\xff")  # a JPEG's first bytes
        content[start : start + 4] = bytes(4)
        path.write_bytes(content)
    config = recipe(str(damaged))
    config.steps, config.log_every_steps, config.eval_every_steps = 16, 8, 16
    config.data.repeated_augmentation = 1  # an epoch sees every image
    config.data.randaugment, config.mixing.probability, config.mixing.erase_probability = "", 0.0, 0.0  # compile less
    with pytest.raises(ValueError, match=r"split 'validation' .*imagenet2012-validation.*, record 0\) cannot be read"):
        list(input_pipeline.InputPipeline(check_config(config)).evaluation())
    config.data.allow_faulty_eval = True
    summary = loop.train_and_evaluate(config, tmp_path / "run")
    assert summary["eval"]["count"] == VALIDATION - 1
    out = capsys.readouterr().out
    assert "1 faulty image replaced so far" in out
    assert "Faulty images replaced in training: 1" in out and "Faulty images left out of the evaluation: 1" in out
    assert caplog.text.count("Faulty image 1 (train)") == 1 and "record 0): cannot identify image file" in caplog.text
