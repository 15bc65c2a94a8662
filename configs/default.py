"""Every key an experiment has, once, with its unit: TNT-S on ImageNet, the published recipe.

The other files in this folder start from `get_config()` and change a few keys. Types and limits of the keys are in
tnt_jax/training/config.py and data/settings.py. A misspelt key stops the run with the nearest accepted name. None in
`model` means "as the named variant has it".
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """The TNT column of the recipe (Table 3 and the official command), with TNT-S."""
    config = ml_collections.ConfigDict()

    config.seed = 0  # parameters, order of the examples, augmentation, mixing, drop path
    config.batch_size = 1024  # images an optimizer step, over all devices and processes; augmented copies count
    config.eval_batch_size = 1024  # images an evaluation step, over all devices and processes
    config.accumulation_steps = 1  # forward and backward passes an optimizer step; each takes batch_size / this
    config.epochs = 300.0  # length of the cosine, in passes over the training split (floats allowed)
    config.cooldown_epochs = 10.0  # epochs at min_learning_rate after the cosine
    config.steps = 0  # stops after this many optimizer steps; 0: after epochs + cooldown_epochs

    # Optimizer. Biases, norms, any 1-D parameter, class token and position encodings do not decay.
    config.optimizer = "adamw"  # or "sgd" (Nesterov), "lamb", "lion", "muon"; docs/training.md has what each reads
    config.learning_rate = 1e-3  # peak
    config.learning_rate_batch_size = 0  # if not 0, learning_rate is for this batch and scales linearly with batch_size
    config.schedule = "cosine"  # or "constant" (after the warm-up)
    config.schedule_unit = "epoch"  # the rate changes once an "epoch" (the recipe's staircase) or every "step"
    config.warmup_epochs = 5.0  # linear; afterwards the cosine continues as if it had started at epoch 0
    config.warmup_learning_rate = 1e-6  # where the warm-up starts
    config.min_learning_rate = 1e-5  # the cosine's floor
    config.weight_decay = 0.05  # decoupled, times the learning rate, as in PyTorch's AdamW
    config.adam_beta1 = 0.9  # decay of the gradient's average; all but sgd read it
    config.adam_beta2 = 0.999  # decay of the squared gradient's average (Lion: of the gradient's; 0.99 there)
    config.adam_epsilon = 1e-8  # added to the square root of that; not read by sgd and lion
    config.momentum = 0.9  # of sgd and muon (0.95 is usual there); others do not read it
    config.layer_decay = 1.0  # learning rate of a layer in that of the next: BEiT's rule, for fine-tuning; 1: all alike
    # Parameters that stay as they are: regular expressions that match their whole names, as in parameters.txt.
    # ("(?!head/).*",): all but the head; ("block_[1-6]/.*", "sentence_position"): these.
    config.freeze = ()
    config.gradient_clip_norm = 0.0  # largest global norm of the gradient; 0: no clipping
    config.ema_decay = 0.99996  # moving average of the weights, a step; evaluated beside the raw weights; 0: none
    config.ema_warmup = (
        False  # True: update t (from 0) averages with min(ema_decay, (1 + t) / (10 + t)), for short runs
    )

    # Loss. With several labels an image, loss must be "sigmoid", and label_smoothing moves each class towards one half.
    config.loss = "softmax"  # cross-entropy; "sigmoid": binary cross-entropy of each class
    config.label_smoothing = 0.1  # off value 0.1 / K, on value 0.9 + 0.1 / K
    config.bce_threshold = placeholder(float)  # sigmoid: targets above it are 1, others 0; None: soft as they are
    config.bce_sum_classes = False  # sigmoid: True sums over the classes; False takes their mean
    config.class_weights = "none"  # "balanced": n / (K * n of the class); or JSON, '{"cat": 1, "dog": 2.5}'

    # Starting point: published weights (.safetensors, .pth, .pth.tar, hf-hub:OWNER/NAME) or another run's workdir, from
    # which the model takes the sizes that are None below.
    config.pretrained = ""  # empty: random initialisation
    config.pretrained_weights = "best"  # of a run's last evaluation; or its "raw" or "averaged" weights
    config.pretrained_new_head = False  # True: a head for another number of classes starts anew

    # The loop. Intervals in optimizer steps; 0 means once an epoch.
    config.log_every_steps = 50  # a line of training metrics
    config.eval_every_steps = 0  # the evaluation split; the best yet is saved as well
    config.checkpoint_every_steps = 0  # where an interrupted run resumes
    config.keep_checkpoints = 3  # the newest ones kept (beside the best)
    config.prefetch_batches = 2  # batches that wait on the devices

    # What is watched. Whatever is not finite (loss, gradient, updated weights) has its batch in nonfinite_STEP.json.
    config.nonfinite = (
        "stop"  # a step that is not finite ends the run; "skip": it leaves weights, optimizer and average
    )
    config.nonfinite_limit = 10  # skipped steps in a row that end the run after all
    config.slow_step_factor = 10.0  # a step of so many times the median (and 1 s more) is reported; 0: none is

    # jax devices that main.py makes of the host's CPU, for runs without an accelerator: two on two cores train about
    # twice as fast as one. 0: as XLA_FLAGS sets, which is one.
    config.cpu_devices = 0

    # With model.scan on a TPU: the vector memory, in KiB, that the tiles of one operation may take. 0: XLA's own limit.
    # -1: what docs/tpu.md found for the model, 6144 for TNT-S at 224, which takes a third off its time to compile, and
    # XLA's own for all others. Too small for a size, it makes single copies many times as slow, so look with
    # tools.tpu_report before giving a number.
    config.scan_tile_kib = -1

    # Data sets for --mode=evaluate, as "NAME[/CONFIG][:SPLIT]" with tfds names, such as ("imagenet_a:test",
    # "imagenet_v2/matched-frequency"); without a split: validation, or else test. Empty: data.eval_split alone.
    config.report_card = ()

    # Training steps to trace into WORKDIR/profile, as (first, count), counted from 1: (10, 5) is steps 10 to 14. The
    # first step of a session compiles, so start later. Empty: none.
    config.profile_steps = ()

    config.model = model = ml_collections.ConfigDict()
    model.name = "tnt_s_patch16_224"  # tnt_jax.models.variants lists the names
    model.num_classes = placeholder(int)  # None: the data set's
    # Pixels: the side of the square that the network sees, or (height, width).
    model.image_size = ml_collections.FieldReference(224, field_type=object)
    model.in_channels = 3  # of an image: 1 grey, 3 red, green and blue, or any other number
    model.patch_size = placeholder(int)  # pixels, the side of a visual sentence
    model.word_size = placeholder(int)  # pixels, the side of a visual word; words a sentence = (patch / word)^2
    model.inner_dim = placeholder(int)  # C, width of a word
    model.outer_dim = placeholder(int)  # D, width of a sentence
    model.inner_num_heads = placeholder(int)  # divides inner_dim (Table 7)
    model.outer_num_heads = placeholder(int)  # divides outer_dim
    model.depth = placeholder(int)  # L, blocks
    model.mlp_ratio = placeholder(float)  # r, hidden width of both MLPs, in widths
    model.tnt_blocks = placeholder(tuple)  # 1-based blocks with an inner path (Table 5), such as (1, 6, 12); (): DeiT
    model.word_position = placeholder(bool)  # Table 6
    model.sentence_position = placeholder(bool)  # Table 6
    model.sentence_encoding = placeholder(str)  # of these positions: "learned", or "sincos": fixed sines and cosines
    model.squeeze_excitation = placeholder(bool)  # Table 12
    model.qkv_bias = placeholder(bool)  # biases on queries, keys and values: DeiT has them, TNT not
    # LayerScale: where the learned factors of the residual branches start, such as 1e-5; 0: there are none.
    model.layer_scale = placeholder(float)
    model.pooling = placeholder(str)  # what the head reads: "class_token", or "mean" of the sentences
    model.drop_path_rate = 0.1  # probability that a residual branch is left out in training; of the last block
    model.drop_path_schedule = "linear"  # it rises from 0 in the first block; "constant": the same in all
    model.head_dropout = 0.0  # probability, for each channel that the head reads
    # "published": kernels and positions of deviation 0.02, made for 300 epochs. "scaled", for shorter runs: kernels of
    # variance 1 / fan-in, positions of deviation 0.5.
    model.initialization = "published"
    model.zero_init_head = False  # the head's weights start from 0: the first predictions are even
    model.remat = False  # recompute each block's activations in the backward pass: less memory, more time
    # What remat need not recompute, by jax.checkpoint_policies: nothing but a block's inputs, or (with
    # "dots_with_no_batch_dims_saveable") the outputs of its dense layers as well.
    model.remat_policy = "nothing_saveable"
    model.scan = False  # one compiled block for all blocks of a kind: compiles faster, a slower step
    # "reference", "xla" (one form of it by name: "dot", "broadcast"), "cudnn" (a GPU's kernel for the attention) or
    # "pallas" (a TPU kernel for the block; auto: where it can be had, else xla)
    model.inner_implementation = "auto"
    model.outer_implementation = "auto"  # "xla" or "flash" (kernels of jax and cuDNN; auto: on TPUs from 384 pixels)
    model.dtype = "bfloat16"  # of the arithmetic; parameters, softmax, norm statistics and logits are float32

    config.data = data = ml_collections.ConfigDict()
    data.name = "imagenet2012"  # any tfds name, "folder", "digits" or "synthetic"
    data.directory = ""  # where the prepared sets lie (tfds' data_dir), or the folder's root; empty: tfds' default
    data.train_split = "train"  # tfds split notation, such as "train[:80%]"
    data.eval_split = "validation"  # the same notation
    # Of a channel: 8, or 16 (16-bit grey, and .npy files), which 8-bit images are widened to.
    data.pixel_bits = 8
    data.mean = (0.5, 0.5, 0.5)  # of the pixels in 0..1; a number a channel, or one for all: (0.5,)
    data.std = (0.5, 0.5, 0.5)  # likewise
    data.repeated_augmentation = 3  # augmented copies of an image in a global batch; 1: none
    # "random_resized", or DeiT III's "simple": resized to cover the size, then cut out anywhere, four pixels beyond the
    # edges included (reflected); crop_area and crop_aspect are not read.
    data.crop = "random_resized"
    data.crop_area = (0.08, 1.0)  # random resized crop: fraction of the image's area ...
    data.crop_aspect = (3 / 4, 4 / 3)  # ... and width / height
    data.train_interpolation = "random"  # "bilinear", "bicubic", or "random" (either, for each image)
    data.flip_probability = 0.5  # left-right
    data.randaugment = "rand-m9-mstd0.5-inc1"  # timm's notation; empty: none
    data.three_augment = False  # DeiT III's, where randaugment is empty: grey, solarised or blurred, one of them
    data.color_jitter = 0.4  # brightness, contrast, saturation by up to this; only where randaugment is empty
    data.eval_crop_fraction = 0.9  # of the resized image's shorter side
    data.eval_interpolation = "bicubic"  # or "bilinear"
    data.exif_orientation = True  # a folder's images are rotated as their EXIF tag says; tfds sets stay as stored
    data.worker_processes = -1  # make batches; 0: this process; -1: one a core, none for a small set; same batches
    data.on_device = False  # the whole training split on every device; crops and flips there, no RandAugment
    data.synthetic_examples = 8192  # size of the "synthetic" set
    # Different images of the training split that may turn out undecodable in one session; others, drawn from the seed,
    # take their places. One more stops the run: ImageNet has none, so that many mean a damaged copy. 0: the first stops
    data.max_faulty_images = 10
    data.allow_faulty_eval = False  # True: undecodable images are left out of the evaluation; False: an error

    config.mixing = mixing = ml_collections.ConfigDict()
    mixing.mixup_alpha = 0.8  # Beta(alpha, alpha); 0: no mixup
    mixing.cutmix_alpha = 1.0  # 0: no CutMix
    mixing.probability = 1.0  # that a batch is mixed at all
    mixing.cutmix_probability = 0.5  # that a mixed batch takes CutMix, where both are on
    mixing.erase_probability = 0.25  # random erasing, one box an image, filled with N(0, 1)
    mixing.erase_area = (0.02, 1 / 3)  # fraction of the image's area
    mixing.erase_aspect = (0.3, 1 / 0.3)  # height / width
    mixing.order = "mix_erase"  # TNT: mix, then erase; "erase_mix": DeiT

    config.distillation = distillation = ml_collections.ConfigDict()
    distillation.teacher = ""  # a workdir, or MODEL:WEIGHTS; it sees the same images, normalised its way. Empty: none
    distillation.kind = "soft"  # the teacher's probabilities, or "hard": its best class
    distillation.temperature = 1.0  # of both models' probabilities, where kind is "soft"
    distillation.weight = 0.5  # of the teacher's part in the loss; the labels have the rest

    config.distributed = distributed = ml_collections.ConfigDict()
    distributed.enabled = False  # more than one process: jax.distributed.initialize
    distributed.coordinator_address = ""  # host:port of process 0; empty: found from the cluster's environment
    distributed.num_processes = 0  # 0: found from the cluster's environment
    distributed.process_id = -1  # -1: found from the cluster's environment
    distributed.initialization_timeout_seconds = 300  # how long a process waits for the others at the start
    distributed.heartbeat_timeout_seconds = 100  # after which a silent process counts as gone, and the others stop

    return config
