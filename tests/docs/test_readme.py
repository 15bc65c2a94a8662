"""README, docs and the benchmarks' pages: short enough, and every command, flag, key, link and file in them exists."""

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs import default
from tnt_jax.tools import command_line

ROOT = Path(__file__).parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS, *sorted((ROOT / "benchmarks").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
# What stands for a thing of the reader's -> one that exists.
EXAMPLES = {"configs/NAME.py": "configs/default.py", "tools.NAME": "tools.predict", "[--config.KEY=VALUE ...]": ""}


def test_readme_stays_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


def test_every_page_is_reached_from_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{page.name}" for page in DOCS}


@pages
def test_relative_links_lead_to_a_file_and_heading(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    broken = [link for link in links if not link.startswith(("http://", "https://")) and not _resolves(page, link)]
    assert not broken


def _resolves(page: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists() or not heading:
        return target.exists()
    titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.MULTILINE)
    return heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pages
def test_named_files_exist(page):
    """`training/optimizer.py`, `layers.py`: some file of the repository ends so."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = set(re.findall(r"`([\w./-]+\.(?:py|md|ipynb))(?::\w+)?`", page.read_text())) - {"configs/NAME.py"}
    ours = {name for name in named if name not in ("photos_model/README.md",)}
    assert not [name for name in ours if not any(f"/{path}".endswith(f"/{name}") for path in listed)]


@pages
def test_named_keys_exist(page):
    named = set(re.findall(r"--config\.([a-z_]\w*(?:\.[a-z_]\w*)*)", page.read_text()))
    assert not named - _keys(default.get_config())


def _keys(config, prefix="") -> set[str]:
    found = set()
    for name, value in config.items(preserve_field_references=True):
        found |= {prefix + name}
        if hasattr(value, "items"):
            found |= _keys(value, f"{prefix}{name}.")
    return found


def commands_of(text: str) -> list[list[str]]:
    """A page -> the words after "python" of each command, in code blocks and in code within lines."""
    for name, example in EXAMPLES.items():
        text = text.replace(name, example)
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = re.findall(r"^\s*(?:\w+=\S+ |taskset -c \d+ )*(?:\.venv/bin/)?python (.*)$", text, flags=re.MULTILINE)
    inside = [" ".join(each.split()) for each in re.findall(r"(?<!`)`python\s([^`]*)`", text)]
    # The optional words of a command, in brackets, are to exist too.
    found = [re.sub(r"\[(--[^\]]*)\]", r"\1", command) for command in blocks + inside]
    found = [shlex.split(command, comments=True) for command in found]
    return [words for words in found if words[:1] == ["main.py"] or words[1:] and words[1].startswith(OURS)]


OURS = ("tnt_jax.", "benchmarks.", "tests.")


class Understood(Exception):
    """A command line is parsed, its config too."""


@pytest.fixture
def start(monkeypatch):
    """-> a function that starts a command and raises Understood before it does anything."""
    parse, parse_args = command_line.Parser.parse, argparse.ArgumentParser.parse_args

    def checked(parser, arguments=None):
        options = parse(parser, arguments)
        if getattr(options, "config", None):
            command_line.read_config(options)
        raise Understood

    def checked_plain(parser, *arguments):
        parse_args(parser, *arguments)
        raise Understood

    monkeypatch.setattr(command_line.Parser, "parse", checked)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", checked_plain)

    def start(words):
        name, arguments = ("main", words[1:]) if words[0] == "main.py" else (words[1], words[2:])
        package = ROOT / name.replace(".", "/") / "__main__.py"
        module = importlib.import_module(f"{name}.__main__" if package.exists() else name)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return module.main() if arguments and arguments != ["--help"] else None

    return start


@pages
def test_commands_are_understood(page, start):
    """The program exists, takes these flags, and has the config with these keys; nothing else of it runs."""
    for words in commands_of(page.read_text()):
        if words[-1] != "--help" and len(words) > (words[0] != "main.py") + 1:
            with pytest.raises(Understood):
                start(words)
        else:
            start(words)


def test_what_is_not_understood_is_noticed(start):
    pages = "".join(page.read_text() for page in PAGES)
    assert len(commands_of(pages)) > 50
    for words in commands_of(
        "`python -m tnt_jax.tools.predict --sauce=a b.jpg` `python main.py --config=configs/no.py`"
    ):
        with pytest.raises((SystemExit, ValueError)):
            start(words)
    with pytest.raises(ModuleNotFoundError):
        start(*commands_of("    X=1 python -m tnt_jax.tools.pictures --workdir=a"))


@pages
def test_targets_of_make_exist(page):
    named = set(re.findall(r"`make (\w+)", page.read_text()))
    assert named <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
