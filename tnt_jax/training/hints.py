"""Names that other projects have for our config keys: timm, torchvision, DeiT's scripts, Hugging Face, big_vision."""

import difflib
from collections.abc import Sequence

# Their name, without its group -> ours, dotted.
KEYS_BY_MEANING = {
    # model
    "arch": "model.name",
    "architecture": "model.name",
    "model_name": "model.name",
    "variant": "model.name",
    "n_classes": "model.num_classes",
    "nb_classes": "model.num_classes",
    "num_labels": "model.num_classes",
    "img_size": "model.image_size",
    "input_size": "model.image_size",
    "resolution": "model.image_size",
    "crop_size": "model.image_size",
    "stride": "model.word_size",
    "first_stride": "model.word_size",
    "inner_stride": "model.word_size",
    "in_dim": "model.inner_dim",
    "embed_dim": "model.outer_dim",
    "num_features": "model.outer_dim",
    "hidden_size": "model.outer_dim",
    "hidden_dim": "model.outer_dim",
    "width": "model.outer_dim",
    "d_model": "model.outer_dim",
    "num_heads": "model.outer_num_heads",
    "num_attention_heads": "model.outer_num_heads",
    "num_heads_outer": "model.outer_num_heads",
    "num_heads_inner": "model.inner_num_heads",
    "in_num_head": "model.inner_num_heads",
    "num_layers": "model.depth",
    "num_hidden_layers": "model.depth",
    "layers": "model.depth",
    "blocks": "model.depth",
    "num_blocks": "model.depth",
    "mlp_dim": "model.mlp_ratio",
    "intermediate_size": "model.mlp_ratio",
    "use_se": "model.squeeze_excitation",
    "se": "model.squeeze_excitation",
    "drop_path": "model.drop_path_rate",
    "droppath": "model.drop_path_rate",
    "stochastic_depth": "model.drop_path_rate",
    "stochastic_depth_rate": "model.drop_path_rate",
    "stochastic_depth_prob": "model.drop_path_rate",
    "grad_checkpointing": "model.remat",
    "gradient_checkpointing": "model.remat",
    "use_checkpoint": "model.remat",
    "precision": "model.dtype",
    "mixed_precision": "model.dtype",
    "half_precision": "model.dtype",
    "amp": "model.dtype",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    # training
    "bs": "batch_size",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "val_batch_size": "eval_batch_size",
    "test_batch_size": "eval_batch_size",
    "validation_batch_size": "eval_batch_size",
    "accum_iter": "accumulation_steps",
    "grad_accum_steps": "accumulation_steps",
    "gradient_accumulation_steps": "accumulation_steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_epochs": "epochs",
    "num_steps": "steps",
    "max_steps": "steps",
    "total_steps": "steps",
    "num_train_steps": "steps",
    "lr": "learning_rate",
    "base_lr": "learning_rate",
    "blr": "learning_rate",
    "min_lr": "min_learning_rate",
    "lr_min": "min_learning_rate",
    "final_lr": "min_learning_rate",
    "warmup_lr": "warmup_learning_rate",
    "warmup": "warmup_epochs",
    "warmup_steps": "warmup_epochs",
    "sched": "schedule",
    "scheduler": "schedule",
    "lr_scheduler": "schedule",
    "lr_schedule": "schedule",
    "wd": "weight_decay",
    "beta1": "adam_beta1",
    "beta2": "adam_beta2",
    "b1": "adam_beta1",
    "b2": "adam_beta2",
    "eps": "adam_epsilon",
    "opt_eps": "adam_epsilon",
    "adam_eps": "adam_epsilon",
    "clip_grad": "gradient_clip_norm",
    "grad_clip": "gradient_clip_norm",
    "grad_clip_norm": "gradient_clip_norm",
    "clip_grad_norm": "gradient_clip_norm",
    "max_norm": "gradient_clip_norm",
    "max_grad_norm": "gradient_clip_norm",
    "ema": "ema_decay",
    "model_ema": "ema_decay",
    "model_ema_decay": "ema_decay",
    "smoothing": "label_smoothing",
    "finetune": "pretrained",
    "init_checkpoint": "pretrained",
    "initial_checkpoint": "pretrained",
    "pretrained_path": "pretrained",
    "weights": "pretrained",
    "rng_seed": "seed",
    "log_interval": "log_every_steps",
    "log_every": "log_every_steps",
    "print_freq": "log_every_steps",
    "eval_interval": "eval_every_steps",
    "eval_freq": "eval_every_steps",
    "eval_every": "eval_every_steps",
    "test_every": "eval_every_steps",
    "save_interval": "checkpoint_every_steps",
    "save_freq": "checkpoint_every_steps",
    "save_every": "checkpoint_every_steps",
    "save_steps": "checkpoint_every_steps",
    "checkpoint_hist": "keep_checkpoints",
    "save_total_limit": "keep_checkpoints",
    # data and mixing
    "dataset": "data.name",
    "dataset_name": "data.name",
    "data_dir": "data.directory",
    "train_dir": "data.directory",
    "data_path": "data.directory",
    "dataset_dir": "data.directory",
    "root": "data.directory",
    "dir": "data.directory",
    "folder": "data.directory",
    "path": "data.directory",
    "val_split": "data.eval_split",
    "test_split": "data.eval_split",
    "repeated_aug": "data.repeated_augmentation",
    "aug_repeats": "data.repeated_augmentation",
    "scale": "data.crop_area",
    "ratio": "data.crop_aspect",
    "interpolation": "data.train_interpolation",
    "hflip": "data.flip_probability",
    "aa": "data.randaugment",
    "auto_augment": "data.randaugment",
    "rand_augment": "data.randaugment",
    "crop_pct": "data.eval_crop_fraction",
    "mixup": "mixing.mixup_alpha",
    "cutmix": "mixing.cutmix_alpha",
    "mixup_prob": "mixing.probability",
    "mixup_switch_prob": "mixing.cutmix_probability",
    "switch_prob": "mixing.cutmix_probability",
    "reprob": "mixing.erase_probability",
    "random_erase": "mixing.erase_probability",
    "random_erasing": "mixing.erase_probability",
    # several processes
    "world_size": "distributed.num_processes",
    "rank": "distributed.process_id",
    "dist_url": "distributed.coordinator_address",
    "master_addr": "distributed.coordinator_address",
}
_CHANNELS = "Images have three channels (red, green, blue); no key changes that."
_DROPOUT = "There is no dropout; what is dropped are paths: model.drop_path_rate."
_OPTIMIZER = "The optimizer is AdamW; adam_beta1, adam_beta2, adam_epsilon and weight_decay are its keys."
_WORKDIR = "It is a flag of its own: --workdir, where a run is also resumed."
_DEVICES = "All devices of the machine are used; CUDA_VISIBLE_DEVICES or JAX_PLATFORMS choose among them."
# Their name -> why there is no such key.
NO_SUCH_THING = {
    **dict.fromkeys(("in_chans", "in_channels", "num_channels", "channels"), _CHANNELS),
    **dict.fromkeys(("drop", "drop_rate", "dropout", "dropout_rate", "attn_drop", "attn_drop_rate"), _DROPOUT),
    **dict.fromkeys(("pos_drop_rate", "proj_drop_rate", "hidden_dropout_prob"), _DROPOUT),
    **dict.fromkeys(("opt", "optim", "optimizer", "momentum"), _OPTIMIZER),
    **dict.fromkeys(("output", "output_dir", "workdir", "save_dir", "log_dir", "resume"), _WORKDIR),
    **dict.fromkeys(("device", "gpu", "gpus", "num_gpus"), _DEVICES),
    **dict.fromkeys(("mode", "eval_only", "evaluate", "test_only"), "It is a flag of its own: --mode=evaluate."),
    **dict.fromkeys(("loss", "criterion", "bce", "bce_loss"), "The loss is softmax cross-entropy."),
    **dict.fromkeys(("init_values", "layer_scale", "layerscale"), "There is no LayerScale."),
    **dict.fromkeys(("layer_decay", "layerwise_decay", "llrd"), "All blocks have the same learning rate."),
    "global_pool": "The head reads the class token.",
}


def hint(key: str, accepted: Sequence[str]) -> str:
    """A dotted key that does not exist, those that do -> a sentence: ours by meaning or spelling, or where to look."""
    group, _, leaf = key.rpartition(".")
    name = leaf.lower().replace("-", "_")
    if name in NO_SUCH_THING:
        return NO_SUCH_THING[name]
    near = [each for each in accepted if each.rpartition(".")[2] == name]
    if not near and name in KEYS_BY_MEANING:
        near = [KEYS_BY_MEANING[name]]
    if not near:  # the words of a key: "patch" of patch_size
        near = [each for each in accepted if set(name.split("_")) <= set(each.rpartition(".")[2].split("_"))]
        near = near if len(near) <= 3 else []
    if not near:
        leaves = difflib.get_close_matches(name, {each.rpartition(".")[2] for each in accepted}, n=1, cutoff=0.7)
        near = [each for each in accepted if each.rpartition(".")[2] in leaves]
    if not near and group not in {each.rpartition(".")[0] for each in accepted}:
        near = difflib.get_close_matches(key, accepted, n=1, cutoff=0.8)
    same = [each for each in near if each.rpartition(".")[0] == group]
    return f"Did you mean {' or '.join(same or near)}?" if near else "configs/default.py lists every key."
