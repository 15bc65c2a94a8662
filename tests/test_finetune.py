"""Fine-tuning: configs/finetune.py, and a whole run from one image size to another on a folder of images."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import finetune
from tests.models import helpers
from tnt_jax import save_pretrained
from tnt_jax.data import batches
from tnt_jax.models.complexity import count_parts
from tnt_jax.training import device_augment, loop, losses, setup
from tnt_jax.training.config import check_config, peak_learning_rate
from tnt_jax.training.optimizer import make_schedule

CLASSES = {
    "imagenet2012": 1000,
    "cifar10": 10,
    "cifar100": 100,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "i_naturalist2018": 8142,
}
BATCH = 16
SMALL = helpers.SMALL | {"depth": 1}
PUBLISHED_SIZES = {"image_size": 224, "patch_size": 16, "word_size": 4}


@pytest.mark.parametrize("model", finetune.WEIGHTS)
@pytest.mark.parametrize("name", finetune.DATA_SETS)
def test_every_config_is_accepted(name, model):
    config = check_config(finetune.get_config(f"{name},{model}"))
    assert (config.data.name, config.model.name, config.model.image_size) == (name, model, 384)
    assert config.pretrained == finetune.WEIGHTS[model]
    assert config.pretrained_new_head == (name != "imagenet2012")
    assert config.epochs == {"imagenet2012": 30, "cifar10": 64, "cifar100": 64}.get(name, 300)


def test_data_sets_are_those_of_tfds_with_the_papers_classes():
    import tensorflow_datasets as tfds

    assert set(CLASSES) == set(finetune.DATA_SETS)
    for name, num_classes in CLASSES.items():
        info = tfds.builder(name, data_dir="/nowhere").info
        assert info.features[info.supervised_keys[1]].num_classes == num_classes, name


def test_imagenet_has_deits_values():
    """DeiT's command for 384 pixels: constant rate 5e-6, weight decay 1e-8, 30 epochs, batches of 512, no drop path."""
    config = check_config(finetune.get_config("imagenet2012"))
    schedule = make_schedule(config, steps_per_epoch=2502)
    assert [float(schedule(step)) for step in (0, 1, 40_000, 75_059)] == [np.float32(5e-6)] * 4
    assert (config.batch_size, config.weight_decay, config.model.drop_path_rate) == (512, 1e-8, 0.0)


def test_transfer_keeps_the_recipe_of_pre_training():
    config = check_config(finetune.get_config("oxford_flowers102"))
    assert config.data.train_split == "train+validation"
    assert peak_learning_rate(config) == 1e-3 * 256 / 1024
    assert (config.weight_decay, config.model.drop_path_rate, config.warmup_epochs) == (0.05, 0.1, 5)
    assert config.data.randaugment == "rand-m9-mstd0.5-inc1" and config.data.repeated_augmentation == 3


@pytest.mark.parametrize("name, flops", [("tnt_s_patch16_224", 17.3), ("tnt_b_patch16_224", 44.5)])
def test_multiply_adds_at_384(name, flops):
    """Matches timm's results tables, which leave out the biases: 0.03 G for TNT-S and 0.05 G for TNT-B."""
    model = setup.make_model(check_config(finetune.get_config(f"imagenet2012,{name}")), num_classes=1000)
    assert sum(part.multiply_adds for part in count_parts(model)) / 1e9 == pytest.approx(flops, abs=0.1)


def test_without_a_model_it_is_tnt_s():
    assert finetune.get_config("cifar10") == finetune.get_config("cifar10,tnt_s_patch16_224")


@pytest.mark.parametrize("argument", ["", "i_naturalist2019", "cifar10,tnt_s", "tnt_s_patch16_224"])
def test_what_is_not_accepted_is_refused_with_what_is(argument):
    with pytest.raises(ValueError, match="data sets are .*i_naturalist2018 and the models tnt_ti_patch16_224"):
        finetune.get_config(argument)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Writes a folder of 5 classes with 24 training and 5 test images."""
    root, draw = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for split, count in {"train": 24, "test": 5}.items():
        for number in range(count):
            place = root / split / f"class_{number % SMALL['num_classes']}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 256, (20, 20, 3), np.uint8)
            Image.fromarray(pixels).resize((40, 30)).save(place / f"{number}.jpg")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns (weights file for 16 x 16 pixels, its model, its variables)."""
    return saved_weights(tmp_path_factory)


