"""The site that `make docs` builds: it has every page, and loads nothing from a network."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from typer.main import get_command

from pipeline.cli.__main__ import app
from tests.conftest import REPOSITORY

PAGES = [path.relative_to(REPOSITORY / "docs") for path in sorted((REPOSITORY / "docs").rglob("*.md"))]
LOADED = re.compile(r'<(?:script|img|iframe|source)[^>]* src="?(\w+:)?//|<link[^>]* href="?(\w+:)?//|@import')
BLOCKS = ("li", "table", "tr", "pre", "h2", "h3")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site. With `--strict`, broken links are errors, as are pages outside the navigation.

    `--quiet` would hide the warnings that `--strict` makes errors of.
    """
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_a_page_has_the_blocks_that_a_code_host_shows(site: Path) -> None:
    """Markdown's dialects differ: a list that one of them sees can be a paragraph in the other."""
    markdown = MarkdownIt("commonmark").enable("table")
    for page in PAGES:
        html = (site / page.with_suffix(".html")).read_text()
        content = html[html.index("<article") : html.index("</article>")]
        expected = markdown.render((REPOSITORY / "docs" / page).read_text())
        for tag in BLOCKS:
            count = [len(re.findall(rf"<{tag}[ >]", text)) for text in (expected, content)]
            assert count[0] == count[1], f"<{tag}> in {page}"


def test_pages_load_nothing_from_a_network(site: Path) -> None:
    assert [str(page) for page in site.rglob("*.html") if LOADED.search(page.read_text())] == []


def test_the_reference_has_every_command_and_the_search_finds_it(site: Path) -> None:
    found = json.loads((site / "search/search_index.json").read_text())["docs"]
    places = {entry["location"] for entry in found}
    names = get_command(app).commands  # type: ignore[attr-defined]
    assert {f"reference/commands.html#pipeline-{name}" for name in names} <= places


def test_drawings_are_those_of_their_script(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "docs", tmp_path / "docs")
    subprocess.run([sys.executable, "docs/hooks/drawings.py"], cwd=tmp_path, check=True)
    drawings = sorted((REPOSITORY / "docs/images").glob("how-*.svg"))
    assert drawings
    assert [
        each.name for each in drawings if each.read_bytes() != (tmp_path / "docs/images" / each.name).read_bytes()
    ] == []
