"""README, docs and benchmark pages: every command, flag, key, link and file in them exists, and README is short."""

import argparse
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tnt_jax
from configs import default
from tests.docs.pages import DOCS, FOLLOWED, LANGUAGES, PAGES, README, ROOT, code_of, ours
from tnt_jax.tools import command_line

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")


def test_readme_stays_short():
    assert len(README.read_bytes()) <= 9_000


def test_every_page_is_reached_from_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", README.read_text()))
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
    """`training/optimizer.py`, `layers.py`: the path of some file in the repository ends like that."""
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


class Understood(Exception):
    """A command line and its config have been parsed."""


@pytest.fixture
def start(monkeypatch):
    """Returns a function that starts a command, which raises Understood before it does anything."""
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
    """The program exists and accepts these flags, config and keys; nothing else of it runs."""
    for words in ours(page):
        if words[-1] != "--help" and len(words) > (words[0] != "main.py") + 1:
            with pytest.raises(Understood):
                start(words)
        else:
            start(words)


def test_what_is_not_understood_is_noticed(start, tmp_path):
    assert sum(len(ours(page)) for page in PAGES) > 50
    page = tmp_path / "page.md"
    page.write_text("`python -m tnt_jax.tools.predict --sauce=a b.jpg` `python main.py --config=configs/no.py`")
    assert len(ours(page)) == 2
    for words in ours(page):
        with pytest.raises((SystemExit, ValueError)):
            start(words)
    page.write_text("```bash\nX=1 python -m tnt_jax.tools.pictures --workdir=a\n```")
    with pytest.raises(ModuleNotFoundError):
        start(*ours(page))


@pages
def test_paths_for_pytest_exist(page):
    commands = [code.text.split() for code in code_of(page) if code.language == "bash" and "pytest" in code.text]
    assert not [word for words in commands for word in words if word.startswith("tests") and not (ROOT / word).exists()]


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.stem)
def test_blocks_name_their_language(page):
    """Commands in other blocks would be missed."""
    opened = re.findall(r"^```(.*)$", page.read_text(), flags=re.MULTILINE)[::2]
    assert set(opened) <= set(LANGUAGES)
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"\n\n {4}\S", prose)


@pages
def test_targets_of_make_exist(page):
    named = set(re.findall(r"`make (\w+)", page.read_text()))
    assert named <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_the_table_of_models_is_that_of_their_cards():
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d.]+) G \| ([\d.]+) \|", README.read_text(), flags=re.MULTILINE)
    cards = [tnt_jax.model_info(name) for name in tnt_jax.list_models()]
    counts = {(card.name, f"{card.parameters:,}", f"{card.multiply_adds / 1e9:.2f}") for card in cards}
    assert {row[:3] for row in rows} == counts


def test_the_map_of_the_repository_names_what_is_there():
    (layout,) = [code.text for code in code_of(README) if code.language == "text"]
    assert all((ROOT / line.split()[0]).exists() for line in layout.splitlines())
