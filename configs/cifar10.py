"""A small TNT on CIFAR-10 (tfds downloads 163 MB), from random weights at 32 x 32.

Command:  python main.py --config=configs/cifar10.py --workdir=runs/cifar10
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """TNT-Ti's widths with patches of 4 pixels and words of 2: 64 sentences of 4 words."""
    config = default.get_config()
    config.batch_size = 512
    config.eval_batch_size = 500
    config.learning_rate_batch_size = 1024
    config.epochs = 200.0
    config.cooldown_epochs = 0.0
    config.ema_decay = 0.999

    model = config.model
    model.name = "tnt_ti_patch16_224"
    model.image_size = 32
    model.patch_size = 4
    model.word_size = 2

    data = config.data
    data.name = "cifar10"
    data.eval_split = "test"
    data.repeated_augmentation = 1
    data.crop_area = (0.3, 1.0)
    data.eval_crop_fraction = 1.0
    return config
