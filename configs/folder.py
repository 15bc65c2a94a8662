"""TNT-S on your own images, hundreds to tens of thousands: DIRECTORY/train/CLASS/*.jpg, DIRECTORY/test/CLASS/*.jpg.

Command:  python main.py --config=configs/folder.py --config.data.directory=DIRECTORY --workdir=runs/folder
          From published weights, a file or a hub address, as few images require:
          python main.py --config=configs/folder.py:hf-hub:timm/tnt_s_patch16_224.in1k \
              --config.data.directory=DIRECTORY --workdir=runs/folder
          Small images: --config.model.image_size=32 --config.model.patch_size=4 --config.model.word_size=2
          Without an accelerator: --config.model.image_size=112; from weights, training only the head:
          --config.freeze='("(?!head/).*",)'
          Accelerators and small images: a larger batch, such as --config.batch_size=128
Hardware: at 224 x 224 only two steps, 10.7 GiB of memory, with and without weights: two virtual cores of a Xeon.
          CIFAR-10 as JPEGs, a TNT of 364,594 parameters at 32 x 32 (docs/results.md), with the recipe's own
          initialization (model.initialization="published"): two virtual cores of an AMD EPYC (Zen 5)
Time:     2 min 3 s for 3 epochs of CIFAR-10
Accuracy: 31.3% of CIFAR-10's test images after these 3 epochs
"""

import ml_collections

from configs import default
from tnt_jax.models.cards import list_models, model_info


def get_config(weights: str = "") -> ml_collections.ConfigDict:
    """The recipe for thousands of images instead of a million; `weights`: a source for config.pretrained.

    Without weights, kernels and positions are initialised for short runs (model.initialization); with weights, training
    is shorter and the lower blocks change less.
    """
    config = default.get_config()
    config.batch_size = 32  # many steps from a few hundred images; fits in 16 GB without an accelerator
    config.eval_batch_size = 32
    config.learning_rate = 3e-4  # for any batch size; a tenth of it leaves a new head untrained (docs/training.md)
    config.min_learning_rate = 1e-6
    config.epochs = 100.0
    config.cooldown_epochs = 0.0
    config.ema_decay = 0.999
    config.ema_warmup = True  # else the average of a short run is mostly its initial weights

    config.model.initialization = "scaled"
    if weights:
        _fine_tuning(config, weights)

    config.data.name = "folder"
    config.data.eval_split = "test"
    config.data.repeated_augmentation = 1
    return config


def _fine_tuning(config: ml_collections.ConfigDict, weights: str) -> None:
    """A new head on published weights. The rate falls by a quarter per block towards the input, as in BEiT."""
    config.pretrained = weights
    config.pretrained_new_head = True
    config.epochs = 30.0
    config.layer_decay = 0.75
    name = weights.rpartition("/")[2].partition(".")[0]  # timm's names on the hub: tnt_s_patch16_224.in1k
    if name in list_models():
        config.model.name = name
    info = model_info(config.model.name)
    config.data.mean, config.data.std = info.mean, info.std  # of the published weights
