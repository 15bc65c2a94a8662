"""Draws the paper's six figures (section 3.4, appendix A.1) of one image, for one model or several side by side.

    python -m tnt_jax.tools.figures --models=runs/deit,runs/tnt --image=dog.jpg --output=figures
    python -m tnt_jax.tools.figures --models=hf-hub:timm/tnt_s_patch16_224.in1k --image=dog.jpg --output=figures
    python -m tnt_jax.tools.figures --models=runs/digits --image=eval:5 --figure=words,inner_attention --output=figures
    python -m tnt_jax.tools.figures --workdir=runs/digits

--workdir: draws two figures of a run into its workdir, curves.png and attention.png (what the class token attends to in
the first --num-images of the evaluation split), and prints its accuracy. The rest is about --models.

--models: comma-separated workdirs or NAME:WEIGHTS (tools/trained.py); NAME:random is a model with untrained weights,
and its title says so. --image: a file, or eval:K for image K of the first workdir's evaluation split. The largest
centred part with the model's aspect ratio is used.

--figure: all, or comma-separated numbers or names of
    1 feature_maps      sentence embeddings by position, 12 random channels, first, middle and last block   (Figure 3a)
    2 tsne              t-SNE of all channels' maps of the last block, one point per channel               (Figure 3b)
    3 words             word embeddings by position, averaged over channels, every TNT block               (Figure 4)
    4 inner_attention   what query words attend to in their sentence; --query                              (Figure 5)
    5 outer_attention   from each sentence to all, every block                                             (Figure 6)
    6 class_attention   what the last block's class token attends to                                       (Figure 7)
1 and 2 are drawn at --image-size, with interpolated positions; the default is the paper's 1024 for a model of 224
pixels, and in proportion for a smaller model (72 for 16). 3 to 6 are drawn at the model's own size, or at
--attention-size. 3 and 4 need an inner path, which DeiT does not have. Each figure is written as OUTPUT/NAME.png, .pdf
and .npz (its arrays); the same seed gives the same bytes.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tnt_jax.analysis.attention import draw_class_token_attention
from tnt_jax.analysis.curves import draw_curves
from tnt_jax.analysis.figures import INNER_FIGURES, chosen_figures, draw
from tnt_jax.analysis.panels import save_figure, slug
from tnt_jax.analysis.subject import Subject, read_image
from tnt_jax.data.decoding import RGB, Channels
from tnt_jax.models.variants import VARIANTS, create_model, update
from tnt_jax.pretrained.sources import BEST
from tnt_jax.tools import command_line
from tnt_jax.tools.trained import Trained, add_weights_flag, batches_of_run, check_run, open_trained, workdir_of
from tnt_jax.training.starting_point import published_images
from tnt_jax.workdir import IN_WORDS, measure, read_summary

EXAMPLE = "eval:"
RANDOM = "random"
TITLES = {
    "tnt_ti_patch16_224": "TNT-Ti",
    "tnt_s_patch16_224": "TNT-S",
    "tnt_b_patch16_224": "TNT-B",
    "tnt_s_legacy_patch16_224": "TNT-S (legacy)",
    "deit_tiny_patch16_224": "DeiT-Ti",
    "deit_small_patch16_224": "DeiT-S",
    "deit_base_patch16_224": "DeiT-B",
}


def open_subject(source: str, weights: str = BEST, changes: Sequence[str] = ()) -> Subject:
    """A workdir, NAME:WEIGHTS or NAME:random -> the model with its weights, computing in float32.

    changes: --config.KEY=VALUE flags for a workdir's config. Raises ValueError or FileNotFoundError with the fix.
    """
    name, _, file = source.partition(":")
    if file == RANDOM and name in VARIANTS:
        model = create_model(name)
        variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, *model.input_shape), np.float32))
        return Subject(f"{TITLES[name]} (random weights)", model, variables, published_images(name))
    return subject_of(open_trained(source, weights=weights, changes=changes if workdir_of(source) else ()))


def subject_of(trained: Trained) -> Subject:
    """Like open_subject, for an opened source; the title of a run's model has its workdir's name."""
    kind = "TNT" if trained.model.inner_blocks else "DeiT"
    title = f"{kind} ({trained.workdir.name})" if trained.workdir else TITLES[trained.name]
    model = update(trained.model, dtype=jnp.float32)
    return Subject(title, model, trained.variables, trained.images, trained.weights)


def split_sources(sources: str) -> list[str]:
    """Splits --models at its commas."""
    return [source.strip() for source in sources.split(",") if source.strip()]


def open_subjects(sources: str, weights: str = BEST, changes: Sequence[str] = ()) -> list[Subject]:
    """Comma-separated sources -> their models; equal titles get the model's number appended.

    changes: --config.KEY=VALUE flags for every run among them.
    """
    names = split_sources(sources)
    if not names:
        raise ValueError("--models is empty; give a workdir or NAME:WEIGHTS")
    if changes and not any(map(workdir_of, names)):
        raise ValueError(f"{changes[0]}: none of --models is a run, so there is no config to change. Leave it out.")
    subjects = [open_subject(name, weights, changes) for name in names]
    slugs = [slug(subject.title) for subject in subjects]  # prefixes of their arrays' names
    return [
        subject if slugs.count(each) == 1 else dataclasses.replace(subject, title=f"{subject.title}, {i}")
        for i, (subject, each) in enumerate(zip(subjects, slugs, strict=True), 1)
    ]


def open_image(image: str, sources: Sequence[str], changes: Sequence[str] = (), channels: Channels = RGB) -> np.ndarray:
    """An image file, or eval:K of the first workdir among the sources -> [H, W, C]. Raises as read_image."""
    if not image.startswith(EXAMPLE):
        return read_image(image, channels)
    number = image.removeprefix(EXAMPLE)
    if not number.isdecimal():
        raise ValueError(f"--image={image}: after {EXAMPLE} give the image's number, from 0")
    workdir = next((found for found in map(workdir_of, sources) if found is not None), None)
    if workdir is None:
        raise ValueError(f"--image={image}: none of the models is a workdir, so there is no split; give a file")
    from tnt_jax.data.sources import read_example

    settings = check_run(workdir, changes).data
    return read_example(settings, settings.eval_split, int(number), channels.count)


def draw_run(workdir: Path, options: argparse.Namespace) -> str:
    """Draws a run's curves.png and attention.png into its workdir -> the lines to print.

    Raises FileNotFoundError or ValueError if the workdir has no metrics, configuration or checkpoint.
    """
    curves = draw_curves(workdir, workdir / "curves.png")
    trained = open_trained(str(workdir), weights=options.weights, changes=options.changes)
    batch = next(batches_of_run(trained, options.num_images))
    real = np.flatnonzero(batch["mask"])[: options.num_images]
    attention = draw_class_token_attention(
        trained.model,
        trained.variables,
        batch["image"][real],
        batch["labels" if "labels" in batch else "label"][real],
        workdir / "attention.png",
        preprocessing=trained.images,
        class_names=trained.class_names,
    )
    figures = f"Figures: {curves}, {attention}"
    summary = read_summary(workdir)
    if summary is None:
        return figures
    best, images = summary[summary["best"]], f"{summary[summary['best']]['count']:.0f} images"
    name = {"accuracy": "Test accuracy"}.get(judged := measure(best), "Mean average precision")
    if judged == "accuracy":
        images = f"{best['accuracy'] * best['count']:.0f} of {images}"
    return f"{name}: {100 * best[judged]:.2f}% ({images}, {IN_WORDS[summary['best']]} weights)\n{figures}"


def draw_models(options: argparse.Namespace) -> None:
    """Draws the paper's figures of --models, writes them one by one and prints their paths."""
    chosen_figures(options.figure)  # raises before a model is read
    subjects = open_subjects(options.models, options.weights, options.changes)
    if len(kinds := {subject.channels for subject in subjects}) > 1:
        words = " and ".join(f"{kind.count} channels of {kind.bits} bits" for kind in sorted(kinds))
        raise ValueError(f"--models={options.models}: their images have {words}; one image cannot fit them all")
    figures = chosen_figures(options.figure, subjects)
    pixels = open_image(options.image, split_sources(options.models), options.changes, kinds.pop())
    for subject in subjects:
        if subject.weights:
            command_line.log(subject.heading)
    if options.figure == "all" and INNER_FIGURES[0] not in figures:
        print(f"figures: no model has an inner path, so {' and '.join(INNER_FIGURES)} are left out")
    sizes = options.image_size, options.attention_size
    image_size, attention_size = ((size, size) if isinstance(size, int) else size for size in sizes)
    settings = {"image_size": image_size, "attention_size": attention_size, "queries": options.query}
    for name, drawn in draw(subjects, pixels, figures, seed=options.seed, **settings):
        png, pdf, arrays = save_figure(drawn, options.output, name)
        command_line.log(f"{png}, {pdf.suffix}, {arrays.suffix}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Command-line arguments -> options."""
    parser = command_line.Parser("figures", __doc__)
    parser.add_argument(
        "--workdir", type=command_line.path, help="the workdir of a trained run, for its own two figures"
    )
    parser.add_argument("--num-images", type=command_line.at_least(1), default=10, help="in attention.png (default 10)")
    parser.add_argument("--models", help="comma-separated workdirs or NAME:WEIGHTS")
    parser.add_argument("--image", help="a file, or eval:K of the first workdir's evaluation split")
    add_weights_flag(parser)
    parser.add_argument("--output", type=command_line.path, help="output folder")
    parser.add_argument("--figure", default="all", help="all (default), or comma-separated numbers or names")
    size, words = command_line.image_size, "in pixels, a side or HEIGHTxWIDTH"
    parser.add_argument("--image-size", type=size, help=f"{words}, for figures 1 and 2 (default: see above)")
    parser.add_argument("--attention-size", type=size, help=f"{words}, for figures 3 to 6 (default: the model's own)")
    query = (
        "query word of figure 4: ROW,COLUMN (a pixel of the model's input) or its number; repeatable (default: four)"
    )
    parser.add_argument("--query", action="append", default=[], help=query)
    parser.add_argument("--seed", type=int, default=0, help="for the choice of channels and t-SNE (default 0)")
    options = parser.parse(arguments)
    given = [name for name in ("models", "image", "output") if getattr(options, name) is not None]
    if options.workdir is None and len(given) < 3 or options.workdir is not None and given:
        parser.error("give --models, --image and --output, or else --workdir")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the figures and prints their paths."""
    options = parse(arguments)
    with command_line.one_message("figures"):
        if options.workdir is None:
            draw_models(options)
        else:
            command_line.log(draw_run(options.workdir, options))


if __name__ == "__main__":
    main()
