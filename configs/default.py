"""Every config key, with its unit: TNT-S on ImageNet with the published recipe.

The other files in this folder start from `get_config()` and change a few keys. Types and limits of the keys are in
tnt_jax/training/config.py and data/settings.py. A misspelt key stops the run with the nearest accepted name. None in
`model` takes the value of the named variant.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """The TNT column of the recipe (Table 3 and the official command), with TNT-S."""
    config = ml_collections.ConfigDict()

    config.seed = 0  # parameters, example order, augmentation, mixing, drop path
    config.batch_size = 1024  # images per optimizer step, over all devices and processes, augmented copies included
    config.eval_batch_size = 1024  # images per evaluation step, over all devices and processes
    config.accumulation_steps = 1  # forward and backward passes per optimizer step; each takes batch_size / this
    config.epochs = 300.0  # length of the cosine, in passes over the training split (floats allowed)
    config.cooldown_epochs = 10.0  # epochs at min_learning_rate after the cosine
    config.steps = 0  # optimizer steps to stop after; 0: epochs + cooldown_epochs

    # Optimizer. No weight decay for biases, norms and other 1-D parameters, class token and position encodings.
    config.optimizer = "adamw"  # or "sgd" (Nesterov), "lamb", "lion", "muon"; docs/training.md has the keys each reads
    config.learning_rate = 1e-3  # peak
    config.learning_rate_batch_size = 0  # if not 0, learning_rate is for this batch and scales linearly with batch_size
    config.schedule = "cosine"  # or "constant" (after the warm-up)
    config.schedule_unit = "epoch"  # the rate changes once an "epoch" (the recipe's staircase) or every "step"
    config.warmup_epochs = 5.0  # linear; afterwards the cosine continues as if it had started at epoch 0
    config.warmup_learning_rate = 1e-6  # start of the warm-up
    config.min_learning_rate = 1e-5  # the cosine's floor
    config.weight_decay = 0.05  # decoupled, times the learning rate, as in PyTorch's AdamW
    config.adam_beta1 = 0.9  # decay of the gradient's average; not read by sgd
    config.adam_beta2 = 0.999  # decay of the squared gradient's average (for Lion of the gradient's: use 0.99)
    config.adam_epsilon = 1e-8  # added to the square root of that average; not read by sgd and lion
    config.momentum = 0.9  # read by sgd and muon only (0.95 is usual for muon)
    config.layer_decay = 1.0  # ratio of each layer's learning rate to the next one's (BEiT), for fine-tuning; 1: off
    # Frozen parameters: regular expressions that match their whole names, as in parameters.txt. For example
    # ("(?!head/).*",) freezes all but the head; ("block_[1-6]/.*", "sentence_position") freezes these.
    config.freeze = ()
    config.gradient_clip_norm = 0.0  # largest global norm of the gradient; 0: no clipping
    config.ema_decay = 0.99996  # of the weights' moving average, per step; evaluated next to the raw weights; 0: none
    config.ema_warmup = (
        False  # True: update t (from 0) averages with min(ema_decay, (1 + t) / (10 + t)), for short runs
    )

    # Loss. Several labels per image need loss "sigmoid", and label_smoothing then moves each class towards one half.
    config.loss = "softmax"  # cross-entropy; "sigmoid": binary cross-entropy per class
    config.label_smoothing = 0.1  # off value 0.1 / K, on value 0.9 + 0.1 / K
    config.bce_threshold = placeholder(float)  # sigmoid: targets above it become 1, others 0; None: soft targets
    config.bce_sum_classes = False  # sigmoid: True sums over classes; False averages
    config.class_weights = "none"  # "balanced": n / (K * n of the class); or JSON: '{"cat": 1, "dog": 2.5}'

    # Initial weights: published ones (.safetensors, .pth, .pth.tar, hf-hub:OWNER/NAME) or another run's workdir, which
    # also gives the model settings that are None below.
    config.pretrained = ""  # empty: random initialisation
    config.pretrained_weights = "best"  # of a run: the better set in its last evaluation; or "raw" or "averaged"
    config.pretrained_new_head = False  # True: discard the source's head and start a new one, as other classes need

    # The loop. Intervals are in optimizer steps; 0: once per epoch.
    config.log_every_steps = 50  # log training metrics
    config.eval_every_steps = 0  # evaluate on the evaluation split, and save the best checkpoint so far
    config.checkpoint_every_steps = 0  # save a checkpoint to resume from
    config.keep_checkpoints = 3  # newest checkpoints to keep, besides the best
    config.prefetch_batches = 2  # batches queued on the devices

    # Monitoring. The batch of a loss, gradient or updated weight that is not finite is recorded in nonfinite_STEP.json.
    config.nonfinite = (
        "stop"  # a step that is not finite ends the run; "skip": it leaves weights, optimizer and average unchanged
    )
    config.nonfinite_limit = 10  # consecutive skipped steps that end the run
    config.slow_step_factor = 10.0  # report steps slower than this times the median (plus 1 s); 0: none

    # jax devices that main.py creates on the host's CPU, for runs without an accelerator: two on two cores train about
    # twice as fast as one. 0: as set in XLA_FLAGS, one by default.
    config.cpu_devices = 0

    # With model.scan on a TPU: limit in KiB on the vector memory for the tiles of one operation. 0: XLA's own limit.
    # -1: the value in docs/tpu.md, which is 6144 for TNT-S at 224, where it cuts the compile time by a third, and XLA's
    # own for all other models. Too small a limit makes some copies many times slower: check it with tools.tpu_report.
    config.scan_tile_kib = -1

    # Data sets for --mode=evaluate, as "NAME[/CONFIG][:SPLIT]" with tfds names, such as ("imagenet_a:test",
    # "imagenet_v2/matched-frequency"); the default split is validation, else test. Empty: only data.eval_split.
    config.report_card = ()

    # Training steps to trace into WORKDIR/profile, as (first, count) from 1: (10, 5) traces steps 10 to 14. The first
    # step of a session compiles, so start later. Empty: none.
    config.profile_steps = ()

    config.model = model = ml_collections.ConfigDict()
    model.name = "tnt_s_patch16_224"  # a name in tnt_jax.models.variants
    model.num_classes = placeholder(int)  # None: the data set's
    # Pixels of the network's input: the side of a square, or (height, width).
    model.image_size = ml_collections.FieldReference(224, field_type=object)
    model.in_channels = 3  # of an image: 1 for grey, 3 for RGB, or any other number
    model.patch_size = placeholder(int)  # pixels: the side of a visual sentence
    model.word_size = placeholder(int)  # pixels: the side of a visual word; words per sentence = (patch / word)^2
    model.inner_dim = placeholder(int)  # C, width of a word
    model.outer_dim = placeholder(int)  # D, width of a sentence
    model.inner_num_heads = placeholder(int)  # divides inner_dim (Table 7)
    model.outer_num_heads = placeholder(int)  # divides outer_dim
    model.depth = placeholder(int)  # L, blocks
    model.mlp_ratio = placeholder(float)  # r: hidden width of both MLPs, relative to their width
    model.tnt_blocks = placeholder(tuple)  # 1-based blocks with an inner path (Table 5), such as (1, 6, 12); (): DeiT
    model.word_position = placeholder(bool)  # Table 6
    model.sentence_position = placeholder(bool)  # Table 6
    model.sentence_encoding = placeholder(str)  # sentence positions: "learned", or "sincos": fixed sines and cosines
    model.squeeze_excitation = placeholder(bool)  # Table 12
    model.qkv_bias = placeholder(bool)  # biases on queries, keys and values: DeiT has them, TNT does not
    # LayerScale: initial value of the learned factors on the residual branches, such as 1e-5; 0: no LayerScale.
    model.layer_scale = placeholder(float)
    model.pooling = placeholder(str)  # the head's input: "class_token", or "mean" of the sentences
    model.drop_path_rate = 0.1  # probability of dropping a residual branch of the last block in training
    model.drop_path_schedule = "linear"  # rises from 0 in the first block; "constant": the same in all
    model.head_dropout = 0.0  # dropout probability of the head's input
    # "published": kernels and positions with standard deviation 0.02, for 300 epochs. "scaled", for shorter runs:
    # kernels with variance 1 / fan-in, positions with standard deviation 0.5.
    model.initialization = "published"
    model.zero_init_head = False  # the head's weights start at 0: the first predictions are uniform
    model.remat = False  # recompute each block's activations in the backward pass: less memory, more time
    # What remat saves, by jax.checkpoint_policies: only a block's inputs, or, with "dots_with_no_batch_dims_saveable",
    # also the outputs of its dense layers.
    model.remat_policy = "nothing_saveable"
    model.scan = False  # compile identical blocks once: faster to compile, slower per step
    # "reference", "xla" (or one form of it: "dot", "broadcast"), "cudnn" (a GPU kernel for the attention), "pallas" (a
    # TPU kernel for the block) or "auto" ("pallas" where possible, else "xla")
    model.inner_implementation = "auto"
    model.outer_implementation = "auto"  # "xla" or "flash" (kernels of jax and cuDNN; auto: on TPUs from 384 pixels)
    model.dtype = "bfloat16"  # of the computation; parameters, softmax, norm statistics and logits are float32

    config.data = data = ml_collections.ConfigDict()
    data.name = "imagenet2012"  # any tfds name, "folder", "digits" or "synthetic"
    data.directory = ""  # folder of the prepared sets (tfds' data_dir), or the folder's root; empty: tfds' default
    data.train_split = "train"  # tfds split notation, such as "train[:80%]"
    data.eval_split = "validation"  # the same notation
    # Bits per channel: 8, or 16 (16-bit grey, and .npy files), to which 8-bit images are widened.
    data.pixel_bits = 8
    data.mean = (0.5, 0.5, 0.5)  # of pixels in 0..1; one number per channel, or one for all: (0.5,)
    data.std = (0.5, 0.5, 0.5)  # likewise
    data.repeated_augmentation = 3  # augmented copies of an image in a global batch; 1: none
    # "random_resized", or DeiT III's "simple": resize to cover the size, pad by four reflected pixels, crop at random;
    # crop_area and crop_aspect are not read.
    data.crop = "random_resized"
    data.crop_area = (0.08, 1.0)  # random resized crop: fraction of the image's area ...
    data.crop_aspect = (3 / 4, 4 / 3)  # ... and width / height
    data.train_interpolation = "random"  # "bilinear", "bicubic", or "random" (either, drawn per image)
    data.flip_probability = 0.5  # left-right
    data.randaugment = "rand-m9-mstd0.5-inc1"  # timm's notation; empty: none
    data.three_augment = False  # DeiT III's, if randaugment is empty: one of grey, solarise and blur
    data.color_jitter = 0.4  # largest change of brightness, contrast, saturation; only if randaugment is empty
    data.eval_crop_fraction = 0.9  # of the resized image's shorter side
    data.eval_interpolation = "bicubic"  # or "bilinear"
    data.exif_orientation = True  # rotate a folder's images by their EXIF tag; tfds sets stay as stored
    data.worker_processes = -1  # make batches, the same for any number; 0: none; -1: one per core, none for a small set
    data.on_device = False  # keep the training split on every device; crops and flips there, no RandAugment
    data.synthetic_examples = 8192  # size of the "synthetic" set
    # Training images that may fail to decode in one session; others, drawn from the seed, replace them. One more stops
    # the run: ImageNet has none, so that many mean a damaged copy. 0: the first stops the run.
    data.max_faulty_images = 10
    data.allow_faulty_eval = False  # True: the evaluation leaves out undecodable images; False: it raises an error

    config.mixing = mixing = ml_collections.ConfigDict()
    mixing.mixup_alpha = 0.8  # Beta(alpha, alpha); 0: no mixup
    mixing.cutmix_alpha = 1.0  # 0: no CutMix
    mixing.probability = 1.0  # of mixing a batch
    mixing.cutmix_probability = 0.5  # of CutMix for a mixed batch, if both are on
    mixing.erase_probability = 0.25  # random erasing: one box per image, filled with N(0, 1)
    mixing.erase_area = (0.02, 1 / 3)  # fraction of the image's area
    mixing.erase_aspect = (0.3, 1 / 0.3)  # height / width
    mixing.order = "mix_erase"  # TNT: mix, then erase; "erase_mix": DeiT

    config.distillation = distillation = ml_collections.ConfigDict()
    distillation.teacher = ""  # a workdir, or MODEL:WEIGHTS; it sees the same images, normalised for it. Empty: none
    distillation.kind = "soft"  # the teacher's probabilities, or "hard": its top class
    distillation.temperature = 1.0  # of both models' probabilities, if kind is "soft"
    distillation.weight = 0.5  # of the teacher's term in the loss; the labels get the rest

    config.distributed = distributed = ml_collections.ConfigDict()
    distributed.enabled = False  # for more than one process: calls jax.distributed.initialize
    distributed.coordinator_address = ""  # host:port of process 0; empty: found from the cluster's environment
    distributed.num_processes = 0  # 0: found from the cluster's environment
    distributed.process_id = -1  # -1: found from the cluster's environment
    distributed.initialization_timeout_seconds = 300  # wait for the other processes at the start
    distributed.heartbeat_timeout_seconds = 100  # silence after which a process counts as lost and the others stop

    return config
