"""README and docs as a reader follows them: code blocks, and commands in blocks and inline."""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
FOLLOWED = [README, *DOCS]
PAGES = [*FOLLOWED, *sorted((ROOT / "benchmarks").glob("*.md"))]
LANGUAGES = ("bash", "python", "diff", "text")  # text: file layouts and printed output
# A placeholder for something of the reader's -> one that exists.
EXAMPLES = {"configs/NAME.py": "configs/digits.py", "tools.NAME": "tools.predict", "[--config.KEY=VALUE ...]": ""}
PROGRAMS = ("python", ".venv/bin/python", "pip", ".venv/bin/pip", "pytest")  # of inline commands


@dataclasses.dataclass(frozen=True)
class Code:
    """A block of Python, a diff or text, or (language "bash") one command."""

    language: str
    text: str


def code_of(page: Path) -> list[Code]:
    """Returns a page's code in order. [--flag] counts as a flag; KEY=VALUE before a command is dropped."""
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
    """Shell lines -> one command per line, without comments, environment variables and taskset before it."""
    found = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(re.sub(r"\[(--[^\]]*)\]", r"\1", line), comments=True)
        while words and re.match(r"\w+=|taskset$|-c$|\d+$", words[0]):
            del words[0]
        found += [shlex.join(words)] if words else []
    return found


def ours(page: Path) -> list[list[str]]:
    """Returns the words after "python" of each command on a page that starts a program of this repository."""
    found = [shlex.split(code.text) for code in code_of(page) if code.language == "bash"]
    found = [words[1:] for words in found if words[0].endswith("python")]
    return [
        words for words in found if words[0] == "main.py" or words[1].startswith(("tnt_jax.", "benchmarks.", "tests."))
    ]
