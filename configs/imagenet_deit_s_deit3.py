"""DeiT-S on ImageNet with DeiT III's recipe: imagenet_tnt_s_deit3.py with another model, its baseline.

Command:  python main.py --config=configs/imagenet_deit_s_deit3.py --workdir=runs/imagenet_deit_s_deit3
Hardware: not yet run
Time:     not yet run
Accuracy: not yet run (published: 81.4% top-1 after 800 epochs, arXiv 2204.07118)
"""

import ml_collections

from configs import imagenet_tnt_s_deit3


def get_config() -> ml_collections.ConfigDict:
    """The same recipe with a DeiT-S, which is the paper's ViT-S."""
    config = imagenet_tnt_s_deit3.get_config()
    config.model.name = "deit_small_patch16_224"
    return config
