"""The page about the model: its code runs, and its example is the definition's own lines."""

import re
from pathlib import Path

from tnt_jax.models import tnt

PAGE = Path(__file__).parents[2] / "docs" / "model.md"


def test_the_code_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile("import tnt_jax\n" + block, str(PAGE), "exec"), names)
    assert names["larger"].grid == (24, 24)


def test_the_change_applies_to_the_definition():
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    before = [line[1:] for line in diff.splitlines() if not line.startswith("+")]
    source = Path(tnt.__file__).read_text().splitlines()
    assert all(line in source for line in before)
