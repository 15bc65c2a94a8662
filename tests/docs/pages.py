"""README and docs as a reader follows them: their blocks of code, and the commands in blocks and within lines."""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
FOLLOWED = [README, *DOCS]
PAGES = [*FOLLOWED, *sorted((ROOT / "benchmarks").glob("*.md"))]
LANGUAGES = ("bash", "python", "diff", "text")  # text: layouts of files, and what a command prints
# What stands for a thing of the reader's -> one that exists.
EXAMPLES = {"configs/NAME.py": "configs/digits.py", "tools.NAME": "tools.predict", "[--config.KEY=VALUE ...]": ""}
PROGRAMS = ("python", ".venv/bin/python", "pip", ".venv/bin/pip", "pytest")  # of the commands within lines


@dataclasses.dataclass(frozen=True)
class Code:
    """A block of Python, a diff or text, or (language "bash") one command."""

    language: str
    text: str


def code_of(page: Path) -> list[Code]:
    """A page -> its blocks and commands, in its order. A [--flag] is a flag; KEY=VALUE before a command is left out."""
    text = page.read_text()
    for name, example in EXAMPLES.items():
        text = text.replace(name, example)
    found = []
    for block, language, body, inline in re.findall(
        r"(^```(\w*)\n(.*?)^```$)|`([^`]+)`", text, re.DOTALL | re.MULTILINE
    ):
        if block and language not in ("", "bash"):
            found.append(Code(language, body))
        elif block:
            found += [Code("bash", line) for line in _commands(body)]
        elif inline.split()[0] in PROGRAMS and len(inline.split()) > 1:
            found += [Code("bash", line) for line in _commands(" ".join(inline.split()))]
    return found


def _commands(text: str) -> list[str]:
    """Lines of a shell -> a command each, without comments and what is set for it alone."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", line), comments=True)
        while words and re.match(r"\w+=|taskset$|-c$|\d+$", words[0]):
            del words[0]
        found += [shlex.join(words)] if words else []
    return found


def ours(page: Path) -> list[list[str]]:
    """A page -> the words behind "python" of each command that starts a program of this repository."""
    found = [shlex.split(code.text) for code in code_of(page) if code.language == "bash"]
    found = [words[1:] for words in found if words[0].endswith("python")]
    return [
        words for words in found if words[0] == "main.py" or words[1].startswith(("tnt_jax.", "benchmarks.", "tests."))
    ]
