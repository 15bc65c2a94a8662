"""TNT-B on ImageNet with the published recipe.

Command:  python main.py --config=configs/imagenet_tnt_b.py --workdir=runs/imagenet_tnt_b
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run (published: 82.9% top-1, Table 4)
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """The recipe of configs/default.py."""
    config = default.get_config()
    config.model.name = "tnt_b_patch16_224"
    return config
