"""Counts parameters and multiply-adds: of one model part by part, and of the paper's tables beside its figures.

    python -m tnt_jax.tools.complexity [--model=tnt_s_patch16_224] [--image-size=384 or 384x512] [--no-xla]

Each module of the model is counted from its traced program and by the paper's formulas (eq. 14 to 18); the whole
model also by XLA's own analysis, unless --no-xla is given. Nothing is computed.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from tnt_jax.models import fast
from tnt_jax.models.complexity import (
    Formula,
    by_formula,
    count_parameters,
    count_parts,
    formula_parts,
    frozen_outer_tokens,
    inner_path_ratio,
    multiply_adds,
)
from tnt_jax.models.tnt import TNT
from tnt_jax.models.variants import VARIANTS, create_model, update
from tnt_jax.tools import command_line

_S = "tnt_s_patch16_224"
# Table, row, model and its overrides, the paper's parameters (millions) and FLOPs (billions of multiply-adds); None:
# not in the table.
PUBLISHED: tuple[tuple[str, str, str, dict[str, Any], float | None, float], ...] = (
    ("Table 1", "TNT-Ti", "tnt_ti_patch16_224", {}, 6.1, 1.4),
    ("Table 1", "TNT-S", _S, {}, 23.8, 5.2),
    ("Table 1", "TNT-B", "tnt_b_patch16_224", {}, 65.6, 14.1),
    ("Table 5", "all blocks TNT", _S, {}, None, 5.2),
    ("Table 5", "blocks 1, 4, 8, 12", _S, {"tnt_blocks": (1, 4, 8, 12)}, None, 4.8),
    ("Table 5", "blocks 1, 6, 12", _S, {"tnt_blocks": (1, 6, 12)}, None, 4.7),
    ("Table 5", "blocks 1, 6", _S, {"tnt_blocks": (1, 6)}, None, 4.7),
    ("Table 5", "block 1", _S, {"tnt_blocks": (1,)}, None, 4.6),
    ("Table 5", "none (DeiT-S)", "deit_small_patch16_224", {}, None, 4.6),
    # The paper gives no number of inner heads for c = 6; it changes neither count.
    ("Table 8", "m=64, c=6", _S, {"word_size": 2, "inner_dim": 6, "inner_num_heads": 2}, 23.8, 5.1),
    ("Table 8", "m=16, c=24", _S, {}, 23.8, 5.2),
    ("Table 8", "m=4, c=96", _S, {"word_size": 8, "inner_dim": 96}, 25.1, 6.0),
    ("Table 12", "TNT-S + SE", _S, {"squeeze_excitation": True}, 24.7, 5.2),
)


def part_table(model: TNT) -> str:
    """model -> a table of its parts: parameters and multiply-adds of one image, counted and by formula."""
    parts, formula = count_parts(model), formula_parts(model)
    exact, total = sum(part.multiply_adds for part in parts), by_formula(model)

    def row(name: str, parameters: int, products: int, by: Formula | None) -> tuple[str, ...]:
        formulas = ("", "") if by is None else (f"{by.parameters:,.0f}", f"{by.multiply_adds:,.0f}")
        return name, f"{parameters:,}", formulas[0], f"{products:,}", formulas[1], f"{products / exact:.1%}"

    rows = [row(part.name, part.parameters, part.multiply_adds, formula.get(part.name)) for part in parts]
    rows.append(row("total", sum(part.parameters for part in parts), exact, total))
    return _render(("part", "parameters", "by formula", "multiply-adds", "by formula", "share"), rows)


def xla_multiply_adds(model: TNT) -> float:
    """model -> half the FLOPs that XLA counts in the reference implementation for one image. Nothing is computed.

    XLA counts a product and an addition as two, also counts elementwise operations, but not exponentials and erf.
    """
    model = fast.replace(model, implementation="reference", scan=False, remat=False)
    images = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.jit(model.apply).lower(variables, images).cost_analysis()["flops"] / 2


def published_table() -> str:
    """Returns the paper's Tables 1, 5, 8 and 12 beside the counts of the same models here, as text."""
    rows = []
    for table, row, name, overrides, parameters, flops in PUBLISHED:
        model = create_model(name, **overrides)
        parts = count_parts(model)
        trainable, products = (sum(getattr(part, key) for part in parts) for key in ("parameters", "multiply_adds"))
        counts = f"{trainable:,}", f"{(trainable + frozen_outer_tokens(model)) / 1e6:.2f} M"
        published = "" if parameters is None else f"{parameters} M"
        formula = f"{by_formula(model).multiply_adds / 1e9:.2f} G"
        rows.append((table, row, *counts, published, f"{products / 1e9:.2f} G", formula, f"{flops} G"))
    titles = ("", "", "trainable", "with outer_tokens", "paper", "multiply-adds", "by formula", "paper")
    return _render(titles, rows)


