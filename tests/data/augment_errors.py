"""How far each RandAugment operation is from Pillow, in grey levels: used by the tests, and as a program a table.

python -m tests.data.augment_errors GOLDENS.npz     (goldens by make_augment_goldens.py)
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tnt_jax.data import randaugment


def errors(goldens: dict[str, np.ndarray]) -> dict[str, dict[int, np.ndarray]]:
    """-> operation -> magnitude -> absolute differences of all its cases, int [cases, H, W, 3]."""
    fill = tuple(int(level) for level in goldens["fill"])
    found: dict[str, dict[int, list]] = {}
    for number, case in enumerate(json.loads(str(goldens["cases"]))):
        name, magnitude = case["operation"], case["magnitude"]
        ours = randaugment.operate(
            name,
            goldens[f"small_{case['image']}"],
            float(magnitude),
            case["negative"],
            case["bicubic"],
            True,
            fill,
        )
        difference = np.abs(ours.astype(int) - goldens[f"case_{number}"].astype(int))
        found.setdefault(name, {}).setdefault(magnitude, []).append(difference)
    return {name: {key: np.stack(value) for key, value in rows.items()} for name, rows in found.items()}


def main() -> None:
    """Prints mean and largest difference for each operation and magnitude."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("goldens", type=Path)
    goldens = dict(np.load(parser.parse_args().goldens))
    shape = goldens["small_0"].shape
    print(
        f"versions {goldens['versions']}, images of {shape[0]} x {shape[1]}; mean (largest) difference in grey levels"
    )
    for name, rows in errors(goldens).items():
        cells = [f"{magnitude}: {values.mean():.4f} ({values.max()})" for magnitude, values in rows.items()]
        print(f"{name:13s} " + "  ".join(cells))


if __name__ == "__main__":
    main()
