"""TNT-S on your own images: DIRECTORY/train/CLASS/*.jpg and DIRECTORY/test/CLASS/*.jpg (or .png), from random weights.

Command:  python main.py --config=configs/folder.py --config.data.directory=DIRECTORY --workdir=runs/folder
          Small images: --config.model.image_size=32 --config.model.patch_size=4 --config.model.word_size=2
          Accelerators with room for the batch, and small images: --config.accumulation_steps=1
          From published weights: --config.pretrained=FILE --config.pretrained_new_head=True
Hardware: not yet run at 224 x 224. CIFAR-10 as JPEGs, a TNT of 364,594 parameters at 32 x 32 (docs/results.md): two
          cores of an AMD EPYC (Zen 5), virtual
Time:     2 min 42 s for 3 epochs of CIFAR-10
Accuracy: 30.4% of CIFAR-10's test images after these 3 epochs
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """The recipe as it is, for a data set of thousands instead of a million images."""
    config = default.get_config()
    config.batch_size = 128
    config.eval_batch_size = 128
    config.accumulation_steps = 4  # 32 images at a time: fits a machine of 16 GB without an accelerator
    config.learning_rate_batch_size = 1024  # learning_rate is the recipe's; it scales to the batch
    config.min_learning_rate = 1e-6
    config.epochs = 100.0
    config.cooldown_epochs = 0.0
    config.ema_decay = 0.999
    config.ema_warmup = True  # else the average of a run of few steps is mostly where it started

    config.data.name = "folder"
    config.data.eval_split = "test"
    config.data.repeated_augmentation = 1
    return config
