"""DeiT-S on ImageNet with DeiT's own recipe: imagenet_deit_s.py with the recipe's DeiT column.

Command:  python main.py --config=configs/imagenet_deit_s_original.py --workdir=runs/imagenet_deit_s_original
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run (published: 79.8% top-1)
"""

import ml_collections

from configs import imagenet_deit_s


def get_config() -> ml_collections.ConfigDict:
    """Every value in which DeiT's command differs from TNT's."""
    config = imagenet_deit_s.get_config()
    config.learning_rate = 5e-4
    config.learning_rate_batch_size = 512  # 5e-4 x batch / 512: the same 1e-3 at 1024
    config.cooldown_epochs = 0.0
    config.mixing.order = "erase_mix"

    data = config.data
    data.mean = (0.485, 0.456, 0.406)  # ImageNet's
    data.std = (0.229, 0.224, 0.225)
    data.train_interpolation = "bicubic"
    data.eval_crop_fraction = 0.875
    return config