def report(model: TNT, xla: bool) -> str:
    """model -> the whole report as text; xla: whether to add XLA's counts."""
    height, width = model.input_size
    exact, formula = multiply_adds(model), by_formula(model)
    lines = [f"One image of {height} x {width} pixels", "", part_table(model), ""]
    lines.append(
        f"{exact / 1e9:.3f} G multiply-adds of products; the blocks by the paper's formulas (eq. 14 to 18): "
        f"{formula.parameters / 1e6:.2f} M parameters, {formula.multiply_adds / 1e9:.3f} G multiply-adds"
    )
    if model.inner_blocks:
        ratio = inner_path_ratio(model)
        lines.append(
            f"A TNT block over a standard block: {ratio.multiply_adds:.3f} times the multiply-adds, "
            f"{ratio.parameters:.3f} times the parameters (the paper, for TNT-S: 1.14 and 1.08)"
        )
    if xla:
        counted = xla_multiply_adds(model)
        lines.append(
            f"XLA counts {counted / 1e9:.3f} G ({jax.default_backend()}, half its FLOPs), {counted / exact - 1:+.2%}: "
            "norms, biases, softmax, GELU and residual additions are in it."
        )
    return "\n".join([*lines, "", *published_notes(), "", published_table()])


def published_notes() -> list[str]:
    """Returns lines that derive the paper's figures from the counts here."""
    model = create_model("tnt_b_patch16_224")
    trainable, frozen = count_parameters(model), frozen_outer_tokens(model)
    n, d = model.grid[0] * model.grid[1], model.outer_dim
    return [
        "The paper's tables. Its TNT parameters are those of the official code, which keeps `outer_tokens`: N x D",
        f"zeros that are frozen and never used. TNT-B: {trainable:,} trainable + {n} x {d} = {frozen:,} frozen are",
        f"{trainable + frozen:,}, the paper's 65.6 M; without them it would be 65.4 M. In TNT-Ti and TNT-S they do not",
        "show after rounding. FLOPs are multiply-adds of products: no norms, position encodings or softmax.",
    ]


def _render(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Titles and rows -> lines of aligned columns: text to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    text = [i for i in range(len(titles)) if not any(row[i][:1].isdigit() for row in rows)]  # left-aligned
    return "\n".join(
        "  ".join(cell.ljust(widths[i]) if i in text else cell.rjust(widths[i]) for i, cell in enumerate(row)).rstrip()
        for row in (titles, *rows)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the report. arguments: None means sys.argv."""
    parser = command_line.Parser("complexity", __doc__)
    parser.add_argument("--model", default=_S, help=f"one of {', '.join(VARIANTS)}")
    size = "in pixels, a side or HEIGHTxWIDTH (default: the model's own)"
    parser.add_argument("--image-size", type=command_line.image_size, help=size)
    xla = "show XLA's counts too (a second or two)"
    parser.add_argument("--xla", action=argparse.BooleanOptionalAction, default=True, help=xla)
    options = parser.parse(arguments)
    with command_line.one_message("complexity"):
        model = create_model(options.model)
        print(report(update(model, image_size=options.image_size or model.config.image_size), options.xla))


if __name__ == "__main__":
    main()
