"""TNT-S on ImageNet with the published recipe.

Command:  python main.py --config=configs/imagenet_tnt_s.py --workdir=runs/imagenet_tnt_s
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run (published: 81.5% top-1, Table 4)
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """The recipe of configs/default.py."""
    config = default.get_config()
    config.model.name = "tnt_s_patch16_224"
    return config
