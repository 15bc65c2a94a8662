"""DeiT-S on ImageNet with TNT's recipe, for a like-for-like comparison.

Command:  python main.py --config=configs/imagenet_deit_s.py --workdir=runs/imagenet_deit_s
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run (published with DeiT's own recipe: 79.8% top-1)
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """The recipe of configs/default.py."""
    config = default.get_config()
    config.model.name = "deit_small_patch16_224"
    return config
