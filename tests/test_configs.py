"""Every file in configs/ is a valid config with a full header, and changes only the keys that are listed here."""

import importlib
import pathlib

import pytest

from configs import default
from tnt_jax.training import saved_config, setup
from tnt_jax.training.config import as_dict, check_config, peak_learning_rate

FOLDER = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
MODELS = {
    "imagenet_tnt_ti": "tnt_ti_patch16_224",
    "imagenet_tnt_s": "tnt_s_patch16_224",
    "imagenet_tnt_b": "tnt_b_patch16_224",
    "imagenet_deit_ti": "deit_tiny_patch16_224",
    "imagenet_deit_s": "deit_small_patch16_224",
    "imagenet_deit_b": "deit_base_patch16_224",
}


# What follows the colon, for configs that require an argument.
ARGUMENTS = {"ablations": ["blocks=1,6,12"], "finetune": ["cifar10"]}


def load(name):
    return importlib.import_module(f"configs.{name}").get_config(*ARGUMENTS.get(name, []))


def changes(name, base="default"):
    """Returns the dotted keys in which two configs differ, with the first one's values."""
    return {
        key: old
        for key, old, _ in saved_config.differences(
            as_dict(check_config(load(name))), as_dict(check_config(load(base)))
        )
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_valid_and_its_model_exists(name):
    config = check_config(load(name))
    setup.make_model(config, config.model.num_classes or 10)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"default"}))
def test_a_header_says_command_hardware_time_and_accuracy(name):
    header = importlib.import_module(f"configs.{name}").__doc__
    for word in ("Command:", "Hardware:", "Time:", "Accuracy:", f"configs/{name}.py"):
        assert word in header, f"configs/{name}.py does not say {word}"


@pytest.mark.parametrize(("name", "model"), MODELS.items())
def test_imagenet_configs_are_the_recipe_with_another_model(name, model):
    assert changes(name) == ({"model.name": model} if model != "tnt_s_patch16_224" else {})


def test_deits_own_recipe_differs_by_its_column_alone():
    assert changes("imagenet_deit_s_original", "imagenet_deit_s") == {
        "learning_rate": 5e-4,
        "learning_rate_batch_size": 512,
        "cooldown_epochs": 0,
        "mixing.order": "erase_mix",
        "data.mean": [0.485, 0.456, 0.406],
        "data.std": [0.229, 0.224, 0.225],
        "data.train_interpolation": "bicubic",
        "data.eval_crop_fraction": 0.875,
    }


def test_ninety_epochs_are_big_visions_plain_baseline():
    assert changes("imagenet_tnt_s_90ep") == {
        "epochs": 90,
        "cooldown_epochs": 0,
        "schedule_unit": "step",
        "warmup_epochs": 8,
        "warmup_learning_rate": 0,
        "min_learning_rate": 0,
        "weight_decay": 0.1,
        "gradient_clip_norm": 1,
        "label_smoothing": 0,
        "ema_decay": 0,
        "model.pooling": "mean",
        "model.sentence_encoding": "sincos",
        "model.zero_init_head": True,
        "model.drop_path_rate": 0,
        "mixing.mixup_alpha": 0.2,
        "mixing.cutmix_alpha": 0,
        "mixing.erase_probability": 0,
        "data.repeated_augmentation": 1,
        "data.randaugment": "rand-m10-n2-p1",
        "data.crop_area": [0.05, 1],
        "data.train_interpolation": "bilinear",
        "data.eval_interpolation": "bilinear",
        "data.eval_crop_fraction": 0.875,
    }


def test_deit_threes_recipe_value_by_value_and_equal_for_both_models():
    assert changes("imagenet_tnt_s_deit3") == {
        "batch_size": 2048,
        "epochs": 800,
        "cooldown_epochs": 0,
        "optimizer": "lamb",
        "learning_rate": 4e-3,
        "gradient_clip_norm": 1,
        "label_smoothing": 0,
        "loss": "sigmoid",
        "bce_threshold": 0,
        "model.layer_scale": 1e-4,
        "model.drop_path_rate": 0.05,
        "model.drop_path_schedule": "constant",
        "mixing.erase_probability": 0,
        "data.randaugment": "",
        "data.three_augment": True,
        "data.color_jitter": 0.3,
        "data.mean": [0.485, 0.456, 0.406],
        "data.std": [0.229, 0.224, 0.225],
        "data.train_interpolation": "bicubic",
        "data.eval_crop_fraction": 1,
    }
    assert changes("imagenet_deit_s_deit3", "imagenet_tnt_s_deit3") == {"model.name": "deit_small_patch16_224"}


def test_a_folder_starts_from_weights_where_they_are_given():
    folder = importlib.import_module("configs.folder").get_config
    assert not folder().pretrained and folder().model.initialization == "scaled" and folder().epochs == 100
    given = folder("hf-hub:timm/deit_small_patch16_224.fb_in1k")
    assert given.pretrained_new_head and given.model.name == "deit_small_patch16_224" and given.data.mean[0] == 0.485
    assert (given.layer_decay, given.epochs) == (0.75, 30)
    # 240 images give 210 steps, at a learning rate that trains a new head (docs/training.md).
    assert given.batch_size == 32 and peak_learning_rate(check_config(given)) == 3e-4
    assert folder("weights.safetensors").model.name == "tnt_s_patch16_224"
    check_config(given)


def test_the_default_is_the_published_recipe():
    config = default.get_config()
    recipe = {
        "batch_size": 1024,
        "epochs": 300,
        "cooldown_epochs": 10,
        "learning_rate": 1e-3,
        "warmup_epochs": 5,
        "warmup_learning_rate": 1e-6,
        "min_learning_rate": 1e-5,
        "schedule": "cosine",
        "schedule_unit": "epoch",
        "weight_decay": 0.05,
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "gradient_clip_norm": 0,
        "ema_decay": 0.99996,
        "label_smoothing": 0.1,
        "mixing.mixup_alpha": 0.8,
        "mixing.cutmix_alpha": 1.0,
        "mixing.probability": 1.0,
        "mixing.cutmix_probability": 0.5,
        "mixing.erase_probability": 0.25,
        "mixing.erase_area": (0.02, 1 / 3),
        "mixing.erase_aspect": (0.3, 1 / 0.3),
        "mixing.order": "mix_erase",
        "data.repeated_augmentation": 3,
        "data.crop_area": (0.08, 1.0),
        "data.crop_aspect": (3 / 4, 4 / 3),
        "data.flip_probability": 0.5,
        "data.train_interpolation": "random",
        "data.randaugment": "rand-m9-mstd0.5-inc1",
        "data.color_jitter": 0.4,
        "data.mean": (0.5, 0.5, 0.5),
        "data.std": (0.5, 0.5, 0.5),
        "data.eval_crop_fraction": 0.9,
        "data.eval_interpolation": "bicubic",
        "model.drop_path_rate": 0.1,
        "model.dtype": "bfloat16",
    }
    for key, value in recipe.items():
        found = config
        for part in key.split("."):
            found = found[part]
        assert found == value, key
