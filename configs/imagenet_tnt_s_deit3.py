"""TNT-S on ImageNet with DeiT III's recipe for ViT-S, value by value (arXiv 2204.07118).

Command:  python main.py --config=configs/imagenet_tnt_s_deit3.py --workdir=runs/imagenet_tnt_s_deit3
          400 epochs: --config.epochs=400
Hardware: not yet run
Time:     not yet run. Static estimate, 500,000 steps without evaluations, at this batch size:
          v5e:4x4 197 ms per step, 27.3 h, 437 chip-hours, 7.6 of 17.2 GB per chip;
          v5e:4x8 99 ms, 13.7 h, 438 chip-hours, 4.2 GB; by
          python -m tnt_jax.tools.tpu_report --config=configs/imagenet_tnt_s_deit3.py --topology=v5e:4x4
          --config.model.scan=True
          and 1.7 million cycles per block of 128 images for the inner kernels (docs/tpu.md). An overestimate: by
          instruction bundles, as there, less than half
Accuracy: not yet run. DeiT III reports 81.4% for ViT-S after 800 epochs, and TNT-S's published weights, by another
          recipe, have 81.5%: next to imagenet_deit_s_deit3.py this run shows what TNT adds under the same recipe
Source:   the training command for deit_small_patch16_LS in README_revenge.md of github.com/facebookresearch/deit, the
          defaults of its main.py, and LAMB's clipping by apex's default; models_v2.py for its models, which
          use the same drop path rate in all blocks
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Every value in which DeiT III's command differs from TNT's recipe."""
    config = default.get_config()
    config.batch_size = 2048
    config.epochs = 800.0
    config.cooldown_epochs = 0.0
    config.optimizer = "lamb"
    config.learning_rate = 4e-3
    config.gradient_clip_norm = 1.0
    config.label_smoothing = 0.0
    config.loss = "sigmoid"
    config.bce_threshold = 0.0  # a mixed image has target 1 for both of its classes

    config.model.name = "tnt_s_patch16_224"
    config.model.layer_scale = 1e-4
    config.model.drop_path_rate = 0.05
    config.model.drop_path_schedule = "constant"
    config.mixing.erase_probability = 0.0

    data = config.data
    data.randaugment = ""
    data.three_augment = True
    data.color_jitter = 0.3
    data.mean = (0.485, 0.456, 0.406)  # ImageNet's
    data.std = (0.229, 0.224, 0.225)
    data.train_interpolation = "bicubic"
    data.eval_crop_fraction = 1.0
    return config
