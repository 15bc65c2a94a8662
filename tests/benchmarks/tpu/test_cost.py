"""The price by bundles: with made dumps, and, where libtpu is installed, of a product."""

import importlib.util
import subprocess
import sys

import pytest

from benchmarks.tpu.cost import by_bundles
from tests.benchmarks.tpu.test_bundles import DUMP
from tnt_jax.tools.tpu.prices import Price, PriceList


def price_of(name, cycles, part="inner", trips=1):
    flags = {"is_kernel": False, "in_background": False}
    return Price(name, "fusion", "f32[1]", "", part, trips, cycles, hbm_cycles=50.0, xla_cycles=cycles, **flags)


def test_an_operation_costs_its_bundles_or_its_traffic(tmp_path):
    (tmp_path / "0001-fusion.7-71-final_bundles.txt").write_text(DUMP)  # 123 bundles
    prices = [
        price_of("fusion.7", 1000.0, trips=2),
        price_of("fusion.8", 1000.0),  # no dump: traffic
        price_of("all-reduce.1", 400.0, part="all-reduce"),
    ]
    found = by_bundles(PriceList(prices, []), tmp_path)
    assert [each.cycles for each in found.prices] == [2 * 123, 50, 400]
    assert found.cycles == 2 * 123 + 50 + 400


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_the_price_of_a_product_on_a_v5e():
    """In a process of its own, because libtpu reads its flags once. At the peak: 2 x 2048 ^ 3 / 197e12 seconds."""
    program = (
        "import jax, jax.numpy as jnp\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "from benchmarks.tpu.cost import cost\n"
        "x = jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16)\n"
        "found = cost(lambda a, b: a @ b, x, x)\n"
        "print(found.seconds)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 1 <= float(done.stdout.split()[-1]) / (2 * 2048**3 / 197e12) < 3
