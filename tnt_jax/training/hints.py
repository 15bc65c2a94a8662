"""Names that other projects use for the config keys: timm, torchvision, DeiT's scripts, Hugging Face, big_vision."""

import difflib
from collections.abc import Sequence

# Dotted key -> its names in other projects, without their groups.
_THEIRS = {
    "model.name": "arch architecture model_name variant",
    "model.num_classes": "n_classes nb_classes num_labels",
    "model.image_size": "img_size input_size resolution crop_size",
    "model.in_channels": "in_chans num_channels channels",
    "model.word_size": "stride first_stride inner_stride",
    "model.inner_dim": "in_dim",
    "model.outer_dim": "embed_dim num_features hidden_size hidden_dim width d_model",
    "model.outer_num_heads": "num_heads num_attention_heads num_heads_outer",
    "model.inner_num_heads": "num_heads_inner in_num_head",
    "model.depth": "num_layers num_hidden_layers layers blocks num_blocks",
    "model.mlp_ratio": "mlp_dim intermediate_size",
    "model.squeeze_excitation": "use_se se",
    "model.drop_path_rate": "drop_path droppath stochastic_depth stochastic_depth_rate stochastic_depth_prob",
    "model.layer_scale": "init_values layerscale",
    "model.pooling": "global_pool pool pool_type classifier",
    "model.head_dropout": "drop drop_rate dropout dropout_rate head_drop",
    "model.initialization": "weight_init init_scheme",
    "model.zero_init_head": "head_init_scale head_zeroinit",
    "model.sentence_encoding": "posemb pos_embed",
    "model.remat": "grad_checkpointing gradient_checkpointing use_checkpoint",
    "model.remat_policy": "remat_keeps checkpoint_policy",
    "model.dtype": "precision mixed_precision half_precision amp bf16 fp16",
    "batch_size": "bs train_batch_size per_device_train_batch_size",
    "eval_batch_size": "val_batch_size test_batch_size validation_batch_size",
    "accumulation_steps": "accum_iter grad_accum_steps gradient_accumulation_steps",
    "epochs": "num_epochs num_train_epochs max_epochs",
    "steps": "num_steps max_steps total_steps num_train_steps",
    "learning_rate": "lr base_lr blr",
    "min_learning_rate": "min_lr lr_min final_lr",
    "warmup_learning_rate": "warmup_lr",
    "warmup_epochs": "warmup warmup_steps",
    "schedule": "sched scheduler lr_scheduler lr_schedule",
    "weight_decay": "wd",
    "optimizer": "opt optim",
    "layer_decay": "layerwise_decay llrd layerwise_lr_decay",
    "freeze": "frozen freeze_layers frozen_layers trainable",
    "adam_beta1": "beta1 b1",
    "adam_beta2": "beta2 b2",
    "adam_epsilon": "eps opt_eps adam_eps",
    "gradient_clip_norm": "clip_grad grad_clip grad_clip_norm clip_grad_norm max_norm max_grad_norm",
    "ema_decay": "ema model_ema model_ema_decay",
    "loss": "criterion bce bce_loss",
    "label_smoothing": "smoothing",
    "bce_threshold": "bce_target_thresh",
    "bce_sum_classes": "bce_sum",
    "class_weights": "class_weight pos_weight bce_pos_weight",
    "pretrained": "finetune init_checkpoint initial_checkpoint pretrained_path weights",
    "seed": "rng_seed",
    "log_every_steps": "log_interval log_every print_freq",
    "eval_every_steps": "eval_interval eval_freq eval_every test_every",
    "checkpoint_every_steps": "save_interval save_freq save_every save_steps",
    "keep_checkpoints": "checkpoint_hist save_total_limit",
    "data.name": "dataset dataset_name",
    "data.directory": "data_dir train_dir data_path dataset_dir root dir folder path",
    "data.eval_split": "val_split test_split",
    "data.repeated_augmentation": "repeated_aug aug_repeats",
    "data.crop_area": "scale",
    "data.crop_aspect": "ratio",
    "data.train_interpolation": "interpolation",
    "data.flip_probability": "hflip",
    "data.randaugment": "aa auto_augment rand_augment",
    "data.eval_crop_fraction": "crop_pct",
    "mixing.mixup_alpha": "mixup",
    "mixing.cutmix_alpha": "cutmix",
    "mixing.probability": "mixup_prob",
    "mixing.cutmix_probability": "mixup_switch_prob switch_prob",
    "mixing.erase_probability": "reprob random_erase random_erasing",
    "distributed.num_processes": "world_size",
    "distributed.process_id": "rank",
    "distributed.coordinator_address": "dist_url master_addr",
}
KEYS_BY_MEANING = {theirs: ours for ours, names in _THEIRS.items() for theirs in names.split()}
_DROPOUT = "Blocks have no dropout; model.head_dropout is the head's, and model.drop_path_rate drops branches."
_WORKDIR = "This is a separate flag: --workdir, which also resumes a run."
_DEVICES = "All devices of the machine are used; CUDA_VISIBLE_DEVICES or JAX_PLATFORMS choose among them."
# Name in other projects -> why there is no such key.
NO_SUCH_THING = {
    **dict.fromkeys(("attn_drop", "attn_drop_rate"), _DROPOUT),
    **dict.fromkeys(("pos_drop_rate", "proj_drop_rate", "hidden_dropout_prob"), _DROPOUT),
    **dict.fromkeys(("output", "output_dir", "workdir", "save_dir", "log_dir", "resume"), _WORKDIR),
    **dict.fromkeys(("device", "gpu", "gpus", "num_gpus"), _DEVICES),
    **dict.fromkeys(("mode", "eval_only", "evaluate", "test_only"), "This is a separate flag: --mode=evaluate."),
}


def hint(key: str, accepted: Sequence[str]) -> str:
    """An unknown dotted key, the accepted ones -> a hint: the nearest by meaning or spelling, or where all keys are."""
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
    every = "A key has its default in configs/default.py and its type in tnt_jax/training/config.py."
    return f"Did you mean {' or '.join(same or near)}?" if near else every
