"""TNT-S on ImageNet in 90 epochs: a third of the published recipe's time, with plain augmentation and nothing to tune.

Command:  python main.py --config=configs/imagenet_tnt_s_90ep.py --workdir=runs/imagenet_tnt_s_90ep
          DeiT-S: --config.model.name=deit_small_patch16_224
Hardware: not yet run
Time:     not yet run. Static estimate, 112,590 steps without evaluations, at this batch size:
          v5e:4x4 90 ms per step, 2.8 h, 45 chip-hours, 3.8 of 17.2 GB per chip;
          v5e:4x8 45 ms, 1.4 h, 45 chip-hours, 2.2 GB; by
          python -m tnt_jax.tools.tpu_report --config=configs/imagenet_tnt_s_90ep.py --topology=v5e:4x4
          --config.model.scan=True
          and 1.7 million cycles per block of 128 images for the inner kernels (docs/tpu.md). An overestimate: by
          instruction bundles, as there, less than half
Accuracy: not yet run (ViT-S/16 by the same recipe: 76.5% top-1, the source's own figure)
Source:   "Better plain ViT baselines for ImageNet-1k" (arXiv 2205.01580), configs/vit_s16_i1k.py of
          github.com/google-research/big_vision. Its decay of 1e-4 is not multiplied by the rate of 1e-3: 0.1 here.
          Not adopted: it trains on 99% of the images and validates on the rest, has a hidden layer in its head, Xavier
          initialization and a cosine that starts after the warm-up, and its RandAugment includes Cutout
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Every value in which that recipe differs from TNT's."""
    config = default.get_config()
    config.epochs = 90.0
    config.cooldown_epochs = 0.0
    config.schedule_unit = "step"
    config.warmup_epochs = 8.0  # 10,008 steps
    config.warmup_learning_rate = 0.0
    config.min_learning_rate = 0.0
    config.weight_decay = 0.1
    config.gradient_clip_norm = 1.0
    config.label_smoothing = 0.0
    config.ema_decay = 0.0

    model = config.model
    model.name = "tnt_s_patch16_224"
    model.pooling = "mean"
    model.sentence_encoding = "sincos"
    model.zero_init_head = True
    model.drop_path_rate = 0.0

    config.mixing.mixup_alpha = 0.2
    config.mixing.cutmix_alpha = 0.0
    config.mixing.erase_probability = 0.0

    data = config.data
    data.repeated_augmentation = 1
    data.randaugment = "rand-m10-n2-p1"  # always both operations
    data.crop_area = (0.05, 1.0)
    data.train_interpolation = "bilinear"
    data.eval_interpolation = "bilinear"
    data.eval_crop_fraction = 0.875
    return config
