"""Fine-tuning at 384 x 384 from weights trained at 224 x 224, on ImageNet and on the transfer sets of Table 9.

Command:  python main.py --config=configs/finetune.py:cifar10 --workdir=runs/cifar10_384
          The argument is DATASET or DATASET,MODEL: imagenet2012, cifar10, cifar100, oxford_flowers102,
          oxford_iiit_pet or i_naturalist2018, and a name of tnt_jax.models.variants (without one, tnt_s_patch16_224),
          such as configs/finetune.py:oxford_iiit_pet,tnt_b_patch16_224.
          Published weights come from timm's hub; others: --config.pretrained=runs/imagenet_tnt_s (a workdir) or a file.
          For a DeiT, images are normalised as for its published weights. Weights trained by imagenet_deit_{ti,s,b}.py
          need TNT's 0.5: --config.data.mean="(0.5, 0.5, 0.5)" --config.data.std="(0.5, 0.5, 0.5)"
          Less memory: --config.accumulation_steps=8, --config.model.remat=True
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run. Published top-1 in % of TNT-S and TNT-B (Table 9): ImageNet 83.1, 83.9; CIFAR-10 98.7, 99.1;
          CIFAR-100 90.1, 91.1; Flowers 98.8, 99.0; Pets 94.7, 95.0; iNaturalist 2019 (not 2018) 81.4, 83.2
"""

import dataclasses

import ml_collections

from configs import default
from tnt_jax.models.cards import list_models, model_info


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What changes in the pre-training recipe for a data set."""

    train_split: str
    eval_split: str
    epochs: float
    batch_size: int
    ema_decay: float  # averages over 6% of the run's steps, as in pre-training; ImageNet: the recipe's own value
    eval_crop_fraction: float = 0.9  # the recipe's


# Sizes and epochs are the paper's (Table 9 and its text), which gives no batch size: the recipe's 1024 if an epoch has
# tens of such batches, and 256 for the two small sets, as 1024 would leave out a large part of each epoch. Eval crops:
# CIFAR's subjects reach the borders of their 32 pixels, so nothing is cropped there.
DATA_SETS = {
    "imagenet2012": DataSet("train", "validation", 30.0, 512, 0.99996),
    "cifar10": DataSet("train", "test", 64.0, 1024, 0.996, 1.0),  # 50,000 / 10,000 images
    "cifar100": DataSet("train", "test", 64.0, 1024, 0.996, 1.0),
    # 2,040 / 6,149: the paper's training set is the official training and validation sets, 1,020 images each.
    "oxford_flowers102": DataSet("train+validation", "test", 300.0, 256, 0.993),
    "oxford_iiit_pet": DataSet("train", "test", 300.0, 256, 0.996),  # 3,680 ("trainval") / 3,669
    # Replaces iNaturalist 2019 (265,240 / 3,003 images, 1,010 classes), which tfds lacks. Of 2017, 2018 and 2021, which
    # it has, 2018 is nearest in size: 437,513 / 24,426 images, 8,142 classes. Its test set has no labels.
    "i_naturalist2018": DataSet("train", "validation", 300.0, 1024, 0.9999),
}
# Trained at 224 on ImageNet. TNT-Ti has no published weights: this is the workdir of imagenet_tnt_ti.py.
WEIGHTS = {name: f"hf-hub:{model_info(name).hub_name}" for name in list_models()}
WEIGHTS["tnt_ti_patch16_224"] = "runs/imagenet_tnt_ti"


def get_config(argument: str = "") -> ml_collections.ConfigDict:
    """ "cifar10" or "cifar10,tnt_b_patch16_224" -> the recipe of configs/default.py, adapted to fine-tuning at 384.

    Raises ValueError, with the accepted names, for an unknown data set or model.
    """
    name, _, model_name = argument.partition(",")
    model_name = model_name or "tnt_s_patch16_224"
    if name not in DATA_SETS or model_name not in WEIGHTS:
        raise ValueError(
            f"configs/finetune.py: the argument {argument!r} is not DATASET or DATASET,MODEL: the data sets are "
            f"{', '.join(DATA_SETS)} and the models {', '.join(WEIGHTS)}."
        )
    config = default.get_config()
    config.model.name = model_name
    config.model.image_size = 384
    config.pretrained = WEIGHTS[model_name]

    data_set = DATA_SETS[name]
    config.data.name = name
    config.data.train_split = data_set.train_split
    config.data.eval_split = data_set.eval_split
    config.data.eval_crop_fraction = data_set.eval_crop_fraction
    config.batch_size = data_set.batch_size
    config.eval_batch_size = data_set.batch_size
    config.epochs = data_set.epochs
    config.ema_decay = data_set.ema_decay
    info = model_info(model_name)  # of the published weights; imagenet_deit_*.py differ
    config.data.mean, config.data.std = info.mean, info.std
    if name == "imagenet2012":
        _deit_finetuning(config)
    else:
        config.pretrained_new_head = True
        config.learning_rate_batch_size = 1024  # the pre-training rate, scaled to the batch
    return config


def _deit_finetuning(config: ml_collections.ConfigDict) -> None:
    """ImageNet itself: TNT publishes no command, so this is DeiT's (constant rate, almost no weight decay)."""
    config.learning_rate = 5e-6
    config.learning_rate_batch_size = 512
    config.schedule = "constant"
    config.warmup_epochs = 0.0
    config.cooldown_epochs = 0.0
    config.weight_decay = 1e-8
    config.model.drop_path_rate = 0.0
