"""The page of examples: its code runs from top to bottom and prints what its comments say."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "features.md"


def test_the_examples_run_and_print_what_they_say(capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    promised = re.findall(r"# -> (.*)", "".join(blocks))
    assert len(blocks) == 6 and len(promised) == 7
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert capsys.readouterr().out.splitlines() == promised
