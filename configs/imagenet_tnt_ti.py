"""TNT-Ti on ImageNet with the published recipe.

Command:  python main.py --config=configs/imagenet_tnt_ti.py --workdir=runs/imagenet_tnt_ti
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run (published: 73.9% top-1, Table 4)
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """The recipe of configs/default.py."""
    config = default.get_config()
    config.model.name = "tnt_ti_patch16_224"
    return config