@pytest.fixture(scope="module")
def weights_224(tmp_path_factory):
    """Like `weights`, for 224 x 224 pixels with the published patch and word sizes."""
    return saved_weights(tmp_path_factory, **PUBLISHED_SIZES)


def saved_weights(tmp_path_factory, **sizes):
    model = helpers.small_model(depth=1, **sizes)
    variables = helpers.random_variables(model)
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_pretrained(path, model, variables)
    return path, model, variables


def small_config(image_size, folder, source):
    """Returns configs/finetune.py for a small model on a folder, with nothing random in the model."""
    config = finetune.get_config("oxford_flowers102")
    config.model.update({key: value for key, value in SMALL.items() if key != "num_classes"})
    config.model.update({"image_size": image_size, "dtype": "float32", "drop_path_rate": 0.0})
    config.mixing.update({"probability": 0.0, "erase_probability": 0.0})
    config.data.update({"randaugment": "", "color_jitter": 0.0, "repeated_augmentation": 1})
    config.data.update({"name": "folder", "directory": str(folder), "train_split": "train", "eval_split": "test"})
    config.update({"pretrained": str(source), "pretrained_new_head": False, "steps": 1, "log_every_steps": 1})
    config.update({"batch_size": BATCH, "eval_batch_size": 8})
    return config


def first_loss(model, variables, batch, config) -> float:
    """Returns the mean loss, with smoothed labels, of a training batch [1, b, ...] at the batch's image size."""

    @jax.jit
    def loss(variables, images, labels):
        logits = model.apply(variables, device_augment.normalize(images, config.data))
        targets = losses.smooth_labels(labels, SMALL["num_classes"], config.label_smoothing)
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    return float(loss(variables, batch["image"][0], batch["label"][0]))


@pytest.mark.parametrize("image_size", [16, 384])
def test_the_first_loss_is_that_of_the_weights_on_resized_images(image_size, folder, request, tmp_path):
    """At the pre-training size nothing changes; at another size only the sentence positions do."""
    path, model, variables = request.getfixturevalue("weights" if image_size < 100 else "weights_224")
    config = small_config(image_size, folder, path)
    if image_size > 100:
        config.model.update(PUBLISHED_SIZES | {"image_size": image_size})
    run = setup.prepare(config, tmp_path / "run")
    before, now = variables["params"], run.pretrained
    np.testing.assert_array_equal(now["word_position"], before["word_position"])
    np.testing.assert_array_equal(now["sentence_position"][0], before["sentence_position"][0])
    if image_size == 16:
        jax.tree.map(np.testing.assert_array_equal, now, before)
    else:
        assert now["sentence_position"].shape == (1 + 24**2, SMALL["outer_dim"])

    config, size = run.config, (image_size, image_size)
    batch = next(
        batches.train_batches(config.data, batch_size=BATCH, image_size=size, seed=config.seed, local_devices=1)
    )
    expected = first_loss(model, variables, batch, config)

    summary = loop.train(run)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in lines if "train/loss" in line)
    assert first["step"] == 1
    np.testing.assert_allclose(first["train/loss"], expected, rtol=1e-5)
    assert summary["config"]["model"]["image_size"] == image_size and 0 <= summary["eval"]["accuracy"] <= 1


def test_another_number_of_classes_gets_a_new_head_alone(folder, weights, tmp_path):
    path, _, variables = weights
    config = small_config(24, folder, path)
    config.pretrained_new_head = True
    config.model.num_classes = 7
    run = setup.prepare(config, tmp_path / "run")
    assert run.pretrained["head"]["kernel"].shape == (SMALL["outer_dim"], 7)
    jax.tree.map(np.testing.assert_array_equal, run.pretrained["block_1"], variables["params"]["block_1"])
