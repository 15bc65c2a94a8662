r"""Linear probe and nearest neighbours on frozen features of a block: quick measures of how a model transfers.

    python -m tnt_jax.tools.probe --source=runs/digits
    python -m tnt_jax.tools.probe --source=tnt_s.safetensors --config=configs/finetune.py:cifar10 \
        --config.model.image_size=224 --output=probe.json [--block=8] [--features=mean]

--source: a workdir (or WORKDIR/checkpoints/STEP), weights for the config's model, or MODEL:WEIGHTS. --config: the data
set, how its images are resized and normalised, and the image size; without it, those of the workdir. Splits are
data.train_split and data.eval_split. Writes probe.json into the workdir of the source, or to --output, and prints the
accuracies.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from tnt_jax.analysis.features import KINDS, extract_features
from tnt_jax.analysis.probe import INVERSE_PENALTIES, NEIGHBOURS, TEMPERATURE, linear_probe, nearest_neighbours
from tnt_jax.models.variants import update
from tnt_jax.pretrained.sources import BEST, CHOICES
from tnt_jax.tools import arguments as command_line
from tnt_jax.tools import be_quiet
from tnt_jax.tools.trained import split_source, workdir_of

FLAGS = flags.FlagValues()  # of this program alone: other programs have a --config of their own
SOURCE = flags.DEFINE_string(
    "source",
    None,
    "A run's workdir, or weights: a file, hf-hub:OWNER/NAME, or MODEL: before either.",
    flag_values=FLAGS,
)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "One of configs/*.py; needed unless --source is a workdir.", flag_values=FLAGS
)
BLOCK = flags.DEFINE_integer("block", None, "1-based; the last unless given.", flag_values=FLAGS)
KIND = flags.DEFINE_enum(
    "features", "class_token", KINDS, "The class token, or the mean of the other sentences.", flag_values=FLAGS
)
WEIGHTS = flags.DEFINE_enum(
    "weights", BEST, CHOICES, "Of a run: the better by its last evaluation, or which.", flag_values=FLAGS
)
OUTPUT = flags.DEFINE_string("output", None, "JSON file; WORKDIR/probe.json unless given.", flag_values=FLAGS)


def probe(
    source: str, config: ConfigDict | None, block: int | None = None, kind: str = "class_token", weights: str = BEST
) -> dict[str, Any]:
    """A source of weights and a config (None: a workdir's own) -> what is written to probe.json.

    linear_probe: see analysis.probe.linear_probe; nearest_neighbours: accuracy, neighbours, temperature; all accuracies
    in 0..1 on data.eval_split. weights: "best", "raw" or "averaged", as in tnt_jax.load_pretrained.
    Raises ValueError or FileNotFoundError for what cannot work, with the fix.
    """
    from tnt_jax.models.variants import VARIANTS, create_model
    from tnt_jax.pretrained.load import fit, read_source
    from tnt_jax.training.config import check_config
    from tnt_jax.training.setup import data_classes

    workdir = workdir_of(source)
    if config is None and workdir is None:
        raise ValueError(f"--config is missing: {source} is not a workdir, which would know its data set and model.")
    experiment = check_config(config if config is not None else command_line.run_config(workdir))
    named = workdir is None and source.partition(":")[0] in VARIANTS
    name, path = split_source(source) if named else (experiment.model.name, source)
    model, found = read_source(path, weights)
    if model is None:
        settings = {"dtype": experiment.model.dtype} if named else experiment.model.arguments()
        model = create_model(**settings | {"name": name})
    size = experiment.model.image_size
    model = update(model, num_classes=0, image_size=size)  # the head plays no part
    params = fit(found, model)
    block = model.depth if block is None else block
    train, test = (
        extract_features(model, params, experiment, split, block=block, kind=kind)
        for split in (experiment.data.train_split, experiment.data.eval_split)
    )
    return {
        "source": str(source),
        "weights": found.label,
        "data": experiment.data.name,
        "train_split": experiment.data.train_split,
        "eval_split": experiment.data.eval_split,
        "train_count": len(train.labels),
        "eval_count": len(test.labels),
        "block": block,
        "features": kind,
        "image_size": size,
        "linear_probe": linear_probe(train, test, seed=experiment.seed, class_names=data_classes(experiment)[1]),
        "nearest_neighbours": {
            "accuracy": nearest_neighbours(train, test),
            "neighbours": NEIGHBOURS,
            "temperature": TEMPERATURE,
        },
    }


def main(_: Sequence[str]) -> None:
    """Prints the accuracies and writes the file."""
    be_quiet()
    if SOURCE.value is None:
        command_line.stop("--source is missing, such as --source=runs/digits.", "probe")
    workdir = workdir_of(SOURCE.value)
    if OUTPUT.value is None and workdir is None:
        command_line.stop(f"--output is missing: {SOURCE.value} is not a workdir that the JSON could go to.", "probe")
    output = Path(OUTPUT.value).expanduser() if OUTPUT.value is not None else workdir / "probe.json"
    try:
        found = probe(SOURCE.value, CONFIG.value, BLOCK.value, KIND.value, WEIGHTS.value)
    except (FileNotFoundError, ValueError) as error:
        command_line.stop(error, "probe")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(output.name + ".tmp")
    temporary.write_text(json.dumps(found, indent=2) + "\n")
    temporary.replace(output)
    linear, nearest = found["linear_probe"], found["nearest_neighbours"]
    print(
        f"{found['data']}, {found['train_count']:,} training and {found['eval_count']:,} test images, "
        f"{found['features']} after block {found['block']}, {found['weights']}"
    )
    penalty = f"C = {linear['inverse_penalty']:g} of {INVERSE_PENALTIES[0]:g} to {INVERSE_PENALTIES[-1]:g}"
    note = "; at the end of these, so a better one may lie beyond" if linear["at_end"] else ""
    note += "" if linear["converged"] else "; not converged, so take it as a lower bound"
    print(f"Linear probe:         {100 * linear['accuracy']:.2f}% ({penalty}{note})")
    print(f"{nearest['neighbours']} nearest neighbours: {100 * nearest['accuracy']:.2f}%")
    command_line.say(f"Written to {output}")


if __name__ == "__main__":
    command_line.run(main, "probe", FLAGS, run_flag="source")
