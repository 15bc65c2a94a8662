"""DeiT-S on ImageNet with DeiT III's recipe: the baseline of imagenet_tnt_s_deit3.py, which differs only in the model.

Command:  python main.py --config=configs/imagenet_deit_s_deit3.py --workdir=runs/imagenet_deit_s_deit3
Hardware: not yet run
Time:     not yet run. Static estimate, 500,000 steps without evaluations, at this batch size:
          v5e:4x4 120 ms per step, 16.7 h, 268 chip-hours, 6.4 of 17.2 GB per chip;
          v5e:4x8 58 ms, 8.0 h, 257 chip-hours, 3.5 GB; by
          python -m tnt_jax.tools.tpu_report --config=configs/imagenet_deit_s_deit3.py --topology=v5e:4x4
          --config.model.scan=True
          An overestimate for element-wise operations (docs/measuring.md)
Accuracy: not yet run (published: 81.4% top-1 after 800 epochs, arXiv 2204.07118)
"""

import ml_collections

from configs import imagenet_tnt_s_deit3


def get_config() -> ml_collections.ConfigDict:
    """The same recipe with a DeiT-S, which is the paper's ViT-S."""
    config = imagenet_tnt_s_deit3.get_config()
    config.model.name = "deit_small_patch16_224"
    return config
