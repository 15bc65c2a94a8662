"""What a TNT block costs on a TPU beside the outer block alone, which is DeiT's: static prices, nothing runs.

    python -m benchmarks.tpu_block --size=s --topology=v5e:2x2 --json=prices.json

Each form is compiled for one chip of the topology, forward and backward, and priced by tnt_jax.tools.tpu_cost (the
greater of instruction bundles and padded memory traffic of every operation). No TPU is needed, but libtpu is
(the extra tpu-report); a form takes one to five minutes of a core. docs/tpu.md has a table and what it says.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu compiles here, and has no TPU to compute on

import jax

import tnt_jax
from tnt_jax.models.implementation import Forms
from tnt_jax.models.tnt import OuterBlock, TNTBlock
from tnt_jax.tools.tpu.chips import chip_of
from tnt_jax.tools.tpu_cost import cost

SIZES = {"ti": "tnt_ti_patch16_224", "s": "tnt_s_patch16_224", "b": "tnt_b_patch16_224"}
FORMS = {"plain": "xla", "kernel": "pallas"}  # of the inner path -> inner_implementation


def blocks(name: str, images: int, dtype: str, device_kind: str, form: str) -> tuple[Callable[..., Any], list[Any]]:
    """A model's name and a form ("deit": the outer block alone) -> (its block as a function, shapes of arguments)."""
    implementation = FORMS.get(form, "xla")
    model = tnt_jax.create_model(name, dtype=dtype, device_kind=device_kind, inner_implementation=implementation)
    grid, key = model.grid[0] * model.grid[1], jax.random.key(0)
    sentences = jax.ShapeDtypeStruct((images, 1 + grid, model.outer_dim), model.dtype)
    if form == "deit":
        outer = OuterBlock(
            model.outer_num_heads,
            model.mlp_ratio,
            model.qkv_bias,
            model.norm_epsilon,
            attention_form=model.forms().outer,
            dtype=model.dtype,
        )
        params = jax.eval_shape(lambda x: outer.init(key, x, None, False), sentences)
        return lambda params, x: outer.apply(params, x, None, False)[0], [params, sentences]
    words = jax.ShapeDtypeStruct((images * grid, model.num_words, model.inner_dim), model.dtype)

    def block(forms: Forms) -> TNTBlock:
        return TNTBlock(**model.block_settings(1) | {"forms": forms})

    forms = model.forms()
    params = jax.eval_shape(lambda *x: block(Forms(False, "dot", "dot")).init(key, *x), words, sentences)
    if forms.fused:
        words = jax.ShapeDtypeStruct((model.num_words * model.inner_dim, images * grid), model.dtype)
    return lambda params, *x: block(forms).apply(params, *x)[:2], [params, words, sentences]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """-> prices of every form by name, in cycles, and what they are of."""
    device_kind, found = chip_of(arguments.topology).device_kind, {}
    for form in arguments.forms:
        block, shapes = blocks(SIZES[arguments.size], arguments.images, arguments.dtype, device_kind, form)
        price = cost(block, *shapes, topology=arguments.topology, gradient=True)
        print(f"{form}: {price}", flush=True)
        found[form] = {
            "cycles": price.prices.cycles,
            "cycles_serial": price.prices.cycles_serial,
            "xla_cycles": price.prices.xla_cycles,
            "temp_bytes": price.temp_bytes,
            "compile_seconds": price.compile_seconds,
        }
    asked = {key: getattr(arguments, key) for key in ("size", "topology", "images", "dtype")}
    return asked | {"static": "compiled, never run", "forms": found}


def table(report: dict[str, Any]) -> str:
    """-> the report as rows: million cycles, the ratio to DeiT's block, XLA's estimate, memory."""
    forms = report["forms"]
    lines = [f"{'form':8s} {'Mcycles':>16s} {'to DeiT':>8s} {'XLA Mcycles':>12s} {'temp GB':>8s}"]
    for form, price in forms.items():
        ratio = f"{price['cycles'] / forms['deit']['cycles']:.2f}" if "deit" in forms else "-"
        span = f"{price['cycles'] / 1e6:.2f}..{price['cycles_serial'] / 1e6:.2f}"
        lines.append(
            f"{form:8s} {span:>16s} {ratio:>8s} {price['xla_cycles'] / 1e6:12.2f} {price['temp_bytes'] / 1e9:8.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints prices as they come and a table; writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--topology", default="v5e:2x2", help="such as v5p:2x2x1 or v6e:2x2; its first chip counts")
    parser.add_argument("--images", type=int, default=128, help="a chip")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--forms", nargs="+", choices=("deit", *FORMS), default=("deit", *FORMS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        report = measure(arguments)
    except (ValueError, ImportError) as error:  # a topology that does not exist; no libtpu
        parser.error(str(error))
    print(table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
