r"""Linear probe and nearest neighbours on frozen features of a block: quick measures of how a model transfers.

    python -m tnt_jax.tools.probe --source=runs/digits
    python -m tnt_jax.tools.probe --source=tnt_s.safetensors --config=configs/finetune.py:cifar10 \
        --config.model.image_size=224 --output=probe.json [--block=8] [--features=mean]

--source: a workdir (or WORKDIR/checkpoints/STEP), weights for the config's model, or MODEL:WEIGHTS. --config: gives the
data set, how its images are resized and normalised, and the image size; default: the workdir's. Splits are
data.train_split and data.eval_split. Writes probe.json into the workdir of the source, or to --output, and prints the
accuracies.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from tnt_jax.analysis.features import KINDS, extract_features
from tnt_jax.analysis.probe import INVERSE_PENALTIES, NEIGHBOURS, TEMPERATURE, linear_probe, nearest_neighbours
from tnt_jax.models.variants import VARIANTS, create_model, update
from tnt_jax.pretrained.load import fit, read_source, split_source
from tnt_jax.pretrained.sources import BEST
from tnt_jax.tools import command_line
from tnt_jax.tools.trained import add_source_flags, workdir_of
from tnt_jax.workdir import write_atomically


def probe(
    source: str, config: ConfigDict | None, block: int | None = None, kind: str | None = None, weights: str = BEST
) -> dict[str, Any]:
    """A source of weights and a config -> the content of probe.json.

    Accuracies are in 0..1, on data.eval_split. linear_probe: see analysis.probe.linear_probe; nearest_neighbours:
    accuracy, neighbours, temperature. kind: "class_token" or "mean"; None: what the model's head reads. weights:
    "best", "raw" or "averaged", as in tnt_jax.load_pretrained.
    Raises ValueError or FileNotFoundError with the fix.
    """
    from tnt_jax.data import sources
    from tnt_jax.training.config import check_config

    if config is None:
        raise ValueError(f"--config is missing: {source} is not a workdir, so its data set and model are unknown.")
    config = check_config(config)
    data, size = config.data, config.model.image_size
    named = workdir_of(source) is None and source.partition(":")[0] in VARIANTS
    name, path = split_source(source) if named else (config.model.name, source)
    model, found = read_source(path, weights)
    if model is None:
        taken = ("dtype", "in_channels")
        settings = {key: getattr(config.model, key) for key in taken} if named else config.model.arguments()
        model = create_model(**settings | {"name": name})
    if model.in_channels != config.model.in_channels:
        raise ValueError(
            f"{source} sees images of {model.in_channels} channels, and config.model.in_channels is "
            f"{config.model.in_channels}. Give --config.model.in_channels={model.in_channels} (data.mean and data.std "
            "fit it)."
        )
    model = update(model, num_classes=0, image_size=size)  # no head is needed
    params, block, kind = fit(found, model), model.depth if block is None else block, kind or model.pooling
    train, test = (
        extract_features(model, params, config, split, block=block, kind=kind)
        for split in (data.train_split, data.eval_split)
    )
    return {
        "source": str(source),
        "weights": found.label,
        "data": data.name,
        "train_split": data.train_split,
        "eval_split": data.eval_split,
        "train_count": len(train.labels),
        "eval_count": len(test.labels),
        "block": block,
        "features": kind,
        "image_size": size,
        "linear_probe": linear_probe(train, test, seed=config.seed, class_names=sources.classes(config.data)[1]),
        "nearest_neighbours": {
            "accuracy": nearest_neighbours(train, test),
            "neighbours": NEIGHBOURS,
            "temperature": TEMPERATURE,
        },
    }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line arguments -> options; `output` is a path."""
    parser = command_line.Parser("probe", __doc__)
    add_source_flags(parser)
    parser.add_config()
    parser.add_argument("--block", type=int, help="1-based (default: the last)")
    parser.add_argument("--features", choices=KINDS, help="of the sentences (default: what the model's head reads)")
    parser.add_argument("--output", type=command_line.path, help="output file, JSON (default WORKDIR/probe.json)")
    options = parser.parse(arguments)
    workdir = workdir_of(options.source)
    if options.output is None and workdir is None:
        parser.error(f"--output is missing: {options.source} is not a workdir to write the JSON to.")
    options.output = options.output or workdir / "probe.json"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the accuracies and writes the file."""
    options = parse(arguments)
    with command_line.one_message("probe"):
        config = command_line.read_config(options, options.source)
        found = probe(options.source, config, options.block, options.features, options.weights)
        write_atomically(options.output, json.dumps(found, indent=2) + "\n")
    linear, nearest = found["linear_probe"], found["nearest_neighbours"]
    command_line.log(
        f"{found['data']}, {found['train_count']:,} training and {found['eval_count']:,} test images, "
        f"{found['features']} after block {found['block']}, {found['weights']}"
    )
    penalty = f"C = {linear['inverse_penalty']:g} of {INVERSE_PENALTIES[0]:g} to {INVERSE_PENALTIES[-1]:g}"
    note = "; at the end of this range, so a better one may lie beyond" if linear["at_end"] else ""
    note += "" if linear["converged"] else "; not converged, so take it as a lower bound"
    print(f"Linear probe:         {100 * linear['accuracy']:.2f}% ({penalty}{note})")
    print(f"{nearest['neighbours']} nearest neighbours: {100 * nearest['accuracy']:.2f}%")
    command_line.log(f"Written to {options.output}")


if __name__ == "__main__":
    main()
