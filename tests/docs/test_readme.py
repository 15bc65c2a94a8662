"""README and docs: short enough, and what they name exists."""

import re
from pathlib import Path

import pytest

from configs import default

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_readme_stays_short():
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


def test_every_page_is_reached_from_readme():
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)", (ROOT / "README.md").read_text()))
    assert linked == {f"docs/{page.name}" for page in PAGES[1:]}


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
def test_named_modules_exist(page):
    # Ours alone: `python -m pip` and the like are others'. NAME stands for any of the tools.
    named = set(re.findall(r"python\s+-m\s+((?:tnt_jax|benchmarks|tests|configs)[\w.]*)", page.read_text()))
    paths = [ROOT / name.rstrip(".").replace(".", "/") for name in named if not name.endswith(".NAME")]
    assert not [path for path in paths if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()]


@pages
def test_named_configs_exist(page):
    named = set(re.findall(r"configs/(\w+)\.py", page.read_text())) - {"NAME"}
    assert not [name for name in named if not (ROOT / "configs" / f"{name}.py").exists()]


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
