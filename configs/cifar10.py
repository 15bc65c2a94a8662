"""TNT against DeiT on CIFAR-10 from random weights at 32 x 32: same recipe, same size (parameters within 1%).

Command:  python main.py --config=configs/cifar10.py --workdir=runs/cifar10_tnt
          python main.py --config=configs/cifar10.py:model=deit --workdir=runs/cifar10_deit
          tfds downloads 163 MB; for images in folders, add --config.data.name=folder --config.data.directory=CIFAR.
          The argument after the colon is one or more of these, separated by commas:
            model=tnt|deit                DeiT is wider, to make up for the inner path's parameters
            scale=full|mini               mini: for two CPU cores
            blocks=all|1,4,8,12           blocks with an inner path (Table 5)
            sentence_position=true|false  position encodings of the sentences (Table 6)
            word_position=true|false      position encodings of the words (Table 6)
            inner_heads=1|2|3|4|6|12      heads of the inner attention (Table 7)
            words=16|4                    words per sentence M; M * C stays the same (Table 8); mini: 64|16|4. With 64
                                          words C is 3, so there is one head; 4 words of C = 48 have 12% more parameters
            initialization=published|scaled
                                          initial weights: the recipe's, or those for short runs
Hardware: full: not yet run. mini: benchmarks/cifar10.md
Time:     full: not yet run. mini: benchmarks/cifar10.md
Accuracy: full: not yet run. mini: benchmarks/cifar10.md

The recipe is TNT's, adapted to 50,000 small photographs: crops of at least 30% of the area, no RandAugment (it is made
for 224 pixels) and no repeated copies, so that the set stays on the device (data.on_device). The learning rate is 1e-3
for a batch of 1024 as in the recipe, the weights are averaged over an epoch or two, and there are 200 epochs.
"""

from typing import Any

import ml_collections

from configs import ablations, default

FULL = {"patch_size": 4, "depth": 12, "outer_num_heads": 3}
STARTS = {"published": "published", "scaled": "scaled"}
MINI = {"patch_size": 8, "depth": 4, "outer_num_heads": 4}
SCALES = {"full": FULL, "mini": MINI}
WIDTHS = {"full": {"tnt": 192, "deit": 201}, "mini": {"tnt": 128, "deit": 136}}  # D; DeiT's makes up for the inner path
# Words per sentence -> pixels of a word's side, C, inner heads; M * C is always 192.
WORDS = {
    "full": {"16": (1, 12, 2), "4": (2, 48, 2)},
    "mini": {"64": (1, 3, 1), "16": (2, 12, 2), "4": (4, 48, 2)},
}
ACCEPTED = {
    "model": "tnt or deit",
    "scale": "full or mini",
    "blocks": "all, or different block numbers, such as blocks=1,4",
    "sentence_position": "true or false",
    "word_position": "true or false",
    "inner_heads": "a whole number that divides the words' width C (12; 48 with words=4, 3 with words=64)",
    "initialization": "published or scaled",
    "words": "16 or 4; with scale=mini 64 as well",
}


def get_config(argument: str = "model=tnt") -> ml_collections.ConfigDict:
    """An argument such as "model=deit,scale=mini" -> the config.

    Raises ValueError for an unknown or repeated key, a value that the key does not accept, or a key of the inner path
    with model=deit; each message has what is accepted.
    """
    chosen = ablations.parse(argument, ACCEPTED, "configs/cifar10.py")
    scale = chosen.get("scale", "full")
    config = default.get_config()
    _set_model(config.model, chosen, ablations.look_up("scale", scale, SCALES), scale)
    config.batch_size = 512
    config.eval_batch_size = 500
    config.learning_rate_batch_size = 1024
    config.epochs = 200.0
    config.cooldown_epochs = 0.0
    config.ema_decay = 0.99
    if scale == "mini":
        config.batch_size = 256
        config.epochs = 30.0
        config.warmup_epochs = 2.0
        config.schedule_unit = "step"
        config.model.dtype = "float32"
        config.model.drop_path_rate = 0.0

    data = config.data
    data.name = "cifar10"
    data.eval_split = "test"
    data.on_device = True
    data.repeated_augmentation = 1
    data.crop_area = (0.3, 1.0)
    data.randaugment = ""
    data.color_jitter = 0.0
    data.eval_crop_fraction = 1.0
    return config


def _set_model(model: ml_collections.ConfigDict, chosen: dict[str, str], sizes: dict[str, int], scale: str) -> None:
    """Fills in config.model."""
    kind = chosen.get("model", "tnt")
    width = ablations.look_up("model", kind, WIDTHS[scale])
    model.name = {"tnt": "tnt_ti_patch16_224", "deit": "deit_tiny_patch16_224"}[kind]
    model.image_size = 32
    model.outer_dim = width
    model.update(sizes)
    if kind == "deit":
        useless = [key for key in ("blocks", "word_position", "inner_heads", "words") if key in chosen]
        if useless:
            raise ValueError(f"model=deit has no inner path, so {' and '.join(useless)} must be left out beside it.")
    else:
        _set_inner(model, chosen, WORDS[scale])
    model.initialization = ablations.look_up("initialization", chosen.get("initialization", "published"), STARTS)
    if "sentence_position" in chosen:
        model.sentence_position = ablations.look_up(
            "sentence_position", chosen["sentence_position"], ablations.SWITCHES
        )


def _set_inner(model: ml_collections.ConfigDict, chosen: dict[str, str], words: dict[str, Any]) -> None:
    """Fills in the settings of the inner path."""
    inner = ablations.look_up("words", chosen.get("words", "16"), words)
    model.word_size, model.inner_dim, model.inner_num_heads = inner
    if "inner_heads" in chosen:
        heads = ablations.divisors(model.inner_dim)
        model.inner_num_heads = ablations.look_up("inner_heads", chosen["inner_heads"], heads)
    if "blocks" in chosen and (blocks := ablations.blocks_of(chosen["blocks"], model.depth)) is not None:
        if not blocks:
            raise ValueError("blocks=none: use model=deit, which has the same number of parameters.")
        model.tnt_blocks = blocks
    if "word_position" in chosen:
        model.word_position = ablations.look_up("word_position", chosen["word_position"], ablations.SWITCHES)
