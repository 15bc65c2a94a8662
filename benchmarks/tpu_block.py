"""Estimates the cost of a TNT block on a TPU, and of the outer block alone, which is DeiT's: static, nothing runs.

    python -m benchmarks.tpu_block --size=s --topology=v5e:2x2 --json=costs.json

Each block is compiled for one chip of the topology, forward and backward, and estimated by benchmarks.tpu.cost (the
greater of instruction bundles and padded memory traffic of every operation). Needs no TPU, but libtpu
(the extra tpu-report); a block takes one to five minutes on one core. docs/tpu.md has a table and its discussion.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu only compiles here; there is no TPU to run on

import jax

import tnt_jax
from benchmarks.tpu.cost import cost
from tnt_jax.models.checks import OUTER_IMPLEMENTATIONS
from tnt_jax.models.fast import choose, choose_outer
from tnt_jax.models.fast.fused import from_feature_major, to_feature_major
from tnt_jax.models.layers import Ops
from tnt_jax.models.tnt import OuterBlock, TNTBlock
from tnt_jax.tools.tpu.chips import chip_of

SIZES = {"ti": "tnt_ti_patch16_224", "s": "tnt_s_patch16_224", "b": "tnt_b_patch16_224"}
OUTER = ("attention", "deit")  # the outer attention alone, and the outer block, which is DeiT's
TNT = ("xla", "pallas")  # the whole block, by inner_implementation


def make_block(
    name: str, images: int, size: int, dtype: str, device_kind: str, block: str, outer: str
) -> tuple[Callable[..., Any], list[Any]]:
    """A model's name and one of OUTER or TNT -> (the block as a function, shapes of its arguments).

    "attention" takes queries, keys and values.
    """
    config = tnt_jax.create_model(name, image_size=size, dtype=dtype).config
    inner = block if block in TNT else "xla"
    ops = choose_outer(config, choose(config, inner, device_kind).ops, outer, device_kind)
    sentences = config.grid[0] * config.grid[1]
    tokens = jax.ShapeDtypeStruct((images, 1 + sentences, config.outer_dim), config.dtype)
    words = jax.ShapeDtypeStruct((images * sentences, config.num_words, config.inner_dim), config.dtype)
    if block == "attention":
        heads = (config.outer_num_heads, config.outer_dim // config.outer_num_heads)
        return ops.outer.attend, [jax.ShapeDtypeStruct((*tokens.shape[:2], *heads), config.dtype)] * 3
    definition, key = Ops.definition(config), jax.random.key(0)
    if block == "deit":
        params = jax.eval_shape(lambda x: OuterBlock(config, definition).init(key, x, {}), tokens)
        return lambda params, x: OuterBlock(config, ops).apply(params, x, {})[0], [params, tokens]
    params = jax.eval_shape(lambda *x: TNTBlock(config, definition, True).init(key, *x, {}), words, tokens)
    module = TNTBlock(config, ops, True)
    if block == "xla":
        return lambda params, *x: module.apply(params, *x, {})[:2], [params, words, tokens]

    def feature_major(params: Any, words: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Takes and returns words in the kernel's layout: between blocks XLA cancels the transpositions."""
        words, tokens, _ = module.apply(params, from_feature_major(words, config.num_words), tokens, {})
        return to_feature_major(words), tokens

    words = jax.ShapeDtypeStruct((config.num_words * config.inner_dim, images * sentences), config.dtype)
    return feature_major, [params, words, tokens]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the costs of every block by name, in cycles, and the settings."""
    device_kind, found = chip_of(arguments.topology).device_kind, {}
    for name in arguments.blocks:
        model, outer = SIZES[arguments.size], arguments.outer_implementation
        sizes = arguments.images, arguments.image_size
        block, shapes = make_block(model, *sizes, arguments.dtype, device_kind, name, outer)
        result = cost(block, *shapes, topology=arguments.topology, gradient=True)
        print(f"{name}: {result}", flush=True)
        found[name] = {
            "cycles": result.estimate.cycles,
            "cycles_serial": result.estimate.cycles_serial,
            "xla_cycles": result.estimate.xla_cycles,
            "temp_bytes": result.temp_bytes,
            "compile_seconds": result.compile_seconds,
        }
    asked = {
        key: getattr(arguments, key)
        for key in ("size", "topology", "images", "image_size", "dtype", "outer_implementation")
    }
    return asked | {"static": "compiled, never run", "blocks": found}


def table(report: dict[str, Any]) -> str:
    """Returns the report as rows: million cycles, the ratio to DeiT's block, XLA's estimate, memory."""
    blocks = report["blocks"]
    lines = [f"{'block':9s} {'Mcycles':>16s} {'to DeiT':>8s} {'XLA Mcycles':>12s} {'temp GB':>8s}"]
    for name, each in blocks.items():
        ratio = f"{each['cycles'] / blocks['deit']['cycles']:.2f}" if "deit" in blocks else "-"
        span = f"{each['cycles'] / 1e6:.2f}..{each['cycles_serial'] / 1e6:.2f}"
        lines.append(
            f"{name:9s} {span:>16s} {ratio:>8s} {each['xla_cycles'] / 1e6:12.2f} {each['temp_bytes'] / 1e9:8.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints each block's costs and then a table; writes JSON if asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="s")
    parser.add_argument("--topology", default="v5e:2x2", help="such as v5p:2x2x1 or v6e:2x2; its first chip is used")
    parser.add_argument("--images", type=int, default=128, help="per chip")
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--outer-implementation", choices=OUTER_IMPLEMENTATIONS, default="auto")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--blocks", nargs="+", choices=(*OUTER, *TNT), default=("deit", *TNT))
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
