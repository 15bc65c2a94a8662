"""DeiT-B on ImageNet with TNT's recipe, for a like-for-like comparison.

Command:  python main.py --config=configs/imagenet_deit_b.py --workdir=runs/imagenet_deit_b
          To evaluate published DeiT weights, which need other preprocessing, add
          --config.data.mean="(0.485, 0.456, 0.406)" --config.data.std="(0.229, 0.224, 0.225)"
          --config.data.eval_crop_fraction=0.875
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run (published with DeiT's own recipe: 81.8% top-1)
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """The recipe of configs/default.py."""
    config = default.get_config()
    config.model.name = "deit_base_patch16_224"
    return config
